"""How the bundled model and agent are made: corpus, judge, training."""
