"""Labels tokens accept or reject, by preference pairs or by rollouts."""
