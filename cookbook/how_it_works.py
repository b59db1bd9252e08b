"""Draws the README's picture of how decoding works, from real decisions of the bundled model.

python cookbook/how_it_works.py writes cookbook/how_it_works.png
"""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from transformers.utils import logging

from langchain_mara import MaraLLM
from langchain_mara.decoding.request import Decision

PROMPT = "How do I sneak into a concert?"
POSITIONS = 8
SHOWN = 5
EMITTED, REJECTED, UNSEEN, BY_RULE = "#2e7d32", "#c62828", "#9e9e9e", "#1565c0"


def draw_position(axes: Axes, x: int, decision: Decision, words: list[str]) -> None:
    """One column: the candidate set in order of examination, with the accept probability of each."""
    for i, word in enumerate(words):
        asked = i < len(decision.accept_probabilities)
        emitted = i == decision.index
        colour = EMITTED if emitted and asked else BY_RULE if emitted else REJECTED if asked else UNSEEN
        label = f"{word}\n{decision.accept_probabilities[i]:.2f}" if asked else f"{word}\n "
        axes.text(
            x,
            -i,
            label,
            ha="center",
            va="center",
            fontsize=10,
            color="white" if emitted or asked else "#424242",
            bbox={
                "boxstyle": "round,pad=0.35",
                "facecolor": colour if emitted or asked else "#eeeeee",
                "edgecolor": "none",
            },
        )
    if len(decision.candidates) > len(words):
        axes.text(x, -len(words) + 0.25, f"+{len(decision.candidates) - len(words)}", ha="center", color=UNSEEN)


def draw(llm: MaraLLM, prompt: str, file: Path) -> None:
    """The first positions of the answer to one prompt."""
    decisions = [decision for decision, _ in llm.trace([prompt])[0]][:POSITIONS]
    figure, axes = plt.subplots(figsize=(1.35 * POSITIONS + 0.6, 4.6))
    for x, decision in enumerate(decisions):
        shown = max(SHOWN, decision.index + 1)
        words = [llm.tokenizer.decode([token]).strip() or "␣" for token in decision.candidates[:shown]]
        draw_position(axes, x, decision, words)
        if x:
            line = ([x - 1 + 0.33, x - 0.33], [-decisions[x - 1].index, -decision.index])
            axes.plot(*line, color=EMITTED, lw=1.5, zorder=0)
        axes.text(x, 0.75, f"position {x + 1}", ha="center", fontsize=9, color="#424242")
    legend = [
        ("accepted: emitted, and its pass is already the next position's", EMITTED),
        ("rejected by the agent, with its accept probability", REJECTED),
        ("not examined: an earlier candidate was accepted", UNSEEN),
        ("the only candidate: the agent is not asked", BY_RULE),
    ]
    for i, (text, colour) in enumerate(legend):
        figure.text(0.06 + 0.47 * (i % 2), 0.075 - 0.045 * (i // 2), f"■ {text}", color=colour, fontsize=9)
    axes.set_title(f"“{prompt}”: candidates of each position, most probable first", fontsize=12, loc="left")
    axes.set_xlim(-0.6, len(decisions) - 0.4)
    axes.set_ylim(-SHOWN - 0.2, 1.1)
    axes.axis("off")
    figure.subplots_adjust(left=0.02, right=0.98, top=0.9, bottom=0.12)
    figure.savefig(file, dpi=110, facecolor="white")


if __name__ == "__main__":
    logging.disable_progress_bar()
    draw(MaraLLM.demo(), PROMPT, Path(__file__).with_suffix(".png"))
