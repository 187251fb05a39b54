"""The race against peers: the same models and data for everybody, each in a process of its own."""
