"""Data of any kind, read as batches that a model takes."""
