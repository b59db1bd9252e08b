"""The jobs behind the commands `label`, `fit`, `evaluate` and `rl`, each on a run folder."""
