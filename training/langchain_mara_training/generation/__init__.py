"""Answers of a language model in batches, what they cost, and the states of whole sequences."""
