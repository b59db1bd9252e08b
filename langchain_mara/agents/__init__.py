"""Agents, which accept or reject candidate tokens."""
