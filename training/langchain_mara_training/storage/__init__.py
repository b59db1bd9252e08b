"""Files that survive crashes: atomic writes, JSON records, checkpoints, model cards, settings; and shared defaults."""
