"""What all else stands on: nested tensors, memory, files written whole, checks of options."""
