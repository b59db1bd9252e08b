"""Errors that this library raises. Each message names the cause and the repair."""


class MaraError(Exception):
    """Base class of all errors that this library raises."""


class OptionsError(MaraError, ValueError):
    """A decoding option is out of range, unknown, or contradicts another."""


class PromptError(MaraError, ValueError):
    """A prompt cannot be decoded: empty, or longer than the policy model's context."""


class CheckpointError(MaraError, ValueError):
    """An agent's checkpoint is missing, truncated, or not a MARA agent."""


class UnsupportedModelError(MaraError, ValueError):
    """The policy model's architecture cannot evaluate siblings in one pass."""


class AgentMismatchError(MaraError, ValueError):
    """The agent reads states of a different size than the policy model produces, or answers in another shape."""


class LogitsProcessorError(MaraError, ValueError):
    """A logits processor returned something else than the scores of all tokens."""


class GrammarError(MaraError, ValueError):
    """A schema, regular expression or grammar is wrong, or cannot be enforced."""


class NonFiniteError(MaraError, ArithmeticError):
    """States, logits or accept probabilities are NaN or infinite, so there is no answer."""


class LoadingError(MaraError, ValueError):
    """A model, tokenizer or device cannot be used."""


class QueueFullError(MaraError, RuntimeError):
    """Too many requests are waiting for a loaded model already."""


class InterpreterExitError(MaraError, RuntimeError):
    """The interpreter exits, so the answer is not decoded to its end."""


class DataError(MaraError, ValueError):
    """Training data cannot be read, or lacks what the job needs."""


class RewardError(MaraError, ValueError):
    """A reward function failed, or did not return one score for each completion."""


class TrainingError(MaraError, RuntimeError):
    """A training job cannot continue, because of a non-finite loss or a folder that belongs to another job."""
