"""States of whole sequences: those of decoding, whatever mode the model is in."""

import torch
from families import GPT
from langchain_mara_training.generation.states import batch_states
from transformers import GPT2Config, GPT2LMHeadModel

from langchain_mara.policy.model import PolicyModel

SEQUENCES = [[5, 6, 7, 8, 9], [11, 12]]


@torch.inference_mode()
def test_a_model_in_training_mode_gives_the_states_of_decoding_and_stays_in_it() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**GPT, attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)).train()
    policy = PolicyModel(model)
    states = batch_states(policy, SEQUENCES)
    last = torch.stack([states[i, len(sequence) - 1] for i, sequence in enumerate(SEQUENCES)])
    torch.testing.assert_close(last, policy.prefill(policy.new_cache(), 0, SEQUENCES))
    assert all(module.training for module in model.modules())
