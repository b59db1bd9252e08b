"""Traces of answers: what was decided for each token and why, as records, statistics, HTML and plots."""
