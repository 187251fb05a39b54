"""Audit: effects computed again by forward hooks on the model as it was given."""
