"""Networks with real data, small enough to train in a minute and known enough to check by eye."""
