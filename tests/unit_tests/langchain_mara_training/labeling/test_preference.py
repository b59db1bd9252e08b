"""Preference labels against transformers alone, one sequence at a time."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from families import CONFIGS, tiny_model
from gguf_files import skip_without_llama_cpp, write_gguf
from langchain_mara_training.generation.states import batch_states
from langchain_mara_training.labeling.preference import PreferenceLabeler
from langchain_mara_training.labeling.token_labels import TokenLabels

from langchain_mara import MaraLLM
from langchain_mara.decoding.candidates import candidate_sets
from langchain_mara.exceptions import DataError, OptionsError, TrainingError
from langchain_mara.policy.model import PolicyModel

PAIRS = [
    {"prompt": "How do I boil an egg?", "chosen": "Please boil it gently.", "rejected": "Please do not ask me."},
    {"prompt": "How do I rob a bank?", "chosen": "You should not rob a bank.", "rejected": "Just do it."},
]
Rows = list[tuple[int, int, int, int]]


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_states_of_a_padded_batch(family: str) -> None:
    model = tiny_model(family)
    policy = PolicyModel(model)
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(3, 97, (length,), generator=generator).tolist() for length in (4, 17, 9)]
    with torch.inference_mode():
        states = batch_states(policy, sequences)
        for i, ids in enumerate(sequences):
            alone = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
            torch.testing.assert_close(states[i, : len(ids)], alone, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def expected(llm: MaraLLM, pairs: list[dict[str, str]], *, filtered: bool) -> tuple[Rows, np.ndarray[Any, Any]]:
    """(group, position, token, label) and states of what should be labelled."""
    model: Any = llm.model
    rows, states = [], []
    for group, pair in enumerate(pairs):
        prompt = llm.encode(pair["prompt"])
        ends = {
            side: [*llm.tokenizer(pair[side], add_special_tokens=False).input_ids, llm.tokenizer.eos_token_id]
            for side in pair
        }
        shared = next(
            i for i, (one, two) in enumerate(zip(ends["chosen"], ends["rejected"], strict=False)) if one != two
        )
        for side, label in (("chosen", 1), ("rejected", 0)):
            output = model(torch.tensor([[*prompt, *ends[side]]]), output_hidden_states=True)
            sets = candidate_sets(output.logits[0], llm.top_k, llm.top_p)
            for i in range(shared, len(ends[side])):
                place = len(prompt) + i
                count = int(sets.counts[place - 1])
                inside = ends[side][i] in sets.token_ids[place - 1, :count].tolist()
                if not filtered or (inside and count > 1):
                    rows.append((group, place, ends[side][i], label))
                    states.append(output.hidden_states[-1][0, place].numpy())
    return rows, np.array(states)


def rows_of(labels: TokenLabels) -> Rows:
    columns = (labels.groups, labels.positions, labels.token_ids, labels.y)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("filtered", [True, False])
def test_labels_and_states(demo_llm: MaraLLM, filtered: bool) -> None:
    labels = PreferenceLabeler(demo_llm, candidate_filter=filtered).label(PAIRS)
    rows, states = expected(demo_llm, PAIRS, filtered=filtered)
    assert sorted(rows_of(labels)) == sorted(rows)
    assert {label for *_, label in rows} == {0, 1}
    found = np.asarray(labels.X, np.float32)
    for row, state in zip(rows, states, strict=True):
        np.testing.assert_allclose(found[rows_of(labels).index(row)], state, rtol=2e-3, atol=2e-3)
    assert bool((labels.ranks >= 0).all()) is filtered
    assert (labels.weight == 1).all()


def test_ranks_are_places_in_the_candidate_set(demo_llm: MaraLLM) -> None:
    labels = PreferenceLabeler(demo_llm, candidate_filter=False).label(PAIRS[:1])
    prompt = demo_llm.encode(PAIRS[0]["prompt"])
    for side, label in (("chosen", 1), ("rejected", 0)):
        ids = [*prompt, *demo_llm.tokenizer(PAIRS[0][side], add_special_tokens=False).input_ids]
        with torch.inference_mode():
            probabilities = demo_llm.model(input_ids=torch.tensor([ids])).logits[0].softmax(-1)
        for i in np.flatnonzero(labels.y == label):
            before = probabilities[labels.positions[i] - 1]
            more = before[before > before[labels.token_ids[i]]]
            inside = len(more) < demo_llm.top_k and float(more.sum()) < demo_llm.top_p
            assert labels.ranks[i] == (len(more) if inside else -1)
    assert labels.ranks.min() == -1 < labels.ranks.max()


@pytest.mark.slow
def test_the_size_of_batches_and_shards_changes_nothing(demo_llm: MaraLLM, demo_pairs: list[Any]) -> None:
    whole = PreferenceLabeler(demo_llm).label(demo_pairs[:20])
    single = PreferenceLabeler(demo_llm, batch_tokens=1, shard_tokens=30).label(demo_pairs[:20])
    assert sorted(rows_of(whole)) == sorted(rows_of(single))
    order = [np.lexsort((item.token_ids, item.positions, item.y, item.groups)) for item in (whole, single)]
    left, right = (np.asarray(item.X, np.float32)[by] for item, by in zip((whole, single), order, strict=True))
    np.testing.assert_allclose(left, right, rtol=2e-3, atol=2e-3)


def test_messages_are_labelled_like_their_text(demo_llm: MaraLLM) -> None:
    def message(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    pairs = [
        {
            "prompt": message("user", pair["prompt"]),
            **{side: message("assistant", pair[side]) for side in ("chosen", "rejected")},
        }
        for pair in PAIRS
    ]
    one, other = (PreferenceLabeler(demo_llm).label(given) for given in (PAIRS, pairs))
    assert rows_of(one) == rows_of(other)
    np.testing.assert_array_equal(one.X, other.X)


def test_weights(demo_llm: MaraLLM) -> None:
    pairs = [{**PAIRS[0], "weight": 3.0, "group": 9}, PAIRS[1]]
    labels = PreferenceLabeler(demo_llm, weighting="answer", decay=0.5, candidate_filter=False).label(pairs)
    assert {*labels.groups.tolist()} == {9, 1}
    for group, factor in ((9, 3.0), (1, 1.0)):
        for label in (0, 1):
            here = (labels.groups == group) & (labels.y == label)
            count, start = here.sum(), labels.positions[here].min()
            np.testing.assert_allclose(
                labels.weight[here], factor / count * 0.5 ** (labels.positions[here] - start), rtol=1e-5
            )


def test_long_answers_are_cut_and_long_prompts_refused(demo_llm: MaraLLM) -> None:
    context = PolicyModel(demo_llm.model).context
    assert context is not None
    long = {**PAIRS[0], "chosen": "egg " * 2 * context}
    labels = PreferenceLabeler(demo_llm, candidate_filter=False).label([long])
    assert labels.positions.max() == context - 1
    with pytest.raises(DataError, match=r"has \d+ tokens, but .*Shorten the prompt or leave the row out"):
        PreferenceLabeler(demo_llm).label([{**PAIRS[0], "prompt": "egg " * 2 * context}])


def test_pairs_that_do_not_differ(demo_llm: MaraLLM) -> None:
    with pytest.raises(DataError, match="Give answers that differ"):
        PreferenceLabeler(demo_llm).label([{**PAIRS[0], "rejected": PAIRS[0]["chosen"]}])


def test_states_that_are_not_finite_are_left_out(demo_llm: MaraLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = PreferenceLabeler(demo_llm, candidate_filter=False).label(PAIRS)

    def broken(*args: Any) -> torch.Tensor:
        states = batch_states(*args)
        states[:, -1] = torch.nan
        return states

    monkeypatch.setattr("langchain_mara_training.labeling.preference.batch_states", broken)
    with pytest.warns(UserWarning, match="tokens with non-finite states were left out"):
        labels = PreferenceLabeler(demo_llm, candidate_filter=False).label(PAIRS)
    assert 0 < len(labels) < len(whole)
    assert np.isfinite(np.asarray(labels.X)).all()


@pytest.mark.parametrize("options", [{"weighting": "none"}, {"decay": 0.0}, {"shard_tokens": 0}])
def test_options_out_of_range(demo_llm: MaraLLM, options: dict[str, Any]) -> None:
    with pytest.raises(OptionsError, match=next(iter(options))):
        PreferenceLabeler(demo_llm, **options)


def test_a_stream_is_labelled_like_a_list(demo_llm: MaraLLM, demo_pairs: list[Any], tmp_path: Path) -> None:
    pairs = demo_pairs[:12]
    stream = datasets.Dataset.from_list(pairs).to_iterable_dataset()
    labeler = PreferenceLabeler(demo_llm, shard_tokens=40)
    whole = labeler.label(pairs, tmp_path / "labels")
    before = {file.name: file.read_bytes() for file in (tmp_path / "labels").iterdir()}
    assert len(before) > 4
    for source in ((pair for pair in pairs), stream):
        # The same job resumes, so it is the same job.
        labeler.label(source, tmp_path / "labels")
        assert {file.name: file.read_bytes() for file in (tmp_path / "labels").iterdir()} == before
        assert rows_of(labeler.label(source if source is stream else iter(pairs))) == rows_of(whole)


def test_nothing_is_computed_before_every_row_was_judged(demo_llm: MaraLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def compute(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(PreferenceLabeler, "compute", compute)
    for bad in ({"weight": float("nan")}, {"group": 2**63}, {"chosen": [{"role": "assistant", "content": None}]}):
        with pytest.raises(DataError, match="the given list, row 2"):
            PreferenceLabeler(demo_llm, shard_tokens=1).label([*PAIRS, {**PAIRS[0], **bad}])


def test_what_was_not_labelled_is_counted(demo_llm: MaraLLM) -> None:
    context = PolicyModel(demo_llm.model).context
    assert context is not None
    long = "egg " * context
    equal = {"prompt": "a", "chosen": "b", "rejected": "b"}
    rows = [
        *PAIRS,
        equal,
        {**PAIRS[0], "prompt": long},
        {"prompt": "a", "chosen": f"{long} yes", "rejected": f"{long} no"},
        {"prompt": "a", "responses": ["b", "c"], "scores": [1, 1]},
        *[{**PAIRS[0], "weight": -number} for number in range(1, 8)],
        {"prompt": [{"role": "user", "content": None}], "chosen": "a", "rejected": "b"},
        {"prompt": "a", "chosen": [{"role": "user", "content": "b"}], "rejected": "b"},
    ]
    labeler = PreferenceLabeler(demo_llm, too_long="skip", on_bad_row="skip")
    labels = labeler.label(rows)
    assert rows_of(labels) == rows_of(PreferenceLabeler(demo_llm).label(PAIRS))
    assert labeler.report_.counts() == {
        "rows": 15, "bad rows skipped": 9, "too long, skipped": 1, "equal answers": 2, "equal after truncation": 1,
    }  # fmt: skip
    assert [sentence.partition(". Give")[0] for sentence in labeler.report_.first_bad] == [
        f"the given list, row {number}: weight is {5 - number} (int)" for number in range(6, 11)
    ]
    with pytest.raises(DataError, match="No row has tokens to label. rows: 2, bad rows skipped: 1, equal answers: 1."):
        labeler.label([equal, {**PAIRS[0], "weight": "3"}])


def test_long_prompts_are_cut_until_the_answers_fit(demo_llm: MaraLLM) -> None:
    context = PolicyModel(demo_llm.model).context
    assert context is not None
    long = {**PAIRS[0], "prompt": f"{'egg ' * context}{PAIRS[0]['prompt']}"}
    labeler = PreferenceLabeler(demo_llm, too_long="truncate-left", candidate_filter=False)
    whole, cut = (sorted(labeler.label([pair]).token_ids.tolist()) for pair in (PAIRS[0], long))
    assert cut == whole
    assert labeler.report_.truncated == 1


def test_thumbs_and_lists_beside_pairs(demo_llm: MaraLLM) -> None:
    pair = PAIRS[0]
    rows = [
        pair,
        {"prompt": pair["prompt"], "completion": pair["chosen"], "label": True, "weight": 3.0},
        {"prompt": PAIRS[1]["prompt"], "responses": [PAIRS[1]["rejected"], PAIRS[1]["chosen"]], "ranks": [2, 1]},
    ]
    labels = PreferenceLabeler(demo_llm, candidate_filter=False).label(rows)
    assert set(labels.groups.tolist()) == {0, 2}
    thumbed = labels.weight == 3.0
    assert (labels.y[thumbed] == 1).all()
    ids = demo_llm.tokenizer(pair["chosen"], add_special_tokens=False).input_ids
    assert sorted(labels.token_ids[thumbed].tolist()) == sorted([*ids, demo_llm.tokenizer.eos_token_id])
    ranked = labels.groups == 2
    assert sorted(labels.y[ranked].tolist()) == sorted(
        PreferenceLabeler(demo_llm, candidate_filter=False).label([PAIRS[1]]).y.tolist()
    )


def test_large_groups_reach_the_labels(demo_llm: MaraLLM, tmp_path: Path) -> None:
    labels = PreferenceLabeler(demo_llm).label([{**PAIRS[0], "group": 2**63 - 1}], tmp_path)
    assert set(labels.groups.tolist()) == {2**63 - 1}


@torch.inference_mode()
def test_labels_for_an_agent_that_judges_before(demo_llm: MaraLLM) -> None:
    """State before the token, its output embedding, its log-probability and the entropy; the rest as for the state."""
    labels = PreferenceLabeler(demo_llm, judges="before").label(PAIRS)
    after = PreferenceLabeler(demo_llm).label(PAIRS)
    assert rows_of(labels) == rows_of(after)
    size = after.X.shape[1]
    assert labels.X.shape == (len(after), 2 * size + 2)
    model: Any = demo_llm.model
    for side in ("chosen", "rejected"):
        ids = [*demo_llm.encode(PAIRS[0]["prompt"]), *demo_llm.get_token_ids(PAIRS[0][side])]
        output = model(torch.tensor([ids]), output_hidden_states=True)
        logs = output.logits[0].float().log_softmax(-1)
        own = (labels.groups == 0) & (labels.y == (side == "chosen")) & (labels.positions < len(ids))
        assert own.any()
        for found, place, token in zip(labels.X[own], labels.positions[own], labels.token_ids[own], strict=True):
            assert ids[place] == token
            before = logs[place - 1]
            expected = [
                output.hidden_states[-1][0, place - 1],
                model.get_output_embeddings().weight[token],
                torch.stack([before[token], -(before.exp() * before).sum()]),
            ]
            np.testing.assert_allclose(found.astype(np.float32), torch.cat(expected), rtol=3e-3, atol=3e-3)


def test_labels_before_are_another_job_and_the_way_to_judge_is_checked(demo_llm: MaraLLM, tmp_path: Path) -> None:
    written = PreferenceLabeler(demo_llm, judges="before").label(PAIRS, tmp_path)
    assert np.array_equal(np.asarray(TokenLabels.load(tmp_path).X), np.asarray(written.X))
    with pytest.raises(TrainingError, match="judges"):
        PreferenceLabeler(demo_llm).label(PAIRS, tmp_path)
    with pytest.raises(OptionsError, match="judges must be one of"):
        PreferenceLabeler(demo_llm, judges="during")  # type: ignore[arg-type]


@pytest.mark.parametrize("judges", ["after", "before"])
def test_labels_from_llama_cpp_are_those_from_transformers(judges: str, tmp_path: Path) -> None:
    skip_without_llama_cpp()
    demo = MaraLLM.demo(agent=None, packed=False, device="cpu")
    file = write_gguf(demo.model, demo.tokenizer, tmp_path / "demo.gguf")  # type: ignore[arg-type]
    converted = MaraLLM.from_gguf(file, n_ctx=512, n_threads=1)
    ours, theirs = (PreferenceLabeler(llm, judges=judges).label(PAIRS) for llm in (converted, demo))  # type: ignore[arg-type]
    assert rows_of(ours) == rows_of(theirs)
    np.testing.assert_allclose(ours.X.astype(np.float32), theirs.X.astype(np.float32), atol=0.02, rtol=0.02)
