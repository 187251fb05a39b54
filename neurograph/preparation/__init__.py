"""A model, data and a target made ready for whatever is asked of them."""
