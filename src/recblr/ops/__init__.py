"""Numerical operations on packed rows; each folder is one operation with its backends."""
