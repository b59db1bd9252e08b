"""Generates answers of a language model in batches, measures their cost, and computes states of sequences."""
