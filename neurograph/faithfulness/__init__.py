"""How much of a model's behaviour a set of neurons or edges carries: kept alone, or knocked out."""
