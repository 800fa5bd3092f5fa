"""Family 2, autocast regions: what belongs inside, what does not, and what never enters."""
