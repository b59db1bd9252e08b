"""The frozen language model: token ids in, states and logits out. It knows nothing of agents or text."""
