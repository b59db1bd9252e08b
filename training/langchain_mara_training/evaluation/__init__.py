"""Compares systems on the same prompts: answers, rewards, costs, preference rates."""
