"""Which neuron of one model is which of another's: by name, by a mapping, by activation."""
