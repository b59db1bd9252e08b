"""Requests of many callers in one running batch, and the texts they get back."""
