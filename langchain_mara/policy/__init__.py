"""The frozen language model: token ids in, states and logits out. It knows no agent and no text."""
