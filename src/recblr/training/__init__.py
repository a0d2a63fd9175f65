"""Objectives, the one LightningModule, callbacks, and the checks before a run."""
