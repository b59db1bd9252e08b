"""Makes the bundled model and its agent: corpus, judge, training."""
