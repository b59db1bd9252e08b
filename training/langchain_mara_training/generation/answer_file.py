"""Answers to the rows of a file, block by block, and the file in which they end up.

OUTPUT.job/generate.json   what the answers depend on, except the rows
OUTPUT.job/answers.jsonl   the rows answered so far, in their order, each with its digest; lines are only appended
OUTPUT                     all rows, once the last one is answered; then OUTPUT.job is removed
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from langchain_mara.exceptions import DataError, OptionsError, TrainingError
from langchain_mara_training.data.readers import Row
from langchain_mara_training.storage.atomic import append_durably, explained, require_file
from langchain_mara_training.storage.identity.job_identity import claim
from langchain_mara_training.storage.records import dump, sealed_line, unsealed_line

COMPLETION = "completion"
"""Column of the answers."""
ENDINGS = (".jsonl", ".parquet")
"""Endings of files that can be written."""
_AT_ONCE = 1024


class AnswerFile:
    """The rows of a file with their answers. Nothing is written before `begin`.

    Args:
        output: The file, whose ending says how it is written.

    Raises:
        OptionsError: If the ending is unknown.
        TrainingError: If the file is there already, or could not be written.
    """

    def __init__(self, output: Path) -> None:
        self.output = output.expanduser()
        self.folder = self.output.with_name(f"{self.output.name}.job")
        self._answers = self.folder / "answers.jsonl"
        if self.output.suffix not in ENDINGS:
            raise OptionsError(f"{output} cannot be written. Give a file that ends with {' or '.join(ENDINGS)}.")
        require_file(self.output, "--output")
        if self.output.exists() and not self.folder.exists():
            raise TrainingError(f"{output} is there already. Delete it, or give another --output.")

    def begin(self, identity: Mapping[str, Any], block: int) -> int:
        """Begins, or resumes, and cuts off what a killed process left of a block.

        Args:
            identity: What the answers depend on, except the rows.
            block: Rows of a block.

        Returns:
            Number of blocks that are answered.

        Raises:
            TrainingError: If the folder holds answers that depend on something else.
        """
        claim(self.folder / "generate.json", {**identity, "block": block}, self._answers.exists)
        if not self._answers.exists():
            return 0
        size = whole = count = 0
        with self._answers.open("rb") as stream:
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                size, count = size + len(line), count + 1
                if count % block == 0:
                    whole = size
        os.truncate(self._answers, whole)
        return count // block

    def append(self, rows: Sequence[Row]) -> None:
        """Appends the answered rows of the next block; they are on disk when this returns."""
        append_durably(self._answers, "".join(f"{sealed_line(dump(row))}\n" for row in rows).encode())

    def rows(self) -> Iterator[Row]:
        """The answered rows.

        Raises:
            DataError: If one is damaged.
        """
        with self._answers.open("rb") as stream:
            for number, line in enumerate(stream):
                try:
                    yield json.loads(unsealed_line(line.rstrip(b"\n")))
                except ValueError as error:
                    raise DataError(
                        f"{self._answers}, line {number + 1} is damaged ({error}). Delete {self.folder} to start over."
                    ) from None

    def require_same(self, answered: Row, row: Row) -> None:
        """Refuses to go on if a row that is answered is another one now.

        Args:
            answered: The row with its answer.
            row: The row as it is read now.

        Raises:
            TrainingError: If they differ.
        """
        then, now = ({k: v for k, v in json.loads(dump(each)).items() if k != COMPLETION} for each in (answered, row))
        if then != now:
            raise TrainingError(
                f"{self.folder} holds answers to other rows; one was {str(then.get('prompt'))[:60]!r} and is "
                f"{str(now.get('prompt'))[:60]!r}. Give another --output, or delete the folder to start over."
            )

    def finish(self) -> None:
        """Writes the file, completely or not at all.

        Raises:
            DataError: If the rows do not fit into a table.
            TrainingError: If the disk is full.
        """
        whole = self.folder / f"whole{self.output.suffix}"
        with explained(self.output, self._answers.stat().st_size):
            if self.output.suffix == ".parquet":
                self._write_parquet(whole)
            else:
                with whole.open("wb") as stream:
                    stream.writelines(f"{dump(row)}\n".encode() for row in self.rows())
            with whole.open("rb+") as stream:
                os.fsync(stream.fileno())
            whole.replace(self.output)

    def remove(self) -> None:
        """Removes the folder of the job."""
        shutil.rmtree(self.folder)

    def _write_parquet(self, file: Path) -> None:
        try:
            schemas = (_schema(rows) for rows in _chunks(self.rows()))
            schema = pa.unify_schemas(list(schemas), promote_options="permissive")
            with parquet.ParquetWriter(file, schema) as writer:
                for rows in _chunks(self.rows()):
                    writer.write_table(pa.Table.from_pylist(rows, schema))
        except pa.ArrowException as error:
            raise DataError(
                f"The rows do not fit into a table ({error}). They are in {self._answers}, with their answers. "
                "For another file, give an --output that ends with .jsonl."
            ) from None


def _schema(rows: Sequence[Row]) -> pa.Schema:
    """The columns of all rows; Arrow itself would take those of the first one."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.Table.from_pylist([{**names, **row} for row in rows]).schema


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while chunk := list(islice(rows, _AT_ONCE)):
        yield chunk
