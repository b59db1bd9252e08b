"""This process computes block after block, each when its result is asked for."""

from langchain_mara_training.engines.blocks import InProcess


def test_blocks_are_computed_in_their_order_when_they_are_asked_for() -> None:
    taken: list[int] = []

    def blocks() -> object:
        for block in (3, 1, 2):
            taken.append(block)
            yield block

    results = InProcess(10).map(lambda worker, block: worker * block, blocks())  # type: ignore[arg-type]
    assert taken == []
    assert (next(results), taken) == (30, [3])
    assert (list(results), taken) == ([10, 20], [3, 1, 2])
