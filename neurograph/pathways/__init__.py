"""The strongest paths of a whole model: what completions promise and may do, and a beam."""
