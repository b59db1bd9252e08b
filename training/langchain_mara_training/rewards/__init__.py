"""Reward functions: weighted sums, published reward models, rewards by name."""
