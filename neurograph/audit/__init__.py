"""Effects computed again by another road: forward hooks on the model as it was given."""
