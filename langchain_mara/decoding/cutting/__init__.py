"""How candidate sets are cut from logits, and how they are kept."""
