"""Fits an agent to labeled states, as a scikit-learn classifier."""
