"""Agents: they accept or reject candidate tokens."""
