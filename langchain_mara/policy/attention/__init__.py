"""Which tokens may see which, and attention that follows it without copying keys."""
