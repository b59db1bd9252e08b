"""Rarity of tokens over a corpus, which the trust gate weighs candidates by."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from math import log
from pathlib import Path
from typing import Self

from safetensors import SafetensorError

from langchain_mara.exceptions import CheckpointError, OptionsError

_NAME = "rarity"


class Rarity:
    """How rare each token of a vocabulary is over a corpus, between 0 (the commonest) and 1 (the rarest).

    It is the inverse document frequency log(N / (1 + df)) of a token that df of N documents hold, moved and scaled to
    [0, 1] over the vocabulary. Documents are texts as the policy model's tokenizer encodes them.

    Args:
        values: Rarity of each token of the vocabulary, in [0, 1].

    Raises:
        OptionsError: If there is no value, or one is outside [0, 1].
    """

    def __init__(self, values: Sequence[float]) -> None:
        single = array("f", values)  # options are read before anybody needs PyTorch
        self.values = single.tolist()
        if not self.values or not all(0 <= value <= 1 for value in self.values):
            raise OptionsError("Rarities should be numbers from 0 to 1, one for each token. Count them with Rarity.of.")
        self.digest = hashlib.sha256(single.tobytes()).hexdigest()[:16]

    @classmethod
    def of(cls, documents: Iterable[Iterable[int]], vocabulary: int) -> Self:
        """Counts in how many documents each token is.

        Args:
            documents: Token ids of each document, such as `map(llm.get_token_ids, texts)`.
            vocabulary: Number of tokens.

        Raises:
            OptionsError: If there are no documents.
        """
        counts, total = Counter[int](), 0
        for document in documents:
            counts.update(set(document))
            total += 1
        if not total:
            raise OptionsError("Rarities need at least one document to count tokens in.")
        frequencies = [log(total / (1 + counts[token])) for token in range(vocabulary)]
        low, high = min(frequencies), max(frequencies)
        return cls([1.0 if high == low else (value - low) / (high - low) for value in frequencies])

    def __getitem__(self, token_id: int) -> float:
        """Rarity of a token; 1 for one beyond the vocabulary that was counted."""
        return self.values[token_id] if 0 <= token_id < len(self.values) else 1.0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rarity) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Rarity({len(self.values)} tokens, {self.digest})"

    def save(self, file: str | Path) -> None:
        """Writes the values to a safetensors file."""
        import torch  # noqa: PLC0415 - see above
        from safetensors.torch import save_file  # noqa: PLC0415

        save_file({_NAME: torch.tensor(self.values, dtype=torch.float32)}, file)

    @classmethod
    def load(cls, file: str | Path) -> Self:
        """Reads what `save` has written.

        Raises:
            CheckpointError: If the file is missing or holds something else.
        """
        from safetensors.torch import load_file  # noqa: PLC0415 - see above

        path = Path(file).expanduser()
        if not path.is_file():
            raise CheckpointError(f"There is no file {path}. Write one with Rarity.save.")
        try:
            values = load_file(path)[_NAME]
            return cls(values.flatten().tolist())
        except (SafetensorError, KeyError, OptionsError) as error:
            raise CheckpointError(f"{path} holds no rarities ({error}). Write it again with Rarity.save.") from None
