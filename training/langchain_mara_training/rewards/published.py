"""Adapters for published reward models: sequence classifiers, PKU's beaver, UltraRM and Ziya."""

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
from langchain_mara.text.control_tokens import encode_marked, mark_messages
from langchain_mara.text.own_tokenizer import own
from langchain_mara_training.data.readers import Message
from langchain_mara_training.rewards.adapter_loading import is_adapter, load_adapter
from langchain_mara_training.rewards.checkpoint_loading import load_weights, read_tensors, refuse
from langchain_mara_training.rewards.reward_model import Encoding, RewardModel

# Weights of other heads on the same backbone, and buffers that older versions of transformers saved.
_HARMLESS = re.compile(r"lm_head\.weight|.*rotary_emb\.inv_freq")
_EPSILON = 1e-8


class SequenceClassificationReward(RewardModel):
    """A sequence classifier with one output, such as Skywork, FsfairX or OpenAssistant's DeBERTa.

    If the tokenizer has a chat template, it renders the conversation, and no special tokens are added. Without one
    the model reads a pair of texts: the messages before the answer, joined by blank lines, and the answer.

    Decoders are scored as in transformers: at the last token that is not the padding token of their configuration,
    or at the last token if the configuration names no padding.

    Tested on tiny checkpoints of these architectures, not on the published weights.

    Example:
        >>> reward = SequenceClassificationReward("Skywork/Skywork-Reward-Llama-3.1-8B-v0.2")  # doctest: +SKIP
        >>> reward(prompts=["Hi."], completions=["Hello!"])  # doctest: +SKIP
    """

    def encode(self, messages: list[Message]) -> Encoding:
        """The tokenized conversation, which ends with the answer.

        Raises:
            RewardError: If the chat template refuses the conversation.
        """
        if self.tokenizer.chat_template is None:
            return self._pair(messages)
        marked, _, mark = mark_messages(self.tokenizer, messages)
        try:
            text = str(self.tokenizer.apply_chat_template(marked, tokenize=False))
        except jinja2.TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise RewardError(
                f"The chat template of {self.name} refuses messages with the roles {roles}: {error}. "
                "Bring the prompts into a form that it accepts."
            ) from None
        return {"input_ids": encode_marked(self.tokenizer, text, mark)}

    def score(self, batch: dict[str, Tensor]) -> Tensor:
        """(conversations,) rewards of a batch: the classifier's only logit."""
        logits: Tensor = self.model(**batch).logits
        return logits[:, 0]

    def _load(self, folder: Path, hub: dict[str, Any], **options: Any) -> None:
        if is_adapter(folder):
            self.model, unexpected = load_adapter(folder, hub, **options)
        else:
            self.model, unexpected = load_weights(AutoModelForSequenceClassification, folder, **options)
        if self.model.config.num_labels != 1:
            raise LoadingError(
                f"{self.name} has {self.model.config.num_labels} outputs, but a reward model has one. "
                "Wrap it in a function of your own that chooses the output to use as the reward."
            )
        refuse((key for key in unexpected if not _HARMLESS.fullmatch(key)), folder, type(self.model).__name__)
        config = self.model.config.get_text_config()
        self._pad_token_id = config.pad_token_id if config.pad_token_id in range(config.vocab_size) else None

    def _pair(self, messages: list[Message]) -> Encoding:
        question = "\n\n".join(message["content"] for message in messages[:-1])
        # The texts themselves hold no special tokens; the tokenizer adds those between them.
        encoding = own(self.tokenizer)(question, messages[-1]["content"], split_special_tokens=True)
        return {key: row for key, row in encoding.items() if key != "attention_mask"}

    def _padding(self, encodings: Sequence[Encoding]) -> int:
        """The configured padding token, or else a token that occurs nowhere in the batch.

        A decoder finds the last token of a conversation by looking for the last one that is not padding.
        """
        if self._pad_token_id is not None:
            return int(self._pad_token_id)
        used = {token for encoding in encodings for token in encoding["input_ids"]}
        unused = next(token for token in range(len(used) + 1) if token not in used)
        self.model.config.get_text_config().pad_token_id = unused
        return unused


class ScoreHeadReward(RewardModel):
    """A Llama backbone (`model.*`) with a prompt template and a linear head on the last token's state.

    Args:
        model_id: Hub id or folder of the checkpoint.
        head: Name of the head's weights in the checkpoint, if it is not the usual one.
        options: Further arguments of `RewardModel`.
    """

    usual_head: ClassVar[str]
    buffers: ClassVar[tuple[str, ...]] = ()
    opening: ClassVar[str] = ""
    user_turn: ClassVar[str]
    """A user's turn and the opening of the answer; `{}` is the message."""
    end_of_answer: ClassVar[str] = ""
    """Separator between an answer and the next turn; `{eos}` is the text of the end-of-sequence token."""
    ends_with_eos: ClassVar[bool] = False

    def __init__(self, model_id: str | Path, *, head: str | None = None, **options: Any) -> None:
        self.head = head or self.usual_head
        super().__init__(model_id, **options)

    def encode(self, messages: list[Message]) -> Encoding:
        """The tokenized conversation: beginning of sequence, text, and end of sequence if the model expects one."""
        marked, _, mark = mark_messages(self.tokenizer, messages)
        ids = encode_marked(self.tokenizer, self.render(marked), mark)
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        return {"input_ids": [*([] if bos is None else [bos]), *ids, *([eos] if self.ends_with_eos else [])]}

    def render(self, messages: Iterable[Message]) -> str:
        """The text of a conversation in the model's template. System messages are put first in the user's turn.

        Raises:
            RewardError: If there are roles other than system, user and assistant.
        """
        text = self.opening
        separator = self.end_of_answer.format(eos=self.tokenizer.eos_token)
        for is_answer, turn in groupby(messages, key=self._is_answer):
            content = "\n\n".join(message["content"] for message in turn)
            text += content + separator if is_answer else self.user_turn.format(content)
        return text.removesuffix(separator)

    def score(self, batch: dict[str, Tensor]) -> Tensor:
        """(conversations,) rewards of a batch: the head applied to the last token's state, in float32 or higher."""
        states: Tensor = self.model(**batch).last_hidden_state
        last = batch["attention_mask"].sum(1) - 1
        states = states[torch.arange(len(last), device=states.device), last.to(states.device)]
        states = states.to(torch.promote_types(states.dtype, torch.float32))
        bias = None if self.bias is None else self.bias.to(states)
        return linear(states, self.weight.to(states), bias).mean(1)

    def _load(self, folder: Path, hub: dict[str, Any], **options: Any) -> None:  # noqa: ARG002 - adapters only
        if is_adapter(folder):
            raise CheckpointError(
                f"{folder} is a PEFT adapter, which {type(self).__name__} does not load. Merge it into its base with "
                "peft (merge_and_unload) and save the whole model."
            )
        self.model, unexpected = load_weights(LlamaModel, folder, **options)
        head_keys = {f"{self.head}.weight", f"{self.head}.bias", *self.buffers}
        unused = {key for key in unexpected - head_keys if not _HARMLESS.fullmatch(key)}
        self.tensors = read_tensors(folder, head_keys)
        weight = self.tensors.get(f"{self.head}.weight")
        if weight is None:
            raise CheckpointError(
                f"{folder} has no {self.head}.weight; besides the backbone it holds "
                f"{', '.join(sorted(unused)) or 'nothing'}. Give a checkpoint of {type(self).__name__}, or the name of "
                "its head: head=…."
            )
        refuse(unused, folder, type(self).__name__)
        self.weight, self.bias = weight, self.tensors.get(f"{self.head}.bias")

    def _is_answer(self, message: Message) -> bool:
        if message["role"] not in {"system", "user", "assistant"}:
            raise RewardError(
                f"{self.name} does not know the role {message['role']!r}. Leave such messages out, or give them a role "
                "that it knows: system, user or assistant."
            )
        return bool(message["role"] == "assistant")


class BeaverReward(ScoreHeadReward):
    """PKU-Alignment's beaver-7b-v1.0-reward and -cost, without their package.

    The cost model has the same form; give it a negative weight. The score is taken at the end-of-sequence token after
    the answer. If the configuration sets `do_normalize`, scores are normalized as in safe-rlhf: by mean and standard
    deviation for `score_type` reward, by standard deviation for cost, and not at all for critic.

    Sources: copies of safe-rlhf's `score_model` (class, keys `model.*` and `score_head.weight`, buffers
    `normalizer.*`, normalization) and the model card (template). That training texts end with the end-of-sequence
    token is from memory of safe-rlhf's data sets; the card's example has none. Not tested on the published weights.

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
        """(conversations,) rewards of a batch, normalized if the configuration says so."""
        scores: Tensor = super().score(batch)
        config: Any = self.model.config
        kind = getattr(config, "score_type", "reward")
        if not getattr(config, "do_normalize", False) or kind == "critic":
            return scores
        mean, deviation = self._moment("mean", 0.0), self._moment("var", 1.0) ** 0.5
        normalized: Tensor = (scores - mean if kind == "reward" else scores) / (deviation + _EPSILON)
        return normalized

    def _moment(self, name: str, default: float) -> float:
        """Mean or variance of the scores: from the checkpoint, the configuration, or the default."""
        stored = self.tensors.get(f"normalizer.{name}")
        values = getattr(self.model.config, name, None) if stored is None else stored
        return default if values is None else float(torch.as_tensor(values, dtype=torch.float64).reshape(-1)[0])


class UltraRMReward(ScoreHeadReward):
    """openbmb/UltraRM-13b. The score is taken at the last token of the answer.

    Source: copies of the model card's code (keys `model.*` and `regression_head.weight`, last token, template).
    Not tested on the published weights; turns after the first are an assumption.
    """

    usual_head = "regression_head"
    user_turn = "Human: {}\n\nAssistant: "
    end_of_answer = "\n\n"


class ZiyaReward(ScoreHeadReward):
    """IDEA-CCNL/Ziya-LLaMA-7B-Reward. The score is taken at the end-of-sequence token after the answer.

    If the head has several rows (one for each part of a model trained in parallel), their mean is the reward.

    Source: the model card (template, end of sequence). Its modeling code could not be found: the keys `model.*` and
    `value_head.weight`, with or without bias, are those of a reward model with the same name and class elsewhere. Pass
    `head` if your checkpoint names it differently. Not tested on the published weights; turns after the first are an
    assumption.
    """

    usual_head = "value_head"
    user_turn = "Human:{}\n\nAssistant:"
    end_of_answer = "\n\n"
    ends_with_eos = True
