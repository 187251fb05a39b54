"""What users call: a study to ask, and its questions as functions."""
