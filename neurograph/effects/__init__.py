"""Effects of interventions on a target: what moves, how it is measured, and how it is estimated."""
