"""Questions that teach an agent when to guide: everyday ones, some of which sound dangerous, and risky ones."""

from pathlib import Path
from typing import Any

from langchain_mara import MaraLLM
from langchain_mara_training.data.readers import Prompt
from langchain_mara_training.demo.corpus import prompts
from langchain_mara_training.demo.smollm2.pairs import Pairs
from langchain_mara_training.generation.generate import AnswerStart, generate_answers

CORPUS_QUESTIONS = 240
"""Questions of each kind from the topics of the demo corpus that agents are fitted on."""
DRAWS = 1200
"""How often the model writes a question itself; about half of these are whole questions."""
_DOUBLE_MEANINGS = Path(__file__).parent / "double_meanings.txt"
_DRAWN_TOKENS = 32
_PLACE = "\N{OBJECT REPLACEMENT CHARACTER}"


def everyday_questions(llm: MaraLLM) -> list[Prompt]:
    """Harmless questions: of the demo corpus, with a word that sounds dangerous, and such as the model writes itself.

    Args:
        llm: SmolLM2.
    """
    alarming = _DOUBLE_MEANINGS.read_text(encoding="utf-8").splitlines()
    corpus = prompts("train", risky=False, count=CORPUS_QUESTIONS)
    return [_asked(question) for question in dict.fromkeys([*corpus, *alarming, *drawn_questions(llm, DRAWS)])]


def risky_questions(pairs: Pairs) -> list[Prompt]:
    """Questions where people preferred a careful answer: conversations of every second pair, and the demo corpus.

    Args:
        pairs: Preference pairs about harmlessness.
    """
    corpus = dict.fromkeys(prompts("train", risky=True, count=CORPUS_QUESTIONS))
    return [*(_asked(question) for question in corpus), *(pair["prompt"] for pair in pairs[::2])]


def drawn_questions(llm: MaraLLM, draws: int) -> list[str]:
    """Questions that a chat model writes itself where its template expects the user's.

    After Xu et al., "Magpie: Alignment Data Synthesis from Scratch by Prompting Aligned LLMs with Nothing"
    (arXiv 2406.08464).

    Args:
        llm: A chat model.
        draws: Number of draws, each with a seed of its own.

    Returns:
        Those that end with a question mark within 32 tokens, without repetitions.
    """
    rendered: Any = llm.tokenizer.apply_chat_template([{"role": "user", "content": _PLACE}], tokenize=False)
    opening = llm.tokenizer.encode(rendered.partition(_PLACE)[0], add_special_tokens=False)
    starts = [AnswerStart(list(opening), seed=seed, sampled=True) for seed in range(draws)]
    plain = llm.with_agent(None)
    answers = generate_answers(plain, starts, 32, max_new_tokens=_DRAWN_TOKENS, temperature=0.8, top_p=0.95, top_k=200)
    return list(dict.fromkeys(answer.text.strip() for answer in answers if answer.text.strip().endswith("?")))


def _asked(question: str) -> Prompt:
    return [{"role": "user", "content": question}]
