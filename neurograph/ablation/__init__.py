"""Neurons ablated in a model that runs by itself: masks, rankings, curves."""
