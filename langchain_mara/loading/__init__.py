"""Loads models, tokenizers and agents by name; only this folder and the agents call `from_pretrained`."""
