"""Rewards fitted on preference pairs: a Bradley-Terry head on frozen features of a conversation."""
