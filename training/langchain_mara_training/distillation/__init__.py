"""Distillation: a look-ahead agent learns what another agent says of the policy model's own candidates."""
