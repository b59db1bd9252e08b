"""Preference data and prompts: files, data sets and rows in one form."""
