"""What became of the rows of a data source: how many were read, which were left out and why, the first bad ones."""

from dataclasses import dataclass, field
from typing import ClassVar

from langchain_mara.exceptions import DataError, OptionsError
from langchain_mara_training.storage.defaults import OnBadRow


class PromptTooLongError(DataError):
    """A prompt leaves no room for an answer, and `too_long` is `error`; `on_bad_row` does not skip it."""


def placed(error: DataError, where: str) -> DataError:
    """An error that says in which row it occurred.

    Args:
        error: The error.
        where: Source and number of the row.
    """
    text = str(error)
    return error if text.startswith(where) else type(error)(f"{where}: {text}")


@dataclass(eq=False)
class RowReport:
    """Counts of the rows of one source.

    Attributes:
        on_bad_row: What a bad row does: `error` raises, `skip` leaves the row out and counts it.
        rows: Rows read, bad ones included.
        bad: Rows left out because they cannot be used.
        too_long: Rows left out because their prompt is too long.
        truncated: Rows whose prompt was cut.
        equal: Rows without a preference: answers of the same tokens, or responses that all score the same.
        equal_after_truncation: Pairs whose answers have the same tokens up to where the model's context ends.
        first_bad: Sentences about the first five bad rows.
    """

    FIRST: ClassVar[int] = 5

    on_bad_row: OnBadRow = "error"
    rows: int = 0
    bad: int = 0
    too_long: int = 0
    truncated: int = 0
    equal: int = 0
    equal_after_truncation: int = 0
    first_bad: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.on_bad_row not in ("error", "skip"):
            raise OptionsError(f"on_bad_row={self.on_bad_row!r} is unknown. Give error or skip.")

    def refuse(self, error: DataError) -> None:
        """Raises the error of a bad row, or counts it if bad rows are skipped; a long prompt is not one of them."""
        if self.on_bad_row == "error" or isinstance(error, PromptTooLongError):
            raise error
        self.bad += 1
        if len(self.first_bad) < self.FIRST:
            self.first_bad.append(str(error))

    def counts(self) -> dict[str, int]:
        """The counts that are not zero, by what they mean; the number of rows is always there."""
        counts = {
            "rows": self.rows,
            "bad rows skipped": self.bad,
            "too long, skipped": self.too_long,
            "too long, truncated": self.truncated,
            "equal answers": self.equal,
            "equal after truncation": self.equal_after_truncation,
        }
        return {name: count for name, count in counts.items() if count or name == "rows"}

    def __str__(self) -> str:
        """The counts as a sentence, and the first bad rows on lines of their own."""
        counts = ", ".join(f"{name}: {count:,}" for name, count in self.counts().items())
        return "\n".join([f"{counts}.", *self.first_bad])
