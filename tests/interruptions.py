"""Interrupts trainings while they learn."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from langchain_mara_training.reinforcement.actor_critic import ActorCritic


@contextmanager
def interrupted_after(updates: int) -> Iterator[None]:
    """After some updates, raises KeyboardInterrupt instead of the next one, and expects it to propagate."""
    update, calls = ActorCritic.update, []

    def counted(self: ActorCritic, batches: Any) -> Any:
        calls.append(1)
        if len(calls) > updates:
            raise KeyboardInterrupt
        return update(self, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ActorCritic, "update", counted)
        with pytest.raises(KeyboardInterrupt):
            yield
