"""Metrics of full rankings."""
