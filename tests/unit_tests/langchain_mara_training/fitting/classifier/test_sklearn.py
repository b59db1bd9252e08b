import pickle
from typing import Any

import numpy as np
import pytest
import sklearn
import torch
from joblib import Parallel, delayed
from langchain_mara_training.fitting.classifier import MaraClassifier
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.model_selection import GridSearchCV, GroupKFold, TunedThresholdClassifierCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from langchain_mara import DecodingOptions

EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": (
        "A row of weight two is in one mini-batch, but a row given twice can be in two, so the steps differ."
    ),
    "check_classifiers_classes": "Its labels are number words, which do not say which one means accept.",
}
# A tag declares poor scores on scikit-learn's toy data: of two features, LayerNorm keeps only which one is larger.
SMALL = {"width": 16, "max_epochs": 6, "batch_size": 32, "learning_rate": 3e-2, "random_state": 0, "device": "cpu"}
X = np.random.default_rng(0).standard_normal((240, 8), dtype=np.float32)
Y = (X[:, 0] > X[:, 1]).astype(int)
GROUPS = np.arange(240) // 6


@pytest.mark.slow
@parametrize_with_checks(
    [MaraClassifier(**SMALL), MaraClassifier(**SMALL, early_stopping=True)],
    expected_failed_checks=lambda _: EXPECTED_FAILURES,
)
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_pipeline_and_clone() -> None:
    pipeline = make_pipeline(StandardScaler(), MaraClassifier(**SMALL))
    assert pipeline.fit(X, Y).score(X, Y) > 0.9
    again = clone(pipeline).fit(X, Y)
    np.testing.assert_array_equal(again.predict_proba(X), pipeline.predict_proba(X))


@pytest.mark.slow
def test_grid_search_over_groups() -> None:
    grid = {"learning_rate": [1e-5, 3e-2], "width": [8, 16]}
    search = GridSearchCV(MaraClassifier(**SMALL), grid, cv=GroupKFold(3)).fit(X, Y, groups=GROUPS)
    assert search.best_params_["learning_rate"] == 3e-2
    assert search.best_score_ > 0.85


def test_groups_are_routed_to_early_stopping() -> None:
    with sklearn.config_context(enable_metadata_routing=True):
        classifier = MaraClassifier(**SMALL, early_stopping=True).set_fit_request(groups=True)
        search = GridSearchCV(classifier, {"width": [16]}, cv=GroupKFold(3)).fit(X, Y, groups=GROUPS)
    whole = MaraClassifier(**SMALL, early_stopping=True).fit(X, Y, groups=GROUPS)
    alone = MaraClassifier(**SMALL, early_stopping=True).fit(X, Y)
    assert search.best_estimator_.agent_.fingerprint == whole.agent_.fingerprint != alone.agent_.fingerprint


def test_cross_validated_predictions_and_calibration() -> None:
    predictions = cross_val_predict(MaraClassifier(**SMALL), X, Y, cv=GroupKFold(3), groups=GROUPS)
    assert (predictions == Y).mean() > 0.85
    calibrated = CalibratedClassifierCV(MaraClassifier(**SMALL), cv=3).fit(X, Y)
    assert ((calibrated.predict_proba(X)[:, 1] > 0.5) == Y).mean() > 0.85


def test_pickling_keeps_predictions_and_the_optimiser() -> None:
    fitted = MaraClassifier(**SMALL).fit(X, Y)
    copy = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(copy.predict_proba(X), fitted.predict_proba(X))
    assert copy.partial_fit(X, Y).agent_.fingerprint == fitted.partial_fit(X, Y).agent_.fingerprint


@pytest.mark.slow
def test_threads_do_not_disturb_each_other() -> None:
    def fit(seed: int) -> str:
        return MaraClassifier(**SMALL | {"random_state": seed}).fit(X, Y).agent_.fingerprint

    alone = [fit(seed) for seed in range(6)]
    assert len(set(alone)) == 6
    assert Parallel(n_jobs=6, backend="threading")(delayed(fit)(seed) for seed in range(6)) == alone


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["balanced_accuracy", "f1"])
def test_a_tuned_threshold_carries_over_to_decoding(metric: str) -> None:
    rare = (X[:, 0] > X[:, 1] + 1).astype(int)
    cv = list(GroupKFold(3).split(X, rare, GROUPS))
    tuned = TunedThresholdClassifierCV(MaraClassifier(**SMALL), scoring=metric, cv=cv).fit(X, rare)
    options = DecodingOptions(accept_threshold=tuned.best_threshold_)
    agent = tuned.estimator_.agent_
    accepted = agent.accept_probability(torch.from_numpy(X)) > options.accept_threshold
    np.testing.assert_array_equal(tuned.predict(X), accepted.int().numpy())
    assert 0 < accepted.sum() < len(X)
