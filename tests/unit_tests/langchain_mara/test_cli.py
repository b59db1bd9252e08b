"""The `mara` command: what it prints is what the library answers, and errors are one sentence."""

import json
from pathlib import Path

import pytest
import torch
from families import tiny_agent
from langchain_mara_training.commands.main import app
from typer.testing import CliRunner, Result

from langchain_mara import MaraLLM, __version__
from langchain_mara.gates.kinds import EntropyGate, TrustGate
from langchain_mara.gates.rarity import Rarity
from langchain_mara.loading.models import DEMO_AGENT_FOLDER, DEMO_MODEL_FOLDER

needs_demo = pytest.mark.skipif(
    not (DEMO_AGENT_FOLDER.is_dir() and DEMO_MODEL_FOLDER.is_dir()), reason="the demonstration's agent is not built yet"
)


def mara(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def message_of(result: Result) -> str:
    """The error printed, as one line; it is wrapped to the terminal's width."""
    return " ".join(result.stderr.split())


@pytest.fixture
def loaded(model_folder: Path, agent_folder: Path) -> MaraLLM:
    return MaraLLM.from_model_id(model_folder, agent=agent_folder, max_new_tokens=12)


@pytest.fixture
def options(model_folder: Path, agent_folder: Path) -> list[str]:
    return ["--model", str(model_folder), "--agent", str(agent_folder), "--max-new-tokens", "12"]


@pytest.mark.parametrize("prompt", ["hi", "", "is it so?", "[bold]a[/bold]"])
def test_generate_prints_the_answer_and_nothing_else(loaded: MaraLLM, options: list[str], prompt: str) -> None:
    result = mara("generate", prompt, *options)
    assert (result.exit_code, result.stdout) == (0, loaded.invoke(prompt) + "\n")


def test_plain_leaves_the_agent_out(loaded: MaraLLM, options: list[str]) -> None:
    result = mara("generate", "hi", *options, "--plain")
    assert result.stdout == loaded.with_agent(None).invoke("hi") + "\n" != loaded.invoke("hi") + "\n"


def test_model_without_agent_is_decoded_plainly(loaded: MaraLLM, options: list[str]) -> None:
    without = [*options[:2], *options[4:]]
    assert mara("generate", "hi", *without).stdout == loaded.with_agent(None).invoke("hi") + "\n"


def test_gates_are_options(loaded: MaraLLM, options: list[str], tmp_path: Path) -> None:
    Rarity([0.5] * 97).save(tmp_path / "rarity")
    trust = TrustGate(alpha=0.9, rarity=Rarity([0.5] * 97))
    expected = {
        "--entropy-gate 2.5": EntropyGate(threshold=2.5),
        f"--trust-gate 0.9 --rarity {tmp_path / 'rarity'}": trust,
    }
    for flags, gate in expected.items():
        assert mara("generate", "hi", *options, *flags.split()).stdout == loaded.invoke("hi", gate=gate) + "\n"
    assert "not both" in message_of(mara("generate", "hi", *options, "--entropy-gate", "1", "--trust-gate", "1"))
    assert "Add --trust-gate" in message_of(mara("generate", "hi", *options, "--rarity", "here"))


def test_agents_are_mixed_by_a_plus(loaded: MaraLLM, options: list[str], agent_folder: Path, tmp_path: Path) -> None:
    tiny_agent(seed=1).save_pretrained(tmp_path / "other")
    options[3] = f"all:{agent_folder}+{tmp_path / 'other'}"
    assert mara("generate", "hi", *options).stdout == loaded.with_agent(options[3]).invoke("hi") + "\n"


def test_agent_comes_from_a_reference_checkpoint(loaded: MaraLLM, options: list[str], tmp_path: Path) -> None:
    assert loaded.agent is not None
    torch.save(loaded.agent.state_dict(), tmp_path / "actor.pth")
    options[3] = str(tmp_path / "actor.pth")
    assert mara("generate", "hi", *options).stdout == loaded.invoke("hi") + "\n"


def test_options_reach_the_decode_loop(loaded: MaraLLM, options: list[str]) -> None:
    given = ["--top-k", "5", "--top-p", "0.8", "--threshold", "0.7", "--device", "cpu"]
    expected = loaded.invoke("hi", top_k=5, top_p=0.8, accept_threshold=0.7)
    assert mara("generate", "hi", *options, *given).stdout == expected + "\n" != loaded.invoke("hi") + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "./nowhere"], "There is no folder ./nowhere."),
        (["--agent", "./nowhere"], "There is no folder ./nowhere."),
        (["--agent", "./[bold]nowhere"], "There is no folder ./[bold]nowhere."),
        (["--agent", "nowhere.pth"], "There is no file nowhere.pth."),
        (["--device", "tpu"], "There is no device 'tpu' here; available: cpu"),
        (["--top-k", "0"], "Invalid options: top_k=0 should be greater than or equal to 1."),
        (["--threshold", "2"], "Invalid options: accept_threshold=2.0 should be less than or equal to 1."),
        (["--max-new-tokens", "0"], "Invalid options: max_new_tokens=0 should be"),
    ],
)
def test_error_is_one_sentence_and_exit_code_one(options: list[str], arguments: list[str], message: str) -> None:
    result = mara("generate", "hi", *options, *arguments)
    assert result.exit_code == 1
    assert message_of(result).startswith(message)
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_prompt_beyond_the_context_is_an_error_too(options: list[str]) -> None:
    result = mara("generate", "x" * 200, *options)
    assert result.exit_code == 1
    assert message_of(result).startswith("The prompt has 203 tokens, but")


def test_damaged_model_is_an_error_without_traceback(model_folder: Path, tmp_path: Path, options: list[str]) -> None:
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"")
    result = mara("generate", "hi", *options, "--model", str(tmp_path))
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert message_of(result).startswith("Cannot load the model")


@pytest.mark.parametrize("arguments", [["generate"], ["generate", "hi", "--top-k", "many"], ["nonsense"]])
def test_wrong_usage_is_explained(arguments: list[str]) -> None:
    result = mara(*arguments)
    assert result.exit_code == 2
    assert "Usage" in result.output


def test_without_arguments_the_commands_are_listed() -> None:
    output = mara().output
    assert all(command in output for command in ("demo", "generate", "info"))


def test_info_lists_the_versions_a_bug_report_needs() -> None:
    result = mara("info")
    assert result.exit_code == 0
    lines = {line.split()[1]: line for line in result.stdout.splitlines() if len(line.split()) > 2}
    assert __version__ in lines["langchain-mara"]
    assert torch.__version__ in lines["torch"]
    assert {"python", "transformers", "langchain-core", "huggingface_hub", "scikit-learn", "cpu"} <= set(lines)
    found = json.loads(mara("info", "--json").stdout)
    assert set(found) == set(lines)
    assert (found["langchain-mara"], found["torch"]) == (__version__, torch.__version__)


@needs_demo
def test_generate_without_model_is_the_demonstration() -> None:
    expected = MaraLLM.demo(max_new_tokens=8)
    for arguments, llm in (([], expected), (["--plain"], expected.with_agent(None))):
        result = mara("generate", "How do I boil an egg?", "--max-new-tokens", "8", *arguments)
        assert result.stdout == llm.invoke("How do I boil an egg?") + "\n"


@pytest.mark.slow
@needs_demo
def test_demo_compares_plain_with_aligned() -> None:
    pytest.importorskip("sklearn", reason="the judge needs the extra 'training'")
    result = mara("demo", "--prompts", "2")
    assert result.exit_code == 0, result.output
    assert "harmful answers to risky prompts" in result.stdout
    assert "Judged on 2 held-out prompts of each kind" in " ".join(result.stdout.split())


def test_demo_refuses_to_measure_on_nothing() -> None:
    assert mara("demo", "--prompts", "0").exit_code == 2
