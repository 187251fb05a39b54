"""What is asked of a study: circuits, scores, strongest paths, response curves."""
