"""Circuit discovery: circuits, scores, strongest paths and response curves of a study."""
