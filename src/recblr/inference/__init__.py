"""Recommend with a trained model: raw ids in and out."""

from recblr.inference.live import Live
from recblr.inference.recommender import Recommender, Top

__all__ = ["Live", "Recommender", "Top"]
