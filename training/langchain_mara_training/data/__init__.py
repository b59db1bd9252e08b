"""Preference data and prompts from files, data sets and rows, in one format."""
