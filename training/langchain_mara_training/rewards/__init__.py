"""Reward functions: weighted sums, published reward models, and rewards by name."""
