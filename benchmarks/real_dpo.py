"""Direct preference optimization of `real.py`: TRL's trainer, a LoRA adapter, the agents' pairs, and a limit of time.

Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model" (NeurIPS 2023).
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from langchain_mara_training import Decoding
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from langchain_mara import MaraLLM

MAX_LENGTH = 384
"""Tokens of a conversation; what is longer loses its beginning, as in the reward."""
_LORA = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
_COLUMNS = ("prompt", "chosen", "rejected")


class _StopAfter(TrainerCallback):
    """Ends a training after some seconds of each thread's computing. Other work on the machine does not count."""

    def __init__(self, seconds: float) -> None:
        self.end = time.process_time() + seconds * torch.get_num_threads()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - given by name
        if time.process_time() > self.end:
            control.should_training_stop = True


class FineTuned(Decoding):
    """A fine-tuned model, whose answers are measured from the model it was made of.

    Args:
        name: Name in tables and file names.
        llm: The fine-tuned model.
        plain: The model before, with the same vocabulary.
    """

    def __init__(self, name: str, llm: MaraLLM, plain: MaraLLM) -> None:
        super().__init__(name, llm)
        self.answering = plain


def fit_dpo(model: Path, pairs: Sequence[dict[str, Any]], place: Path, *, seconds: float, seed: int) -> float:
    """Fits an adapter in bfloat16, twice as fast here, for at most as long as an agent's training took.

    Args:
        model: Folder of the policy model.
        pairs: Preference pairs in TRL's conversational layout.
        place: Folder of the adapter, with its tokenizer.
        seconds: Limit of computing time of each thread, counted from the first step.
        seed: Seed of the order of pairs and of the adapter.

    Returns:
        The share of one epoch that was done.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    options = DPOConfig(
        str(place.parent / "dpo-run"), seed=seed, num_train_epochs=1, per_device_train_batch_size=1,
        gradient_accumulation_steps=8, learning_rate=1e-4, lr_scheduler_type="constant_with_warmup", warmup_steps=5,
        max_length=MAX_LENGTH, truncation_mode="keep_end", gradient_checkpointing=False, use_cpu=True,
        bf16=True, logging_steps=5, save_strategy="no", report_to="none",
    )  # fmt: skip
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(model),
        args=options,
        train_dataset=Dataset.from_list([{column: pair[column] for column in _COLUMNS} for pair in pairs]),
        processing_class=tokenizer,
        peft_config=_LORA,
        callbacks=[_StopAfter(seconds)],
    )
    trainer.train()
    trainer.save_model(str(place))
    tokenizer.save_pretrained(place)
    return float(trainer.state.epoch or 0.0)
