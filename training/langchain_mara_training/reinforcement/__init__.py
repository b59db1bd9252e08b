"""Reinforcement learning: trains an agent by discrete soft actor-critic."""
