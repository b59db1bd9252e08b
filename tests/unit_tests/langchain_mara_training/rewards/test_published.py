import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_mara_training.data.readers import Prompt
from langchain_mara_training.demo.corpus import preference_pairs
from langchain_mara_training.rewards.published import (
    BeaverReward,
    ScoreHeadReward,
    SequenceClassificationReward,
    UltraRMReward,
    ZiyaReward,
)
from langchain_mara_training.rewards.reward_model import RewardModel, conversation
from langchain_mara_training.rewards.weighted import WeightedRewards
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from langchain_mara.exceptions import CheckpointError, LoadingError, RewardError
from langchain_mara.loading.models import DEMO_MODEL_FOLDER

TOKENIZER = AutoTokenizer.from_pretrained(DEMO_MODEL_FOLDER)
BOS, EOS = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id
HEADS = {BeaverReward: "score_head", UltraRMReward: "regression_head", ZiyaReward: "value_head"}
CASES = pytest.mark.parametrize("kind", list(HEADS), ids=lambda kind: kind.__name__)
SIZES: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,
    "pad_token_id": 0,
}
PAIRS = preference_pairs("test", 0, 1)[:7]
PROMPTS = [pair.prompt for pair in PAIRS]
ANSWERS = [pair.rejected if i % 2 else pair.chosen for i, pair in enumerate(PAIRS)]


def backbone(**options: Any) -> LlamaModel:
    torch.manual_seed(0)
    return LlamaModel(LlamaConfig(**SIZES | options)).double().eval()


def with_head(model: LlamaModel, head: str, rows: int = 1, *, bias: bool = False) -> dict[str, Tensor]:
    """The tensors of a checkpoint: a backbone below `model.`, and a head."""
    torch.manual_seed(1)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors[f"{head}.weight"] = torch.randn(rows, model.config.hidden_size).double()
    if bias:
        tensors[f"{head}.bias"] = torch.randn(rows).double()
    return tensors


def write(
    folder: Path, model: LlamaModel, tensors: dict[str, Tensor], form: str = "safetensors", files: int = 1
) -> Path:
    model.config.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    suffix = ".safetensors" if form == "safetensors" else ".bin"
    stem = "model" if form == "safetensors" else "pytorch_model"
    names = [f"{stem}-{i + 1:05}-of-{files:05}{suffix}" for i in range(files)] if files > 1 else [stem + suffix]
    places = {key: names[i % files] for i, key in enumerate(tensors)}
    for name in names:
        part = {key: tensor.contiguous() for key, tensor in tensors.items() if places[key] == name}
        if form == "safetensors":
            save_file(part, folder / name, {"format": "pt"})
        else:
            torch.save(part, folder / name)
    if files > 1:
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def checkpoint(folder: Path, kind: type[ScoreHeadReward], **config: Any) -> tuple[Path, LlamaModel, dict[str, Tensor]]:
    model = backbone(**config)
    tensors = with_head(model, HEADS[kind])
    return write(folder, model, tensors), model, tensors


@torch.inference_mode()
def by_hand(model: LlamaModel, weight: Tensor, texts: list[str], *, eos: bool) -> list[float]:
    """One by one: the whole text through the backbone, the head on the last state."""
    rewards = []
    for text in texts:
        ids = [BOS, *TOKENIZER(text, add_special_tokens=False).input_ids, *([EOS] if eos else [])]
        state = model(torch.tensor([ids])).last_hidden_state[0, -1]
        rewards.append(float(weight[0].double() @ state))
    return rewards


def texts_of(kind: type[ScoreHeadReward], prompts: list[str], answers: list[str]) -> list[str]:
    template = {
        BeaverReward: "BEGINNING OF CONVERSATION: USER: {} ASSISTANT:{}",
        UltraRMReward: "Human: {}\n\nAssistant: {}",
        ZiyaReward: "Human:{}\n\nAssistant:{}",
    }[kind]
    return [template.format(*pair) for pair in zip(prompts, answers, strict=True)]


def expected(kind: type[ScoreHeadReward], model: LlamaModel, tensors: dict[str, Tensor]) -> list[float]:
    weight = tensors[f"{HEADS[kind]}.weight"]
    return by_hand(model, weight, texts_of(kind, PROMPTS, ANSWERS), eos=kind is not UltraRMReward)


def rewards_of(reward: RewardModel) -> list[float]:
    return reward(prompts=PROMPTS, completions=ANSWERS)


@CASES
@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("files", [1, 3])
def test_score_heads_agree_with_the_formula(kind: type[ScoreHeadReward], form: str, files: int, tmp_path: Path) -> None:
    model = backbone()
    tensors = with_head(model, HEADS[kind])
    reward = kind(write(tmp_path, model, tensors, form, files), device="cpu", batch_size=3)
    assert rewards_of(reward) == pytest.approx(expected(kind, model, tensors), rel=1e-9)


@CASES
def test_batches_agree_with_one_by_one(kind: type[ScoreHeadReward], tmp_path: Path) -> None:
    folder, _, _ = checkpoint(tmp_path, kind)
    at_once, singly = (rewards_of(kind(folder, device="cpu", batch_size=size)) for size in (16, 1))
    assert at_once == pytest.approx(singly, rel=1e-9)
    assert len({round(item, 6) for item in singly}) == len(PROMPTS)


@CASES
def test_messages_are_rewarded_as_their_text(kind: type[ScoreHeadReward], tmp_path: Path) -> None:
    folder, _, _ = checkpoint(tmp_path, kind)
    reward = kind(folder, device="cpu")
    prompts: list[Prompt] = [[{"role": "user", "content": text}] for text in PROMPTS]
    answers: list[Prompt] = [[{"role": "assistant", "content": text}] for text in ANSWERS]
    assert reward(prompts=prompts, completions=answers) == rewards_of(reward)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (
            BeaverReward,
            "BEGINNING OF CONVERSATION: USER: Be kind.\n\nHi. ASSISTANT:Hello.<|end|>USER: Why? ASSISTANT:So.",
        ),
        (UltraRMReward, "Human: Be kind.\n\nHi.\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: So."),
        (ZiyaReward, "Human:Be kind.\n\nHi.\n\nAssistant:Hello.\n\nHuman:Why?\n\nAssistant:So."),
    ],
)
def test_several_turns(kind: type[ScoreHeadReward], text: str, tmp_path: Path) -> None:
    folder, model, tensors = checkpoint(tmp_path, kind)
    turns = [("system", "Be kind."), ("user", "Hi."), ("assistant", "Hello."), ("user", "Why?")]
    prompt: list[dict[str, str]] = [{"role": role, "content": content} for role, content in turns]
    reward = kind(folder, device="cpu")
    assert reward.render(conversation(prompt, "So.")) == text
    found = reward(prompts=[prompt], completions=["So."])
    hand = by_hand(model, tensors[f"{HEADS[kind]}.weight"], [text], eos=kind is not UltraRMReward)
    assert found == pytest.approx(hand, rel=1e-9)


def test_text_is_taken_by_the_letter(tmp_path: Path) -> None:
    folder, _, _ = checkpoint(tmp_path, UltraRMReward)
    assert (
        UltraRMReward(folder, device="cpu").render(conversation("{eos} {}", "{0}"))
        == "Human: {eos} {}\n\nAssistant: {0}"
    )


def test_unknown_roles_are_refused(tmp_path: Path) -> None:
    reward = BeaverReward(checkpoint(tmp_path, BeaverReward)[0], device="cpu")
    with pytest.raises(RewardError, match="does not know the role 'tool'. Leave such messages out"):
        reward(prompts=[[{"role": "tool", "content": "4"}]], completions=["Four."])


def test_the_mean_of_several_heads_and_a_bias(tmp_path: Path) -> None:
    model = backbone()
    tensors = with_head(model, "value_head", rows=4, bias=True)
    hand = by_hand(
        model, tensors["value_head.weight"].mean(0, keepdim=True), texts_of(ZiyaReward, PROMPTS, ANSWERS), eos=True
    )
    bias = float(tensors["value_head.bias"].mean())
    found = rewards_of(ZiyaReward(write(tmp_path, model, tensors), device="cpu"))
    assert found == pytest.approx([item + bias for item in hand], rel=1e-9)


@pytest.mark.parametrize(
    ("kind", "normalize", "formula"),
    [
        ("reward", True, lambda score: (score - 2.0) / 3.0),
        ("cost", True, lambda score: score / 3.0),
        ("critic", True, lambda score: score),
        ("reward", False, lambda score: score),
    ],
)
@pytest.mark.parametrize("where", ["buffers", "config"])
def test_beaver_normalizes_as_its_configuration_says(
    kind: str, normalize: bool, formula: Any, where: str, tmp_path: Path
) -> None:
    moments = {"mean": [2.0], "var": [9.0]}
    model = backbone(score_type=kind, do_normalize=normalize, bias=False, **moments if where == "config" else {})
    tensors = with_head(model, "score_head")
    hand = expected(BeaverReward, model, tensors)
    if where == "buffers":
        buffers = {f"normalizer.{name}": torch.tensor(value) for name, value in moments.items()}
        tensors |= buffers | {"normalizer.count": torch.tensor([5])}
    found = rewards_of(BeaverReward(write(tmp_path, model, tensors), device="cpu"))
    assert found == pytest.approx([formula(item) for item in hand], rel=1e-6)


def test_reward_minus_cost(tmp_path: Path) -> None:
    reward, cost = (tmp_path / name for name in ("beaver-reward", "beaver-cost"))
    checkpoint(reward, BeaverReward)
    checkpoint(cost, BeaverReward, score_type="cost", initializer_range=0.3)
    both = WeightedRewards([BeaverReward(reward, device="cpu"), BeaverReward(cost, device="cpu")], [1.0, -1.0])
    table = both.each(PROMPTS, ANSWERS)
    assert list(table) == ["beaver-reward", "beaver-cost"]
    assert both(PROMPTS, ANSWERS) == pytest.approx(table["beaver-reward"] - table["beaver-cost"])


@CASES
def test_harmless_keys_are_left_out(kind: type[ScoreHeadReward], tmp_path: Path) -> None:
    model = backbone()
    tensors = with_head(model, HEADS[kind])
    more = {
        "lm_head.weight": torch.zeros(4, 4).double(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
    }
    found = rewards_of(kind(write(tmp_path, model, tensors | more), device="cpu"))
    assert found == pytest.approx(expected(kind, model, tensors), rel=1e-9)


def test_wrong_keys_are_refused_by_name(tmp_path: Path) -> None:
    model = backbone()
    good = with_head(model, "score_head")
    no_head = {key: tensor for key, tensor in good.items() if key != "score_head.weight"} | {"v.weight": torch.zeros(1)}
    lacking = {key: tensor for key, tensor in good.items() if "layers.1.mlp" not in key}
    for name, tensors, message in (
        ("head", no_head, r"has no score_head.weight; besides the backbone it holds v.weight. .* head=…"),
        ("lacking", lacking, r"lacks weights of a LlamaModel \(layers.1.mlp.down_proj.weight, .*Download it again"),
        (
            "more",
            good | {"adapter.weight": torch.zeros(1)},
            r"holds weights that BeaverReward does not use \(adapter",
        ),
        ("other", with_head(model, "regression_head"), r"no score_head.weight; .* it holds regression_head.weight"),
    ):
        with pytest.raises(CheckpointError, match=message):
            BeaverReward(write(tmp_path / name, model, tensors), device="cpu")


def test_the_head_by_another_name(tmp_path: Path) -> None:
    model = backbone()
    tensors = with_head(model, "v_head")
    found = rewards_of(ZiyaReward(write(tmp_path, model, tensors), head="v_head", device="cpu"))
    hand = by_hand(model, tensors["v_head.weight"], texts_of(ZiyaReward, PROMPTS, ANSWERS), eos=True)
    assert found == pytest.approx(hand, rel=1e-9)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "exploded",))

    model = backbone()
    tensors: dict[str, Any] = with_head(model, "score_head")
    folder = write(tmp_path / "model", model, tensors, "bin")
    torch.save(tensors | {"score_head.weight": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(LoadingError, match="Cannot load the reward model"):
        BeaverReward(folder, device="cpu")
    assert not (tmp_path / "exploded").exists()


def test_long_conversations_lose_their_beginning(tmp_path: Path) -> None:
    folder, model, tensors = checkpoint(tmp_path, BeaverReward)
    reward = BeaverReward(folder, device="cpu", max_length=12)
    model.requires_grad_(requires_grad=False)
    with pytest.warns(UserWarning, match="2 of 2 conversations are longer than the 12 tokens"):
        found = reward(prompts=PROMPTS[:2], completions=ANSWERS[:2])
    for answer, text in zip(found, texts_of(BeaverReward, PROMPTS[:2], ANSWERS[:2]), strict=True):
        ids = [BOS, *[*TOKENIZER(text, add_special_tokens=False).input_ids, EOS][-11:]]
        state = model(torch.tensor([ids])).last_hidden_state[0, -1]
        assert answer == pytest.approx(float(tensors["score_head.weight"][0] @ state), rel=1e-9)


def test_by_default_the_model_reads_what_it_was_made_for(tmp_path: Path) -> None:
    assert BeaverReward(checkpoint(tmp_path, BeaverReward)[0], device="cpu").max_length == 256


@pytest.mark.parametrize(("dtype", "kept"), [("bfloat16", torch.bfloat16), (torch.float32, torch.float32)])
def test_dtype(dtype: Any, kept: torch.dtype, tmp_path: Path) -> None:
    folder, model, tensors = checkpoint(tmp_path, UltraRMReward)
    reward = UltraRMReward(folder, device="cpu", dtype=dtype)
    assert reward.model.dtype is kept
    close = 1e-4 if kept is torch.float32 else 0.2
    assert rewards_of(reward) == pytest.approx(expected(UltraRMReward, model, tensors), abs=close * 32)


def test_float16_becomes_float32_on_the_cpu(tmp_path: Path) -> None:
    model = backbone().half()
    reward = UltraRMReward(write(tmp_path, model, with_head(model, "regression_head")), device="cpu")
    assert reward.model.dtype is torch.float32


def test_overflow_is_an_error(tmp_path: Path) -> None:
    folder, _, tensors = checkpoint(tmp_path, UltraRMReward)
    reward = UltraRMReward(folder, device="cpu")
    reward.weight = tensors["regression_head.weight"] * float("inf")
    with pytest.raises(RewardError, match="overflows in torch.float64. Load it with dtype="):
        rewards_of(reward)


def test_loading_errors(tmp_path: Path) -> None:
    folder, _, _ = checkpoint(tmp_path / "good", BeaverReward)
    with pytest.raises(LoadingError, match="There is no folder"):
        BeaverReward(tmp_path / "nothing")
    with pytest.raises(LoadingError, match="Cannot find or download the reward model org/nothing"):
        BeaverReward("org/nothing", local_files_only=True)
    with pytest.raises(LoadingError, match="no device 'cuda:99'"):
        BeaverReward(folder, device="cuda:99")
    with pytest.raises(LoadingError, match="no dtype 'float23'"):
        BeaverReward(folder, device="cpu", dtype="float23")
    (folder / "model.safetensors").unlink()
    with pytest.raises(LoadingError, match="Cannot load the reward model"):
        BeaverReward(folder, device="cpu")


def test_no_completions(tmp_path: Path) -> None:
    assert BeaverReward(checkpoint(tmp_path, BeaverReward)[0], device="cpu")(prompts=[], completions=[]) == []


def test_a_copy_shares_the_weights(tmp_path: Path) -> None:
    reward = BeaverReward(checkpoint(tmp_path, BeaverReward)[0], device="cpu")
    assert copy.deepcopy([reward])[0] is reward


def classifier(folder: Path, pad: int | None, template: bool = True, **options: Any) -> tuple[Path, PreTrainedModel]:
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(**SIZES | {"num_labels": 1, "pad_token_id": pad} | options))
    model = model.double().eval()
    model.save_pretrained(folder)
    return with_tokenizer(folder, template=template), model


def with_tokenizer(folder: Path, *, template: bool) -> Path:
    tokenizer = copy.deepcopy(TOKENIZER)
    if not template:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return folder


def as_messages() -> list[list[dict[str, str]]]:
    return [conversation(*pair) for pair in zip(PROMPTS, ANSWERS, strict=True)]


# The template ends an answer with <|end|>, so that a padding of <|end|> looks like the end of every conversation.
@pytest.mark.parametrize("pad", [0, None, EOS, -1], ids=["pad", "none", "eos", "out-of-range"])
@pytest.mark.parametrize("size", [1, 3, 16])
def test_classifier_agrees_with_the_formula(pad: int | None, size: int, tmp_path: Path) -> None:
    folder, model = classifier(tmp_path, pad)
    hand = []
    model.requires_grad_(requires_grad=False)
    for messages in as_messages():
        text = TOKENIZER.apply_chat_template(messages, tokenize=False)
        ids = TOKENIZER(text, add_special_tokens=False).input_ids
        assert ids.count(BOS) == 1
        states = model.model(torch.tensor([ids])).last_hidden_state[0]
        hand.append(float(states[-2 if pad == EOS else -1] @ model.score.weight[0]))
    reward = SequenceClassificationReward(folder, device="cpu", batch_size=size)
    assert rewards_of(reward) == pytest.approx(hand, rel=1e-9)
    assert rewards_of(reward) == pytest.approx(hand, rel=1e-9)


def test_a_padding_that_no_conversation_ends_with(tmp_path: Path) -> None:
    folder, model = classifier(tmp_path, None)
    (folder / "chat_template.jinja").write_text("{{ messages[1]['content'] }}<|pad|>")
    model.requires_grad_(requires_grad=False)
    hand = []
    for answer in ANSWERS:
        ids = [*TOKENIZER(answer, add_special_tokens=False).input_ids, 0]
        hand.append(float(model.model(torch.tensor([ids])).last_hidden_state[0, -1] @ model.score.weight[0]))
    assert rewards_of(SequenceClassificationReward(folder, device="cpu")) == pytest.approx(hand, rel=1e-9)


@pytest.mark.parametrize("size", [1, 3, 16])
def test_pairs_without_a_template(size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = DebertaV2Config(
        **SIZES, num_labels=1, type_vocab_size=0, relative_attention=True, pos_att_type=["p2c", "c2p"]
    )
    model = DebertaV2ForSequenceClassification(config).double().eval()
    model.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(with_tokenizer(tmp_path, template=False))
    with torch.inference_mode():
        hand = [
            model(**tokenizer(*pair, return_tensors="pt")).logits.item() for pair in zip(PROMPTS, ANSWERS, strict=True)
        ]
    reward = SequenceClassificationReward(tmp_path, device="cpu", batch_size=size)
    assert rewards_of(reward) == pytest.approx(hand, rel=1e-6)
    prompt = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert reward(prompts=[prompt], completions=["d"]) == reward(prompts=["a\n\nb\n\nc"], completions=["d"])


def test_classifier_refuses(tmp_path: Path) -> None:
    folder, _ = classifier(tmp_path / "two", 0, num_labels=2)
    with pytest.raises(LoadingError, match="has 2 outputs, but a reward model has one"):
        SequenceClassificationReward(folder, device="cpu")
    LlamaForCausalLM(LlamaConfig(**SIZES, num_labels=1)).save_pretrained(tmp_path / "causal")
    with pytest.raises(CheckpointError, match=r"lacks weights of a LlamaForSequenceClassification \(score.weight\)"):
        SequenceClassificationReward(with_tokenizer(tmp_path / "causal", template=True), device="cpu")
    model = backbone(num_labels=1)
    tensors = with_head(model, "score") | {"gating.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"does not use \(gating.weight\)"):
        SequenceClassificationReward(write(tmp_path / "more", model, tensors), device="cpu")


def test_a_template_that_refuses(tmp_path: Path) -> None:
    folder, _ = classifier(tmp_path, 0)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('only one turn') }}")
    reward = SequenceClassificationReward(folder, device="cpu")
    with pytest.raises(RewardError, match="refuses messages with the roles user, assistant: only one turn"):
        reward(prompts=["Hi."], completions=["Hello."])


def test_progress_is_shown_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    folder, _ = classifier(tmp_path / "small-reward", 0)
    quiet, loud = (SequenceClassificationReward(folder, device="cpu", verbose=on) for on in (False, True))
    capsys.readouterr()
    first = rewards_of(quiet)
    assert capsys.readouterr() == ("", "")
    assert rewards_of(loud) == first
    assert "small-reward" in capsys.readouterr().err


def test_loading_says_nothing_of_the_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    BeaverReward(checkpoint(tmp_path, BeaverReward)[0], device="cpu")
    assert "score_head" not in caplog.text


def adapter(folder: Path, **options: Any) -> tuple[Path, PreTrainedModel]:
    """A LoRA reward whose base is a causal language model without a score head."""
    torch.manual_seed(0)
    base = with_tokenizer(folder / "base", template=True)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(base)
    model = LlamaForSequenceClassification.from_pretrained(base, num_labels=1)
    settings = {"task_type": TaskType.SEQ_CLS, "r": 2, "target_modules": ["q_proj"], "init_lora_weights": False}
    adapted = get_peft_model(model, LoraConfig(**settings | options))
    adapted.save_pretrained(folder / "adapter")
    return with_tokenizer(folder / "adapter", template=True), adapted.eval()


def test_an_adapter_brings_its_score_head(tmp_path: Path) -> None:
    folder, model = adapter(tmp_path)
    reward = SequenceClassificationReward(folder, device="cpu")
    with torch.inference_mode():
        hand = [
            model(input_ids=torch.tensor([reward.encode(messages)["input_ids"]])).logits.item()
            for messages in as_messages()
        ]
    assert rewards_of(reward) == pytest.approx(hand, rel=1e-4)
    with pytest.raises(CheckpointError, match="is a PEFT adapter, which BeaverReward does not load"):
        BeaverReward(folder, device="cpu")


def test_an_adapter_without_a_head_is_refused(tmp_path: Path) -> None:
    folder, _ = adapter(tmp_path)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor for name, tensor in tensors.items() if "score" not in name}, file)
    with pytest.raises(CheckpointError, match=r"holds no score head \(score or classifier\), .* would be random"):
        SequenceClassificationReward(folder, device="cpu")
    save_file({**tensors, "base_model.model.score.weight": torch.zeros(2, 32)}, file)
    with pytest.raises(LoadingError, match="has 2 outputs, but a reward model has one"):
        SequenceClassificationReward(folder, device="cpu")
    file.write_bytes(b"nothing")
    with pytest.raises(LoadingError, match="Cannot read .*adapter_model.safetensors"):
        SequenceClassificationReward(folder, device="cpu")
    file.unlink()
    with pytest.raises(LoadingError, match="has no adapter_model.safetensors, and pickled weights are not read"):
        SequenceClassificationReward(folder, device="cpu")


def roberta(folder: Path, positions: int) -> Path:
    torch.manual_seed(0)
    config = RobertaConfig(**SIZES | {"max_position_embeddings": positions, "pad_token_id": 1, "num_labels": 1})
    RobertaForSequenceClassification(config).eval().save_pretrained(folder)
    return with_tokenizer(folder, template=False)


def test_positions_that_begin_after_the_padding(tmp_path: Path) -> None:
    reward = SequenceClassificationReward(roberta(tmp_path, 34), device="cpu")
    assert reward.max_length == 32
    with pytest.warns(UserWarning, match="longer than the 32 tokens"):
        (found,) = reward(prompts=["How " * 100], completions=["Just do it."])
    assert found
    assert SequenceClassificationReward(tmp_path, device="cpu", max_length=100).max_length == 32


def test_a_model_that_fails_is_refused_on_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = roberta(tmp_path, 34)
    monkeypatch.setattr("langchain_mara_training.rewards.reward_model.learned_positions", lambda _: 34)
    with pytest.raises(LoadingError, match="fails on a text of 34 tokens.*max_length=…"):
        SequenceClassificationReward(folder, device="cpu")
