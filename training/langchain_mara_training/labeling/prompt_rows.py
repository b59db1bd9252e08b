"""The prompts of rollouts, with their token ids: all are read and judged before the first answer is generated."""

from typing import NamedTuple

from langchain_mara import MaraLLM
from langchain_mara.exceptions import DataError
from langchain_mara_training.data.readers import Groups, Row, iterate_prompts
from langchain_mara_training.data.row_report import RowReport, placed
from langchain_mara_training.data.sources import Source
from langchain_mara_training.generation.prompts import prompt_ids, with_room
from langchain_mara_training.storage.defaults import TooLong


class PromptRow(NamedTuple):
    """A row of data with its numbers and its prompt's tokens.

    Attributes:
        number: Number of the row.
        group: Number of the prompt.
        row: The row.
        prompt_ids: Token ids of the prompt, cut if it was too long.
    """

    number: int
    group: int
    row: Row
    prompt_ids: list[int]


class PromptRows(list[PromptRow]):
    """Rows that were read and judged."""


def read_prompt_rows(
    llm: MaraLLM, prompts: Source, context: int | None, too_long: TooLong, report: RowReport
) -> PromptRows:
    """Reads all rows and encodes their prompts.

    Args:
        llm: The LLM that answers.
        prompts: Any source that `read_prompts` reads.
        context: Most tokens that the model holds; None for no limit.
        too_long: What happens to a prompt that leaves no room for an answer.
        report: Counts the rows; decides about bad ones.

    Raises:
        DataError: If a row cannot be used, or none is left.
    """
    rows, groups = PromptRows(), Groups()
    for numbered in iterate_prompts(prompts, report=report):
        try:
            group = groups.of(numbered)
            ids = prompt_ids(llm, numbered.row)
            kept = with_room(ids, llm.max_new_tokens, context, llm.model_id, too_long, report)
        except DataError as error:
            report.refuse(placed(error, numbered.where))
            continue
        if kept is not None:
            rows.append(PromptRow(numbered.number, group, numbered.row, kept))
    if not rows:
        raise DataError(f"No prompt can be used. {report}")
    return rows
