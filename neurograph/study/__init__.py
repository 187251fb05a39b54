"""A model, data and a target made ready to be asked."""
