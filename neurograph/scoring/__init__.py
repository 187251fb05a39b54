"""Effects of neurons, edges and paths on a target: one file for each way to score them."""
