"""Records tests/data/sample: a tiny model, an agent, and what a cache-free evaluation says of them.

python tests/record_sample.py, from the repository's root. The record pins decoding across versions of
torch and transformers for people who do not have the reference's vectors.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from families import cache_free, tiny_agent, tiny_model

FOLDER = Path(__file__).parent / "data" / "sample"


def main() -> None:
    """Writes model, agent and twelve generations."""
    model = tiny_model("llama-3", dtype=torch.float32)
    agent = tiny_agent()
    generator = torch.Generator().manual_seed(11)
    prompts = [torch.randint(2, 97, (n,), generator=generator).tolist() for n in range(1, 13)]
    records = [
        {"prompt_ids": prompt, "top_k": 5 + i, **asdict(cache_free(model, agent, prompt, top_k=5 + i))}
        for i, prompt in enumerate(prompts)
    ]
    model.save_pretrained(FOLDER / "model")
    agent.save_pretrained(FOLDER / "agent")
    (FOLDER / "decoding.json").write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
