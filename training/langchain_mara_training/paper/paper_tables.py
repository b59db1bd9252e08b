"""Measures the paper's tables: agents against the upstream model, against rivals, and on other models.

Every contest is a comparison in a separate folder, so an interrupted table can resume, and reports can be written.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from rich.console import Console

from langchain_mara import MaraLLM
from langchain_mara.exceptions import AgentMismatchError, MaraError, OptionsError
from langchain_mara.loading.models import AgentSource
from langchain_mara.options import BATCH_DEFAULTS
from langchain_mara.untrusted import printable
from langchain_mara_training import run_folder
from langchain_mara_training.evaluation.comparison import CHUNK_BATCHES, compare
from langchain_mara_training.evaluation.preference_rate import Preference
from langchain_mara_training.evaluation.systems import CorrectorBaseline, Decoding, System
from langchain_mara_training.paper.settings import Rival, TableSettings, known_name
from langchain_mara_training.rewards.specs import reward_function
from langchain_mara_training.rewards.weighted import WeightedRewards

TableNumber = Literal["1", "2", "3"]

_MARA = "MARA"
_FAILURES = (MaraError, OSError, torch.OutOfMemoryError)


class TableRow(NamedTuple):
    """A row of a table.

    Attributes:
        model: Name of the upstream model.
        other: The rival that MARA is compared with (table 2), or the model whose agent is used (table 3).
        cells: Preference for MARA, by the name of the data set.
        problem: Reason why cells are missing, if any are.
    """

    model: str
    other: str | None
    cells: dict[str, Preference]
    problem: str | None = None


_Systems = tuple[System, System]
"""The baseline and MARA."""


class _Contest(NamedTuple):
    """The comparison of one row.

    Attributes:
        other: See `TableRow.other`.
        make_systems: Makes the baseline and MARA.
    """

    other: str | None
    make_systems: Callable[[], _Systems]


class Tables:
    """Measures the rows of tables.

    Args:
        settings: Settings of the tables.
        output: Folder for the comparisons, each in `MODEL/DATA SET` or `MODEL/OTHER/DATA SET`.
        device: Device to compute on; by default CUDA if available.
        limit: Largest number of prompts per data set.
        batch_size: Largest number of prompts in one pass.
        verbose: Whether to show progress.

    Raises:
        DataError: If prompts cannot be read.
        RewardError: If a reward function cannot be imported.
        LoadingError: If a reward model cannot be loaded.
    """

    def __init__(
        self,
        settings: TableSettings,
        output: Path,
        *,
        device: str | None = None,
        limit: int | None = None,
        batch_size: int = BATCH_DEFAULTS.batch_size,
        verbose: bool = False,
    ) -> None:
        self.settings = settings
        self.output = output
        self.device = device
        self.batch_size = batch_size
        self.verbose = verbose
        self.prompts = {name: prompt_set.read(limit) for name, prompt_set in settings.prompts.items()}
        self.rewards = {name: reward_function(spec, device) for name, spec in settings.rewards.items()}

    def rows(self, number: TableNumber, models: Sequence[str] | None = None) -> list[TableRow]:
        """Measures a table. If something cannot be loaded, its row stays empty and the next row follows.

        Args:
            number: Number of the table in the paper.
            models: Names of the upstream models; by default all.

        Raises:
            OptionsError: If there is no such model.
        """
        names = [known_name(name, self.settings.models, "model") for name in models or self.settings.models]
        rows: list[TableRow] = []
        for count, name in enumerate(names, 1):
            self._say(f"{name}, model {count} of {len(names)}")
            rows += self._model_rows(number, name)
            _free_memory()
        return rows

    def _model_rows(self, number: TableNumber, name: str) -> Iterator[TableRow]:
        try:
            contests = self._contests(number, name)
        except _FAILURES as error:
            yield TableRow(name, None, {}, _reason(error))
            return
        for contest in contests:
            yield self._row(name, contest)
            _free_memory()

    def _contests(self, number: TableNumber, name: str) -> list[_Contest]:
        """The contests of a model, which is loaded once for all of them."""
        if number == "3":
            return self._transfers(name)
        agent = self._agent(name)
        llm = self._load(self.settings.models[name].source)
        if number == "1":
            return [_Contest(None, lambda: _upstream(llm, agent))]
        return [_Contest(rival, partial(self._against, rival, name, llm, agent)) for rival in get_args(Rival)]

    def _transfers(self, name: str) -> list[_Contest]:
        others = [other for other, model in self.settings.models.items() if other != name and model.agent is not None]
        if not others:
            raise OptionsError("The settings have no agent of another model. Give agents: --agents MODEL=AGENT.")
        llm = self._load(self.settings.models[name].source)
        contests = [
            _Contest(other, partial(self._with_agent_of, other, llm)) for other in others if self._fits(other, llm)
        ]
        if not contests:
            raise OptionsError(
                "No other model with an agent has the same hidden size. Give such an agent: --agents MODEL=AGENT."
            )
        return contests

    def _row(self, name: str, contest: _Contest) -> TableRow:
        cells: dict[str, Preference] = {}
        try:
            baseline, mara = contest.make_systems()
            for data_set, rows in self.prompts.items():
                self._say(" / ".join(filter(None, (name, contest.other, data_set))))
                comparison = compare(
                    [baseline, mara],
                    rows,
                    self._weighted(name),
                    self.output.joinpath(*filter(None, (name, contest.other, data_set))),
                    baseline=baseline.name,
                    chunk=CHUNK_BATCHES * self.batch_size,
                    random_state=self.settings.seed,
                    facts=self.settings.rewards,
                    verbose=self.verbose,
                )
                cells[data_set] = comparison.preference(mara.name, baseline.name)
        except _FAILURES as error:
            return TableRow(name, contest.other, cells, _reason(error))
        return TableRow(name, contest.other, cells)

    def _against(self, rival: Rival, name: str, llm: MaraLLM, agent: AgentSource) -> _Systems:
        source = self.settings.models[name].rivals.get(rival)
        if source is None:
            raise OptionsError(f"The settings do not say where its {rival} checkpoint is: --rivals {name}/{rival}=…")
        rival_llm = self._load(source)
        system = CorrectorBaseline(rival, llm, rival_llm) if rival == "Aligner" else Decoding(rival, rival_llm)
        return system, Decoding(_MARA, llm.with_agent(agent))

    def _with_agent_of(self, other: str, llm: MaraLLM) -> _Systems:
        return _upstream(llm, self._agent(other))

    def _fits(self, other: str, llm: MaraLLM) -> bool:
        try:
            llm.with_agent(self._agent(other))
        except AgentMismatchError:
            return False
        except _FAILURES:
            return True  # its row will name the problem
        return True

    def _agent(self, name: str) -> AgentSource:
        source = self.settings.models[name].agent
        if source is None:
            raise OptionsError(f"The settings do not say where its agent is: --agents {name}=…")
        return run_folder.agent_source(source)

    def _load(self, source: str) -> MaraLLM:
        fields = {**self.settings.decoding.model_dump(), "batch_size": self.batch_size}
        return MaraLLM.from_model_id(source, device=self.device, **fields)

    def _weighted(self, name: str) -> WeightedRewards:
        weights = self.settings.models[name].weights
        return WeightedRewards(list(self.rewards.values()), [weights[reward] for reward in self.rewards])

    def _say(self, text: str) -> None:
        if self.verbose:
            Console(stderr=True).print(printable(text), markup=False)


def _upstream(llm: MaraLLM, agent: AgentSource) -> _Systems:
    return Decoding("plain", llm), Decoding(_MARA, llm.with_agent(agent))


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _free_memory() -> None:
    """Frees the memory of models that are no longer used; their hooks and caches form reference cycles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
