"""Pages and figures that show what a search found."""
