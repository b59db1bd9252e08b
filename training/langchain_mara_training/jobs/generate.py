"""The job of `mara generate --input`: answers the prompts of a file into another file."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from langchain_mara import MaraLLM
from langchain_mara.exceptions import DataError
from langchain_mara.policy.verification import policy_of
from langchain_mara_training.data.readers import Row, iterate_prompts
from langchain_mara_training.data.row_report import RowReport
from langchain_mara_training.generation.answer_file import COMPLETION, AnswerFile
from langchain_mara_training.generation.generate import AnswerStart, generate_answers, prompt_seed
from langchain_mara_training.generation.prompts import prompt_ids, with_room
from langchain_mara_training.jobs.engines import IN_PROCESS, EngineChoice, Made
from langchain_mara_training.jobs.inputs import Options, Values, no_progress_bars, open_rows
from langchain_mara_training.storage.defaults import TooLong
from langchain_mara_training.storage.identity.job_identity import describe_llm
from langchain_mara_training.storage.lock import job_lock
from langchain_mara_training.storage.progress import progress_bar

BLOCK_BATCHES = 4
"""Batches of a block. The next prompt takes the slot of a finished one, so a block leaves few slots empty."""

Load = Callable[[Options, str | None], MaraLLM]


class PromptBlock(NamedTuple):
    """Rows to answer.

    Attributes:
        first: Number of the first row.
        rows: The rows, each with a `prompt`.
    """

    first: int
    rows: list[Row]


class Answerer:
    """Answers blocks of prompts.

    Args:
        llm: Policy model, agent and options.
        too_long: What becomes of a prompt that leaves no room for an answer; with `skip` its answer is None.
    """

    def __init__(self, llm: MaraLLM, too_long: TooLong) -> None:
        self.llm, self.too_long = llm, too_long

    def answer(self, block: PromptBlock) -> list[Row]:
        """The rows with their answers. Every engine calls this method.

        Raises:
            DataError: If a prompt cannot be used.
        """
        starts: dict[int, AnswerStart] = {}
        for number, row in enumerate(block.rows):
            if ids := self._prompt_ids(row, block.first + number):
                starts[number] = AnswerStart(ids, seed=prompt_seed(self.llm.seed, block.first + number))
        answers = generate_answers(self.llm, list(starts.values()), self.llm.batch_size)
        texts = dict(zip(starts, (answer.text for answer in answers), strict=True))
        return [{**row, COMPLETION: texts.get(number)} for number, row in enumerate(block.rows)]

    def _prompt_ids(self, row: Row, number: int) -> list[int] | None:
        llm = self.llm
        try:
            ids, context = prompt_ids(llm, row), policy_of(llm.model).context
            return with_room(ids, llm.max_new_tokens, context, llm.model_id, self.too_long, RowReport())
        except DataError as error:
            raise type(error)(f"Prompt {number}: {error}") from None


def generate(output: Path, options: Options, load: Load, choice: EngineChoice = IN_PROCESS) -> Values:
    """Answers the prompts of a file into another file.

    Args:
        output: The file to write. An interrupted job resumes in a folder next to it.
        options: Options of the command.
        load: Loads the LLM that the options name on a device; a function of a module.
        choice: What computes the blocks.

    Returns:
        Counts and times.

    Raises:
        MaraError: If data, model, agent or the file cannot be used.
    """
    choice.check()
    file = AnswerFile(output)
    source = open_rows(options)
    make = partial(_made, load)
    made = make(options, options["device"])
    size = BLOCK_BATCHES * options["batch_size"]
    identity = {"llm": describe_llm(made.llm), "too_long": options["too_long"], "seed": made.llm.seed}
    started, count = time.perf_counter(), 0
    with job_lock(file.folder), no_progress_bars(), progress_bar("answers", transient=True) as progress:
        done = file.begin(identity, size)
        numbered = iterate_prompts(source, prompt_column=options["prompt_column"], report=source.report)
        blocks = _left(file, (each.row for each in numbered), size, done)
        bar = progress.add_task("answering", total=None)
        with closing(choice.engine(make, options, made).map(Answerer.answer, blocks)) as results:
            for rows in results:
                file.append(rows)
                count += len(rows)
                progress.update(bar, advance=len(rows))
        file.finish()
    file.remove()
    seconds = time.perf_counter() - started
    return {"answers": done * size + count, "answers/s": count / seconds, "seconds": seconds, **source.report.counts()}


def _made(load: Load, options: Options, device: str | None) -> Made:
    llm = load(options, device)
    return Made(Answerer(llm, options["too_long"]), llm)


def _left(file: AnswerFile, rows: Iterator[Row], size: int, done: int) -> Iterator[PromptBlock]:
    """The blocks that are not answered; those that are have to be blocks of the same rows.

    Raises:
        TrainingError: If they are not.
        DataError: If there are no rows.
    """
    for answered in file.rows() if done else ():
        file.require_same(answered, next(rows, {}))
    first = done * size
    while block := list(islice(rows, size)):
        yield PromptBlock(first, block)
        first += len(block)
    if not first:
        raise DataError("No prompt can be used.")
