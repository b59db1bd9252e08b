"""Fits the agent of SmolLM2: to human pairs first, then also to its own answers."""

from pathlib import Path

from langchain_mara import MaraLLM
from langchain_mara_training.demo.smollm2.model import HUB_ID
from langchain_mara_training.demo.smollm2.own_answers import kept, own_answers, preferred_pairs
from langchain_mara_training.demo.smollm2.pairs import Pairs
from langchain_mara_training.demo.smollm2.questions import everyday_questions, risky_questions
from langchain_mara_training.fitting.classifier import MaraClassifier
from langchain_mara_training.labeling.preference import PreferenceLabeler
from langchain_mara_training.labeling.token_labels import TokenLabels

SEED = 0
CAREFUL_STRENGTH = 0.95
"""Strength of the agent of human pairs alone, whose answers teach the shipped one."""


def fit_agent(llm: MaraLLM, pairs: Pairs, work: Path, seed: int = SEED) -> MaraClassifier:
    """Fits an agent to the tokens of human pairs, then to these and to own answers that tell it when to guide.

    Args:
        llm: SmolLM2.
        pairs: Preference pairs with a `group` each.
        work: Folder of labels and own answers; an interrupted training resumes there.
        seed: Seed of the fits.
    """
    human = PreferenceLabeler(llm, judges="before").label(pairs, work / "labels")
    return fitted(human + own_labels(llm, pairs, human, work), seed)


def own_labels(llm: MaraLLM, pairs: Pairs, human: TokenLabels, work: Path) -> TokenLabels:
    """Labels of own answers: to everyday questions the plain one is preferred, to risky ones the aligned one.

    Args:
        llm: SmolLM2.
        pairs: Preference pairs with a `group` each.
        human: Labels of these pairs.
        work: Folder of labels and own answers; an interrupted run resumes there.
    """
    everyday, risky = kept(work / "questions.json", lambda: [everyday_questions(llm), risky_questions(pairs)])
    plain = llm.with_agent(None)
    unguided = kept(work / "plain-answers.json", lambda: [own_answers(plain, asked) for asked in (everyday, risky)])

    def guided() -> list[list[str]]:
        careful = plain.with_agent(fitted(human, SEED).agent_)
        careful = careful.model_copy(update={"strategy": "guided", "strength": CAREFUL_STRENGTH})
        return [own_answers(careful, asked) for asked in (everyday, risky)]

    aligned = kept(work / "careful-answers.json", guided)
    labeler = PreferenceLabeler(llm, judges="before")
    helpful = preferred_pairs(everyday, unguided[0], aligned[0], first=0)
    careful = preferred_pairs(risky, aligned[1], unguided[1], first=len(everyday))
    return labeler.label(helpful, work / "labels-everyday") + labeler.label(careful, work / "labels-risky")


def fitted(labels: TokenLabels, seed: int) -> MaraClassifier:
    """A look-ahead agent fitted to labels with default parameters.

    Args:
        labels: Labels of tokens, judged before.
        seed: Seed of the fit.
    """
    # The strength was chosen for accept probabilities as they come.
    classifier = MaraClassifier(
        agent="look-ahead", calibration=None, policy_model=HUB_ID, random_state=seed, device="cpu"
    )
    return classifier.fit(labels.X, labels.y, sample_weight=labels.weight, groups=labels.groups)
