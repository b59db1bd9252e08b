"""A real model and human preferences: SmolLM2-135M-Instruct aligned on pairs of HH-RLHF."""
