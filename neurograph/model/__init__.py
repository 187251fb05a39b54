"""What is explained: a model as it runs, its layers, neurons, positions and target."""
