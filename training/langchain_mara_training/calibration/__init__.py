"""Finds how much an agent may say, from measurements on prompts."""
