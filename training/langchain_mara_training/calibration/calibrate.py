"""calibrate: sets the threshold or the strength of an agent so that a measurement on prompts stays within a limit."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, get_args

from langchain_mara import MaraLLM, __version__
from langchain_mara.agents.base import Agent
from langchain_mara.exceptions import DataError, OptionsError, TrainingError
from langchain_mara.options import DEFAULTS
from langchain_mara_training.calibration.measurements import Harm, Measurement, Meter, Target
from langchain_mara_training.calibration.searches import (
    bisection,
    fewest_trials,
    fixed_sequence,
    last_allowed,
    most_measurements,
)
from langchain_mara_training.data.readers import Source, read_prompts
from langchain_mara_training.generation.generate import Rewards, weighted
from langchain_mara_training.rewards.calling import RewardFunction
from langchain_mara_training.storage.callbacks import JobCallback, as_callbacks, job_events
from langchain_mara_training.storage.defaults import TRAINING_BATCH_SIZE
from langchain_mara_training.storage.progress import progress_bar

DIALS = {"first-accept": "accept_threshold", "guided": "strength"}
"""The decoding option that calibration sets, by strategy. At 0, either is the plain model."""
LADDERS = {
    "first-accept": (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
    "guided": (0.0, 0.25, 0.5, 0.7, 0.8, 0.85, 0.9, 0.94, 0.96, 0.98, 0.99, 1.0),
}
"""Values of the dials, from the plain model to what the agent was trained for. Beyond a threshold of 0.5 more and more
positions have no accepted candidate and fall back on the plain model's, so it is no longer a dial."""
_LEAST = {"changed": 0.0, "divergence": 0.0, "perplexity": 1.0, "harmful": 0.0}
_RESULTING = ("top_k", "top_p", "strategy")
_DESCRIBED = (*_RESULTING, "order", "temperature", "fallback", "accept_action", "max_new_tokens", "min_new_tokens")


class CalibratedDial(NamedTuple):
    """A value of the dial that keeps a limit, and what it rests on.

    Attributes:
        llm: The LLM with this value, and with an agent that recommends it and carries the record.
        option: The dial: `accept_threshold` or `strength`.
        found: What was measured at the value.
        tried: What was measured at all values, in order.
        record: The same in plain values, as it is written in the agent's `config.json`.
    """

    llm: MaraLLM
    option: str
    found: Measurement
    tried: tuple[Measurement, ...]
    record: dict[str, Any]

    @property
    def agent(self) -> Agent:
        """The agent that recommends the value and carries the record.

        Raises:
            TrainingError: If this was made by hand with an LLM that has no agent.
        """
        if self.llm.agent is None:
            raise TrainingError("The LLM of this report has no agent. Take the report that calibrate returns.")
        return self.llm.agent

    def values(self) -> dict[str, Any]:
        """The report as plain values, by name."""
        shown = ("target", "at most", "measured", "interval", "bound", "confidence", "prompts", "tokens", "judged by")
        return {
            self.option.replace("_", " "): self.found.dial,
            **{name: self.record[name] for name in shown if name in self.record},
            "values tried": len(self.tried),
        }


def calibrate(
    llm: MaraLLM,
    prompts: Source,
    target: Target,
    at_most: float,
    *,
    harmful: RewardFunction | None = None,
    rewards: Rewards | None = None,
    least_reward: float | None = None,
    confidence: float = 0.9,
    ladder: Sequence[float] | None = None,
    halvings: int = 5,
    batch_size: int = TRAINING_BATCH_SIZE,
    random_state: int = 0,
    callbacks: JobCallback | Sequence[JobCallback] = (),
    verbose: bool = False,
) -> CalibratedDial:
    """Sets `accept_threshold` (`first-accept`) or `strength` (`guided`) from data.

    With `changed`, `divergence` and `perplexity`, it looks by bisection for the largest value of the dial, that is, for
    as much guidance as the limit allows. The measurement is of these prompts, and its interval says how much it would
    vary with others.

    With `harmful`, it looks for the least guidance with which at most a share `at_most` of the answers is harmful, with
    this confidence: it goes down a fixed list of values from the most guidance, bounds the share at each from above,
    and stops where the bound exceeds the limit ("Learn then Test", arXiv 2110.01052). With a probability of at least
    `confidence` over the choice of the prompts, the true share of the result is at most `at_most`. This assumes that
    the prompts are independent draws of what the model will be asked, and that the list was not chosen by looking at
    them.
    Conformal risk control (Angelopoulos, Bates, Fisch, Lei and Schuster, arXiv 2208.02814) needs only exchangeable
    prompts, but it bounds the expectation, not with a confidence, and needs each answer's harm to be monotone in the
    dial, which that of generated text is not.

    Args:
        llm: LLM with an agent, and with the options that it will be used with.
        prompts: Prompts like those in use, from any source that `read_prompts` reads; other columns go to rewards.
        target: What to measure: `changed`, the share of positions at which the agent changed the token; `divergence`,
            the mean of -log p under the plain model in nats per token, which is the Kullback-Leibler divergence of
            deterministic decoding; `perplexity`, its exponential; `harmful`, the share of harmful answers.
        at_most: The limit.
        harmful: For `harmful`: function with the signature of a reward function, whose values above 0 mean harmful. An
            answer that was not scored counts as harmful.
        rewards: For `harmful`, instead: one or several reward functions.
        least_reward: With `rewards`: an answer with a lower reward is harmful.
        confidence: Level of the intervals and of the bound, in (0, 1).
        ladder: Ascending values of the dial to begin with, or for `harmful` the only ones; by default `LADDERS`.
        halvings: How often bisection halves the interval between two of them.
        batch_size: Most answers at a time.
        random_state: Seed of draws and of the intervals.
        callbacks: One or several, see `JobCallback`. A step is a value of the dial. If one stops the job, you get
            the best value so far.
        verbose: Whether to show a progress bar.

    Raises:
        OptionsError: If there is no agent, the strategy has no dial, or arguments are out of range or do not belong
            together.
        DataError: If a row has no prompt, or there are too few prompts for the limit.
        PromptError: If a prompt is too long.
        RewardError: If a reward function fails.
        TrainingError: If no value keeps the limit; the message has what was measured.
    """
    ladder = _checked(llm, target, at_most, confidence, ladder, halvings)
    harm = _harm(target, harmful, rewards, least_reward)
    as_callbacks(callbacks)
    rows = read_prompts(prompts)
    _check_count(len(rows), target, at_most, confidence)
    meter = Meter(llm, rows, target, harm, confidence=confidence, batch_size=batch_size, random_state=random_state)
    option = DIALS[llm.strategy]
    tried: list[Measurement] = []
    most = len(ladder) if harm is not None else most_measurements(ladder, halvings)
    search = bisection(ladder, halvings) if harm is None else fixed_sequence(ladder[::-1])
    with (
        progress_bar("answers", shown=verbose, transient=True) as progress,
        job_events(callbacks, "calibrate", "values", most) as events,
    ):
        bar = progress.add_task("calibrating", total=most * len(rows))

        def allowed(value: float) -> tuple[bool, bool]:
            measurement = meter.measure(option, value, lambda count: progress.update(bar, advance=count))
            tried.append(measurement)
            limited = measurement.measured if harm is None else measurement.high
            return limited <= at_most, events.step(len(tried), **{option: value, target: measurement.measured})

        value = last_allowed(search, allowed)
    if value is None:
        raise TrainingError(_nothing_keeps(target, at_most, option, tried[0], confidence))
    found = next(each for each in tried if each.dial == value)
    record = _record(llm, option, target, at_most, confidence, found, tried, harm)
    return CalibratedDial(_set(llm, option, value, record), option, found, tuple(tried), record)


def _checked(
    llm: MaraLLM, target: str, at_most: float, confidence: float, ladder: Sequence[float] | None, halvings: int
) -> list[float]:
    """The ladder, once everything that can be checked without data is."""
    if llm.agent is None:
        raise OptionsError("calibrate needs an LLM with an agent. Give llm.with_agent(…).")
    if llm.strategy not in DIALS:
        raise OptionsError(
            f"strategy={llm.strategy!r} has no dial between the plain model and the agent. Give an LLM with "
            "strategy='first-accept', whose accept_threshold is set, or 'guided', whose strength is."
        )
    if llm.order not in ("descending", "sampled"):
        raise OptionsError(
            f"order={llm.order!r} does not begin with the token of the plain model. Give descending or sampled."
        )
    if target not in get_args(Target):
        raise OptionsError(f"target={target!r} is unknown. Give {', '.join(get_args(Target))}.")
    share = target in ("changed", "harmful")
    if not _LEAST[target] < at_most < (1.0 if share else float("inf")):
        limits = "between 0 and 1" if share else f"above {_LEAST[target]:g} and finite"
        raise OptionsError(f"at_most={at_most} must be {limits} for target={target!r}.")
    if target == "divergence" and llm.order == "sampled" and llm.temperature > 0:
        raise OptionsError(
            "The mean of -log p is a divergence for deterministic decoding only, and order='sampled' draws. Give "
            "target='perplexity', or another order."
        )
    values = list(LADDERS[llm.strategy] if ladder is None else ladder)
    ascending = all(low < high for low, high in pairwise(values))
    if not values or not ascending or not 0 <= values[0] <= values[-1] <= 1:
        raise OptionsError(f"ladder={values} must hold ascending values from 0 to 1.")
    if not 0 < confidence < 1 or halvings < 0:
        raise OptionsError(f"confidence={confidence} must be between 0 and 1, and halvings={halvings} at least 0.")
    return values


def _harm(
    target: Target, harmful: RewardFunction | None, rewards: Rewards | None, least_reward: float | None
) -> Harm | None:
    given = [harmful is not None, rewards is not None and least_reward is not None]
    if target != "harmful":
        if any(each is not None for each in (harmful, rewards, least_reward)):
            raise OptionsError(f"target={target!r} asks no judge. Leave harmful, rewards and least_reward out.")
        return None
    if sum(given) != 1 or (rewards is None) != (least_reward is None):
        raise OptionsError("target='harmful' needs either harmful=, or rewards= together with least_reward=.")
    return Harm(weighted(harmful if harmful is not None else rewards), least_reward)  # type: ignore[arg-type]


def _check_count(count: int, target: Target, at_most: float, confidence: float) -> None:
    fewest = fewest_trials(at_most, confidence) if target == "harmful" else 2
    if count < fewest:
        reason = f"a share of at most {at_most:g} with {confidence:.0%} confidence, even if no answer is harmful"
        purpose = reason if target == "harmful" else "an interval"
        raise DataError(f"There are {count} prompts, and {purpose} needs {fewest}. Give more prompts.")


def _nothing_keeps(target: Target, at_most: float, option: str, first: Measurement, confidence: float) -> str:
    found = f"At {option}={first.dial:g}"
    if target == "harmful":
        return (
            f"{found}, {first.measured:.1%} of {first.prompts} answers are harmful, so at {confidence:.0%} confidence "
            f"at most {first.high:.1%} are, not {at_most:.1%}. Give more prompts, a better agent, or a higher at_most."
        )
    return (
        f"{found}, where the agent says least, {target} is {first.measured:.4g}, above {at_most:g}, so no value keeps "
        "the limit. Give a higher at_most."
    )


def _record(
    llm: MaraLLM,
    option: str,
    target: Target,
    at_most: float,
    confidence: float,
    found: Measurement,
    tried: Sequence[Measurement],
    harm: Harm | None,
) -> dict[str, Any]:
    kept = {"bound": found.high} if harm is not None else {"interval": [found.low, found.high]}
    return {
        "option": option,
        "value": found.dial,
        "target": target,
        "at most": at_most,
        "measured": found.measured,
        **kept,
        "confidence": confidence,
        "prompts": found.prompts,
        "tokens": found.tokens,
        **({} if harm is None else harm.describe()),
        "tried": [[each.dial, each.measured] for each in tried],
        "decoding": {name: getattr(llm, name) for name in _DESCRIBED},
        "library version": __version__,
    }


def _set(llm: MaraLLM, option: str, value: float, record: dict[str, Any]) -> MaraLLM:
    """The LLM with the value, and with an agent that recommends it together with the options it was found with."""
    agent: Any = llm.agent
    recommended = {**agent.recommended_options, **{name: getattr(llm, name) for name in _RESULTING}}
    kept = {name: given for name, given in recommended.items() if given != getattr(DEFAULTS, name)}
    others = {name for name in DIALS.values() if name != option}
    kept = {name: given for name, given in kept.items() if name not in others} | {option: value}
    changed = agent.with_config(recommended_options=kept, calibration=record)
    return llm.model_copy(update={"agent": changed, option: value})
