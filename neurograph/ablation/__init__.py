"""Neurons silenced in a model that runs by itself: masks, criteria of importance, curves."""
