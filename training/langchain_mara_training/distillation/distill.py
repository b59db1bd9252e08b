"""distill: fits a look-ahead agent to what another agent says of the model's own candidates, and compares both."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from langchain_mara import LookAheadAgent, MaraLLM
from langchain_mara.agents.base import Agent
from langchain_mara.agents.embedding_sketch import embedding_sketch
from langchain_mara.exceptions import DataError, OptionsError
from langchain_mara.loading.models import AgentSource
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.verification import policy_of
from langchain_mara_training.data.row_report import RowReport
from langchain_mara_training.data.sources import Source
from langchain_mara_training.distillation.verdicts import Verdicts, judged_candidates, judged_on_the_way_of
from langchain_mara_training.evaluation.comparison import compare
from langchain_mara_training.evaluation.results import Comparison
from langchain_mara_training.evaluation.systems import Decoding
from langchain_mara_training.fitting.classifier import MaraClassifier
from langchain_mara_training.generation.generate import Rewards
from langchain_mara_training.labeling.prompt_rows import PromptRow, read_prompt_rows
from langchain_mara_training.storage.defaults import TRAINING_BATCH_SIZE

PLAIN, TEACHER, STUDENT = "plain", "distilled from", "look-ahead"
"""Names of the systems in the report's comparison."""
_FEWEST_PROMPTS = 2


class Agreement(NamedTuple):
    """How a look-ahead agent agrees with the agent it was distilled from, on prompts that it was not fitted to.

    Attributes:
        positions: Number of positions with several candidates, in answers of the agent it was distilled from.
        same_verdict: Share of all their candidates that both accept or both reject.
        same_choice: Share of the positions at which both choose the same candidate (`first-accept`).
        changed: Share of the positions at which the agent it was distilled from does not choose candidate 0. Whoever
            accepts everything has a `same_choice` of one minus this.
        same_choice_where_changed: `same_choice` at these positions; NaN if there are none.
    """

    positions: int
    same_verdict: float
    same_choice: float
    changed: float
    same_choice_where_changed: float


class Distillation(NamedTuple):
    """A distilled agent and its report.

    Attributes:
        agent: The look-ahead agent.
        agreement: How it agrees with the agent it was distilled from.
        comparison: Plain decoding and both agents on the held-out prompts, scored by the rewards; None without rewards.
        training_positions: Number of positions that it was fitted to.
    """

    agent: LookAheadAgent
    agreement: Agreement
    comparison: Comparison | None
    training_positions: int

    def values(self) -> dict[str, Any]:
        """The report as plain values, by name."""
        values: dict[str, Any] = {"training positions": self.training_positions}
        values |= {name.replace("_", " "): value for name, value in self.agreement._asdict().items()}
        for name, summary in ({} if self.comparison is None else self.comparison.summaries()).items():
            shown = ("preference rate", "interval") if name != PLAIN else ()
            values |= {f"{name}, {key}": summary[key] for key in (*shown, "passes/token")}
        return values


def distill(
    agent: AgentSource,
    llm: MaraLLM,
    prompts: Source,
    *,
    rewards: Rewards | None = None,
    classifier: MaraClassifier | None = None,
    answers: int = 2,
    rounds: int = 2,
    held_out: float = 0.2,
    batch_size: int = TRAINING_BATCH_SIZE,
    random_state: int = 0,
) -> Distillation:
    """Distills an agent that judges states after candidates into a look-ahead agent, which needs one pass per token.

    The agent answers the prompts, and says of every candidate on the way whether it would accept it. The look-ahead
    agent is fitted to these verdicts, and measured on prompts that are held out.

    Args:
        agent: The agent, or what `load_agent` takes to find it, such as a reference `.pth`.
        llm: Its policy model, with decoding options; its own agent is not used.
        prompts: Prompts, from any source that `read_prompts` reads. They should be like those in use.
        rewards: One or several reward functions that score held-out answers of both agents and of plain decoding.
        classifier: A `MaraClassifier(agent="look-ahead")` that fits; by default one with little dropout, because
            verdicts have no noise.
        answers: Answers per prompt: first as the LLM decodes, then drawn.
        rounds: Number of fits. The first is to verdicts in the agent's own answers; each further one is also to its
            verdicts in answers of the look-ahead agent so far, which meets positions that the other never sees
            (DAgger: Ross, Gordon and Bagnell, AISTATS 2011).
        held_out: Share of the prompts to measure on, in (0, 1).
        batch_size: Most answers at a time.
        random_state: Seed of drawn answers, held-out prompts and, without a classifier, of the fit.

    Raises:
        OptionsError: If the agent judges before already, or a number is out of range.
        CheckpointError: If the agent cannot be loaded.
        AgentMismatchError: If the agent does not fit the model.
        DataError: If a row has no prompt, there are fewer than two, or the agent says the same of all candidates.
        RewardError: If a reward function fails.
    """
    taught = llm.with_agent(agent)
    teacher = _checked(taught, answers, rounds, held_out)
    context = policy_of(llm.model).context
    rows = read_prompt_rows(taught, prompts, context, "error", RowReport())
    training, measured = _split(rows, held_out, random_state)
    seen = judged_candidates(taught, training, answers, batch_size, random_state)
    fitted = clone(classifier) if classifier is not None else default_classifier(llm.model_id, random_state)
    student = _fitted(fitted, seen, taught, teacher)
    for number in range(1, rounds):
        seed = random_state + number
        learned = taught.with_agent(student)
        further = judged_on_the_way_of(learned, taught, training, answers, batch_size, seed)
        seen = Verdicts.join([seen, further])
        student = _fitted(fitted, seen, taught, teacher)
    unseen = judged_candidates(taught, measured, 1, batch_size, random_state)
    comparison = None
    if rewards is not None:
        systems = [(PLAIN, llm.with_agent(None)), (TEACHER, taught), (STUDENT, taught.with_agent(student))]
        asked = [row.row for row in measured]
        decodings = [Decoding(name, each) for name, each in systems]
        comparison = compare(decodings, asked, rewards, baseline=PLAIN, random_state=random_state)
    count = int(seen.positions[-1]) + 1
    return Distillation(student, agreement(fitted, unseen, taught), comparison, count)


def _checked(taught: MaraLLM, answers: int, rounds: int, held_out: float) -> Agent:
    if min(answers, rounds) < 1 or not 0 < held_out < 1:
        raise OptionsError(
            f"answers={answers} and rounds={rounds} must be at least 1, and held_out={held_out} between 0 and 1."
        )
    if taught.agent is None or taught.agent.judges == "before":
        raise OptionsError("distill takes an agent that judges states after candidates, such as a MaraAgent.")
    return taught.agent


def _split(rows: Sequence[PromptRow], share: float, seed: int) -> tuple[list[PromptRow], list[PromptRow]]:
    """Rows to fit to and rows to measure on; no prompt is on both sides."""
    groups = np.unique([row.group for row in rows])
    if len(groups) < _FEWEST_PROMPTS:
        raise DataError("Distillation needs at least two different prompts: one to fit to, and one to measure on.")
    count = min(len(groups) - 1, max(1, round(share * len(groups))))
    measured = set(np.random.default_rng(seed).permutation(groups)[:count].tolist())
    return [row for row in rows if row.group not in measured], [row for row in rows if row.group in measured]


def default_classifier(policy_model: str, seed: int) -> MaraClassifier:
    """The classifier that fits where you give none.

    Args:
        policy_model: Name of the policy model, stored in the agent.
        seed: Seed of the fit.
    """
    return MaraClassifier(
        agent="look-ahead",
        max_epochs=30,
        learning_rate=1e-3,
        weight_decay=0.01,
        dropout=0.1,
        input_dropout=0.0,
        n_iter_no_change=5,
        random_state=seed,
        policy_model=policy_model,
    )


def _fitted(classifier: MaraClassifier, seen: Verdicts, taught: MaraLLM, teacher: Agent) -> LookAheadAgent:
    """A look-ahead agent that is fitted to an agent's verdicts."""
    labels = (seen.accept > taught.accept_threshold).astype(int)
    if len(set(labels.tolist())) < len(("reject", "accept")):
        raise DataError(
            "The agent says the same of all candidates of these prompts, so there is nothing to learn. Give prompts "
            "like those it was trained for, or another accept_threshold."
        )
    classifier.fit(seen.features, labels, groups=seen.groups)
    return _finished(classifier.agent_, taught, teacher)


def _finished(fitted: Agent, llm: MaraLLM, teacher: Agent) -> LookAheadAgent:
    """The fitted agent with the options that were found for the other one, and the sketch of its model."""
    if not isinstance(fitted, LookAheadAgent):
        raise OptionsError("The classifier must be a MaraClassifier(agent='look-ahead').")
    embeddings: Any = llm.model.get_input_embeddings()
    return fitted.with_config(
        policy_model=teacher.policy_model or fitted.policy_model,
        recommended_options=teacher.recommended_options,
        policy_sketch=embedding_sketch(embeddings.weight),
    )


def agreement(classifier: MaraClassifier, verdicts: Verdicts, options: MaraLLM) -> Agreement:
    """How a fitted classifier agrees with the verdicts of another agent.

    Args:
        classifier: Fitted classifier.
        verdicts: Verdicts on candidates.
        options: An LLM with `accept_threshold` and `fallback`.

    Raises:
        DataError: If there are no verdicts.
    """
    if not len(verdicts.accept):
        raise DataError("No held-out answer has a position with several candidates. Give more prompts.")
    accept = classifier.predict_proba(verdicts.features)[:, 1]
    threshold = options.accept_threshold
    ends = np.flatnonzero(np.diff(verdicts.positions)) + 1
    chosen, others = (_choices(values, ends, options) for values in (verdicts.accept, accept))
    changed = chosen > 0
    return Agreement(
        len(chosen),
        float(np.mean((accept > threshold) == (verdicts.accept > threshold))),
        float(np.mean(chosen == others)),
        float(np.mean(changed)),
        float(np.mean((chosen == others)[changed])) if changed.any() else float("nan"),
    )


def _choices(accept: NDArray[np.float64], ends: NDArray[np.int64], options: MaraLLM) -> NDArray[np.int64]:
    """Index of the chosen candidate of each position: the first accepted one, or else the fallback."""
    decoding = DecodingOptions(fallback=options.fallback)
    chosen = []
    for values in np.split(accept, ends):
        accepted = np.flatnonzero(values > options.accept_threshold)
        chosen.append(int(accepted[0]) if len(accepted) else decoding.fallback_index(len(values)))
    return np.array(chosen)
