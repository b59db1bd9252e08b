"""Fits an agent to labeled states, with a scikit-learn classifier."""
