"""Token-level labels, from preference pairs or from rollouts."""
