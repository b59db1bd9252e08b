"""Writes tests/data/golden: the part of the reference's golden vectors that a clone carries.

python tests/make_golden_subset.py, from the repository's root. It reads the full set in ../shared/golden and always
writes the same bytes. Whole recordings are kept or left out; no number changes. Three of the five models are kept:
the one with scaled rotary embeddings, the one with tied embeddings, and the one with a sliding window. The other
two have none of these. Every decoding setting and every variant of an episode is kept for at least one agent.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

FULL = Path(__file__).parents[2] / "shared" / "golden"
SUBSET = Path(__file__).parent / "data" / "golden"
MODELS = ("llama31", "llama32_tied", "mistral_sliding")
EPISODE_MODEL = "mistral_sliding"
GENERATIONS_PER_SETTING = 2
MOST_BYTES = 3_000_000

Record = dict[str, Any]


def main(target: Path = SUBSET) -> None:
    """Writes the subset.

    Args:
        target: Folder to write, which is replaced.

    Raises:
        RuntimeError: If the subset is larger than a clone should carry.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    generations, episodes = read("decoding.json"), read("episodes.json")
    kept_generations, kept_episodes = thin_generations(generations), thin_episodes(episodes)
    for name in MODELS:
        shutil.copytree(FULL / "models" / name, target / "models" / name, copy_function=shutil.copyfile)
    (target / "agents").mkdir()
    for name in sorted({record["agent"] for record in [*kept_generations, *kept_episodes]}):
        shutil.copyfile(FULL / "agents" / name, target / "agents" / name)
    write(target / "decoding.json", kept_generations)
    write(target / "episodes.json", kept_episodes)
    tensors, kept = load_file(FULL / "episodes.safetensors"), {record["id"] for record in kept_episodes}
    kept_tensors = {name: tensor for name, tensor in tensors.items() if name.rpartition("/")[0] in kept}
    save_file(kept_tensors, target / "episodes.safetensors")
    for name in ("sac_update.json", "sac_update.safetensors"):
        shutil.copyfile(FULL / name, target / name)
    counts = {
        "generations": [len(kept_generations), len(generations)],
        "episodes": [len(kept_episodes), len(episodes)],
    }
    (target / "subset.json").write_text(json.dumps(counts) + "\n")
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    if size > MOST_BYTES:
        raise RuntimeError(f"The subset has {size:,} bytes, more than {MOST_BYTES:,}. Keep fewer generations.")


def read(name: str) -> list[Record]:
    """Recordings of a file of the full set."""
    records: list[Record] = json.loads((FULL / name).read_text())
    return records


def write(file: Path, records: list[Record]) -> None:
    """Writes one recording per line."""
    lines = (json.dumps(record, separators=(",", ":")) for record in records)
    file.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def thin_generations(records: list[Record]) -> list[Record]:
    """A few generations of each kept model and setting, with agents and prompts that take turns."""
    kept = []
    settings = list(dict.fromkeys(record["setting"] for record in records))
    for i, model in enumerate(MODELS):
        for j, setting in enumerate(settings):
            fitting = [record for record in records if (record["model"], record["setting"]) == (model, setting)]
            agents = list(dict.fromkeys(record["agent"] for record in fitting))
            for turn in range(i + j, i + j + GENERATIONS_PER_SETTING):
                of_agent = [record for record in fitting if record["agent"] == agents[turn % len(agents)]]
                kept.append(of_agent[(turn + j) % len(of_agent)])
    return kept


def thin_episodes(records: list[Record]) -> list[Record]:
    """One episode of each variant, of one model, with agents that take turns."""
    fitting = [record for record in records if record["model"] == EPISODE_MODEL]
    kept = []
    for turn, variant in enumerate(dict.fromkeys(record["variant"] for record in fitting)):
        of_variant = [record for record in fitting if record["variant"] == variant]
        kept.append(of_variant[(turn * 3) % len(of_variant)])
    return kept


if __name__ == "__main__":
    main()
