"""Adapters of published reward models: sequence classifiers, PKU's beaver, UltraRM and Ziya."""

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import jinja2
import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import AutoModelForSequenceClassification, LlamaModel

from langchain_mara.exceptions import CheckpointError, LoadingError, RewardError
from langchain_mara_training.data.readers import Message
from langchain_mara_training.rewards.checkpoint_loading import load_weights, read_tensors, refuse
from langchain_mara_training.rewards.reward_model import Encoding, RewardModel

# Weights of other uses of the same backbone, and buffers that older versions of transformers saved.
_HARMLESS = re.compile(r"lm_head\.weight|.*rotary_emb\.inv_freq")
_EPSILON = 1e-8


class SequenceClassificationReward(RewardModel):
    """A sequence classifier with one output: Skywork, FsfairX, OpenAssistant's DeBERTa and their like.

    With a chat template the conversation is rendered by it, and no special tokens are added. Without one the model
    reads a pair of texts: the messages before the answer, joined by blank lines, and the answer.

    Decoders are scored at the last token that is not their configuration's padding, as transformers does; where the
    configuration names none, at the last token.

    Verified on tiny checkpoints of these architectures, not on the published weights.

    Example:
        >>> reward = SequenceClassificationReward("Skywork/Skywork-Reward-Llama-3.1-8B-v0.2")  # doctest: +SKIP
        >>> reward(prompts=["Hi."], completions=["Hello!"])  # doctest: +SKIP
    """

    def encode(self, messages: list[Message]) -> Encoding:
        """Tokens of a conversation that ends with the answer.

        Raises:
            RewardError: If the chat template refuses it.
        """
        if self.tokenizer.chat_template is None:
            return self._pair(messages)
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        except jinja2.TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise RewardError(
                f"The chat template of {self.name} refuses messages of the roles {roles}: {error}. "
                "Bring the prompts into the form it takes."
            ) from None
        return {"input_ids": self.tokenizer(text, add_special_tokens=False).input_ids}

    def score(self, batch: dict[str, Tensor]) -> Tensor:
        """Rewards (rows,) of a batch: the classifier's only logit."""
        logits: Tensor = self.model(**batch).logits
        return logits[:, 0]

    def _load(self, folder: Path, **options: Any) -> None:
        self.model, unexpected = load_weights(AutoModelForSequenceClassification, folder, **options)
        if self.model.config.num_labels != 1:
            raise LoadingError(
                f"{self.name} has {self.model.config.num_labels} outputs, and a reward model has one. "
                "Wrap it in a function of your own that says which of them is the reward."
            )
        refuse((key for key in unexpected if not _HARMLESS.fullmatch(key)), folder, type(self.model).__name__)
        config = self.model.config.get_text_config()
        self._configured = config.pad_token_id if config.pad_token_id in range(config.vocab_size) else None

    def _pair(self, messages: list[Message]) -> Encoding:
        question = "\n\n".join(message["content"] for message in messages[:-1])
        encoding = self.tokenizer(question, messages[-1]["content"])
        return {key: row for key, row in encoding.items() if key != "attention_mask"}

    def _padding(self, encodings: Sequence[Encoding]) -> int:
        """The configured token, or else one that does not occur: a decoder looks for the last other one."""
        if self._configured is not None:
            return int(self._configured)
        used = {token for one in encodings for token in one["input_ids"]}
        free = next(token for token in range(len(used) + 1) if token not in used)
        self.model.config.get_text_config().pad_token_id = free
        return free


class ScoreHeadReward(RewardModel):
    """A Llama backbone (`model.*`) with a linear head on the state of the last token, and a prompt template.

    Args:
        model_id: Hub id or folder of the checkpoint.
        head: Name of the head's weights in the checkpoint, where it is not the usual one.
        options: As in `RewardModel`.
    """

    usual_head: ClassVar[str]
    buffers: ClassVar[tuple[str, ...]] = ()
    opening: ClassVar[str] = ""
    user_turn: ClassVar[str]
    """A user's turn and what opens the answer; `{}` is the message."""
    end_of_answer: ClassVar[str] = ""
    """What parts an answer from the next turn; `{eos}` is the token's text."""
    ends_with_eos: ClassVar[bool] = False

    def __init__(self, model_id: str | Path, *, head: str | None = None, **options: Any) -> None:
        self.head = head or self.usual_head
        super().__init__(model_id, **options)

    def encode(self, messages: list[Message]) -> Encoding:
        """Tokens of a conversation that ends with the answer: beginning of sequence, text, and the end where due."""
        ids = self.tokenizer(self.render(messages), add_special_tokens=False).input_ids
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        before = [] if begin is None else [begin]
        return {"input_ids": [*before, *ids, *([end] if self.ends_with_eos else [])]}

    def render(self, messages: Iterable[Message]) -> str:
        """A conversation in the model's template; system messages stand at the head of the user's turn.

        Raises:
            RewardError: If there are roles other than system, user and assistant.
        """
        text = self.opening
        between = self.end_of_answer.format(eos=self.tokenizer.eos_token)
        for is_answer, group in groupby(messages, key=self._is_answer):
            content = "\n\n".join(message["content"] for message in group)
            text += content + between if is_answer else self.user_turn.format(content)
        return text.removesuffix(between)

    def score(self, batch: dict[str, Tensor]) -> Tensor:
        """Rewards (rows,) of a batch: the head on the last token's state, in float32 at least."""
        states: Tensor = self.model(**batch).last_hidden_state
        last = batch["attention_mask"].sum(1) - 1
        states = states[torch.arange(len(last), device=states.device), last.to(states.device)]
        states = states.to(torch.promote_types(states.dtype, torch.float32))
        bias = None if self.bias is None else self.bias.to(states)
        return linear(states, self.weight.to(states), bias).mean(1)

    def _load(self, folder: Path, **options: Any) -> None:
        self.model, unexpected = load_weights(LlamaModel, folder, **options)
        own = {f"{self.head}.weight", f"{self.head}.bias", *self.buffers}
        rest = {key for key in unexpected - own if not _HARMLESS.fullmatch(key)}
        self.tensors = read_tensors(folder, own)
        weight = self.tensors.get(f"{self.head}.weight")
        if weight is None:
            raise CheckpointError(
                f"{folder} has no {self.head}.weight; beside the backbone it holds "
                f"{', '.join(sorted(rest)) or 'nothing'}. Give a checkpoint of {type(self).__name__}, or the name of "
                "its head: head=…."
            )
        refuse(rest, folder, type(self).__name__)
        self.weight, self.bias = weight, self.tensors.get(f"{self.head}.bias")

    def _is_answer(self, message: Message) -> bool:
        if message["role"] not in {"system", "user", "assistant"}:
            raise RewardError(
                f"{self.name} knows no role {message['role']!r}. Leave such messages out, or give them a role that it "
                "knows: system, user or assistant."
            )
        return message["role"] == "assistant"


class BeaverReward(ScoreHeadReward):
    """PKU-Alignment's beaver-7b-v1.0-reward and -cost, without their package.

    The cost model is the same: give it a negative weight. The score is taken at the end of sequence that follows the
    answer. Where the configuration says `do_normalize`, scores are normalized as safe-rlhf does: by mean and deviation
    (`score_type` reward), by deviation (cost) or not at all.

    Relied upon: copies of safe-rlhf's `score_model` (class, keys `model.*` and `score_head.weight`, buffers
    `normalizer.*`, normalization) and the model card (template). That training texts end with the end of sequence is
    from memory of safe-rlhf's data sets; the card's example has none. Not verified on the published weights.

    Example:
        >>> reward = BeaverReward("PKU-Alignment/beaver-7b-v1.0-reward")  # doctest: +SKIP
        >>> cost = BeaverReward("PKU-Alignment/beaver-7b-v1.0-cost")  # doctest: +SKIP
        >>> rewards = WeightedRewards([reward, cost], [1, -1])  # doctest: +SKIP
    """

    usual_head = "score_head"
    buffers = ("normalizer.mean", "normalizer.var", "normalizer.count")
    opening = "BEGINNING OF CONVERSATION: "
    user_turn = "USER: {} ASSISTANT:"
    end_of_answer = "{eos}"
    ends_with_eos = True

    def score(self, batch: dict[str, Tensor]) -> Tensor:
        """Rewards (rows,) of a batch, normalized where the configuration says so."""
        scores: Tensor = super().score(batch)
        config: Any = self.model.config
        kind = getattr(config, "score_type", "reward")
        if not getattr(config, "do_normalize", False) or kind == "critic":
            return scores
        mean, deviation = self._moment("mean", 0.0), self._moment("var", 1.0) ** 0.5
        normalized: Tensor = (scores - mean if kind == "reward" else scores) / (deviation + _EPSILON)
        return normalized

    def _moment(self, name: str, usual: float) -> float:
        kept = self.tensors.get(f"normalizer.{name}")
        values = getattr(self.model.config, name, None) if kept is None else kept
        return usual if values is None else float(torch.as_tensor(values, dtype=torch.float64).reshape(-1)[0])


class UltraRMReward(ScoreHeadReward):
    """openbmb/UltraRM-13b. The score is taken at the last token of the answer.

    Relied upon: copies of the model card's code (keys `model.*` and `regression_head.weight`, last token, template).
    Not verified on the published weights; turns after the first are an assumption.
    """

    usual_head = "regression_head"
    user_turn = "Human: {}\n\nAssistant: "
    end_of_answer = "\n\n"


class ZiyaReward(ScoreHeadReward):
    """IDEA-CCNL/Ziya-LLaMA-7B-Reward. The score is taken at the end of sequence that follows the answer.

    A head with several rows (one for each part of a model trained in parallel) gives their mean.

    Relied upon: the model card (template, end of sequence). Its modelling code was not to be found: the keys `model.*`
    and `value_head.weight`, with or without bias, are those of a reward model of the same name and class elsewhere.
    Not verified on the published weights; `head` takes another name, and turns after the first are an assumption.
    """

    usual_head = "value_head"
    user_turn = "Human:{}\n\nAssistant:"
    end_of_answer = "\n\n"
    ends_with_eos = True
