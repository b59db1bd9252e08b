"""Which tokens may see which, and attention that applies such masks without copying keys."""
