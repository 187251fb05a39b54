"""Activations over data: streaming statistics, per class, and what they say of neurons."""
