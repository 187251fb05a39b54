"""Pretrained networks that arrive as PyPI packages, each loaded without the package's own code."""
