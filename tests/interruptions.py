"""Trainings that are interrupted where they learn."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from langchain_mara_training.reinforcement.actor_critic import ActorCritic


@contextmanager
def interrupted_after(updates: int) -> Iterator[None]:
    """Raises KeyboardInterrupt in place of the update behind so many, and expects it to come out."""
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
