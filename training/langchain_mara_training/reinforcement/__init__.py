"""Trains an agent by discrete soft actor-critic."""
