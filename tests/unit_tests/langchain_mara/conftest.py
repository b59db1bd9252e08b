"""A tiny real tokenizer of each decoding kind, a tiny model saved with it, and an LLM made of both."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from families import repeating_model, tiny_agent, tiny_model
from gguf_files import skip_without_llama_cpp, write_gguf
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from langchain_mara import options
from langchain_mara.agents.agent import MaraAgent
from langchain_mara.llms import MaraLLM
from langchain_mara.policy.llama_cpp.model import LlamaCppModel
from langchain_mara.policy.llama_cpp.settings import LlamaCppSettings

VOCABULARY = 97
SPECIALS = ["<s>", "</s>", "<|user|>", "<|model|>", "<|system|>"]
CHARACTERS = "abcdefghijklmnopqrstuvwxyz .,!?'\néñ€😀"
PAIRS = "th he in er an re nd at on nt ha es st en ed to it ou ea hi is or ti as te et ng of al de se le sa si ar ve ra"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|model|>{% endif %}"
)


def _byte_symbols(text: str) -> list[str]:
    """The byte-level alphabet's symbols of a text, one per byte, each once and in order."""
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return list(dict.fromkeys("".join(piece for piece, _ in pieces)))


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[[], PreTrainedTokenizerFast]:
    """Builds byte-level BPE tokenizers of exactly the tiny models' vocabulary; free to be changed."""

    def make() -> PreTrainedTokenizerFast:
        symbols = [*SPECIALS, *_byte_symbols(CHARACTERS)]
        pairs = PAIRS.split()
        merged = [*pairs, *("Ġ" + pair for pair in pairs)][: VOCABULARY - len(symbols)]
        rules = [(pair[0], pair[1]) if len(pair) == 2 else ("Ġ", pair[1:]) for pair in merged]
        vocabulary = {symbol: i for i, symbol in enumerate([*symbols, *merged])}
        tokenizer = Tokenizer(BPE(vocabulary, rules))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return _wrapped(tokenizer)

    return make


@pytest.fixture(autouse=True)
def forgotten_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings that come once in a process come once in each test."""
    monkeypatch.setattr(options, "_told", set())


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer: Callable[[], PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    """The byte-level tokenizer that the tests share."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of Llama 2's and Mistral's kind: `▁` for spaces, byte fallback, first space stripped."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in "é€😀".encode()]
    letters = [*"▁abcdef.", "▁a", "▁b", "ab", "cd"]
    vocabulary = {symbol: i for i, symbol in enumerate(dict.fromkeys([*SPECIALS, *byte_tokens, *letters]))}
    merges = [("▁", "a"), ("▁", "b"), ("a", "b"), ("c", "d")]
    tokenizer = Tokenizer(BPE(vocabulary, merges, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrapped(tokenizer)


@pytest.fixture(scope="session")
def model() -> PreTrainedModel:
    """A tiny Llama in float64."""
    return tiny_model("llama-3")


@pytest.fixture(scope="session")
def agent() -> MaraAgent:
    """An agent that accepts sometimes."""
    return tiny_agent(seed=3)


@pytest.fixture(scope="session")
def model_folder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny model and its tokenizer as `save_pretrained` writes them."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def agent_folder(agent: MaraAgent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("saved") / "agent"
    agent.save_pretrained(folder)
    return folder


@pytest.fixture
def transformers_llm(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, agent: MaraAgent) -> MaraLLM:
    """An LLM that takes a few milliseconds per answer."""
    return MaraLLM(model=model, tokenizer=tokenizer, agent=agent, max_new_tokens=16)


@pytest.fixture
def llm(transformers_llm: MaraLLM) -> MaraLLM:
    """The LLM that most tests run; a module may run another one, or several."""
    return transformers_llm


@pytest.fixture
def agent_copy(agent_folder: Path, tmp_path: Path) -> Path:
    """A copy of the saved agent, free to be damaged."""
    return Path(shutil.copytree(agent_folder, tmp_path / "agent"))


@pytest.fixture
def save_pth(tmp_path: Path, agent: MaraAgent) -> Callable[..., Path]:
    """Writes a reference checkpoint of the agent's weights, with some of them replaced."""

    def save(**changes: Any) -> Path:
        state = {**agent.state_dict(), **{name.replace("__", "."): value for name, value in changes.items()}}
        torch.save({name: value for name, value in state.items() if value is not None}, tmp_path / "actor.pth")
        return tmp_path / "actor.pth"

    return save


@pytest.fixture(scope="session")
def reference() -> Callable[[str], PreTrainedModel]:
    """The tiny model of a family, in float64; `repeating` is a Llama whose answers repeat."""
    return cache(lambda family: repeating_model() if family == "repeating" else tiny_model(family))


@pytest.fixture(scope="session")
def gguf_file(
    reference: Callable[[str], PreTrainedModel],
    make_tokenizer: Callable[[], PreTrainedTokenizerFast],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """Writes the tiny model of a family as a GGUF file in float32, once."""
    skip_without_llama_cpp()
    folder = tmp_path_factory.mktemp("gguf")
    return cache(lambda family: write_gguf(reference(family), make_tokenizer(), folder / f"{family}.gguf"))


@pytest.fixture(scope="session")
def loaded(gguf_file: Callable[[str], Path]) -> Callable[..., LlamaCppModel]:
    """Loads the tiny model of a family with llama.cpp, once."""
    return cache(lambda family, cells=2048: LlamaCppModel(gguf_file(family), LlamaCppSettings(cells, n_threads=1)))


@pytest.fixture
def gguf_llm(gguf_file: Callable[[str], Path], agent: MaraAgent) -> MaraLLM:
    """The same model as that of `llm`, from a GGUF file."""
    return MaraLLM.from_gguf(gguf_file("llama-3"), agent=agent, n_ctx=2048, n_threads=1, max_new_tokens=16)
