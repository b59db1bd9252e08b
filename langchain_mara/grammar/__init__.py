"""Promised output: answers that conform to a JSON schema, a regular expression, a grammar or a choice."""
