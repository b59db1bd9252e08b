"""The formats, family by family: JSON, code, tags."""
