"""Models, tokenizers and agents by name: the only callers of `from_pretrained`."""
