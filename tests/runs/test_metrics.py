"""Every metric of an evaluation from the same samples: in a run, added to a finished one, of a user's own, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from test_run import RUN, compiled_once, finish

from dit.data.batches import load_images
from dit.design.config import Evaluation, digest
from dit.design.features import Features
from dit.design.metrics import Metric, canonical, metric
from dit.errors import UserError
from dit.runs import run as product
from dit.score.metrics.inception_score import inception_score
from dit.score.scoring import scorer
from dit.store.study import RunStore, read_evaluation

ALL = ("fid", "sfid", "is", "precision", "recall", "kid")
assert compiled_once  # the fixture of that file, for this one too
COLUMNS = ["fd_digits", "sfd_digits", "is_digits", "precision_digits", "recall_digits", "kid_digits"]
PLAIN = Evaluation(6, "digits", num_samples=40, sampling_steps=2)


def run_of(**changes):
    return replace(RUN, steps=6, evaluations=(replace(PLAIN, **changes),))


def recorded(folder, run):
    (value,) = RunStore(folder, run).evaluations()
    return value


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run that was scored by the Fréchet distance alone."""
    folder = tmp_path_factory.mktemp("plain")
    assert finish(folder, run_of()) == "done"
    return folder


def test_a_metric_added_to_a_finished_run_trains_nothing_and_keeps_the_earlier_score(plain, monkeypatch):
    before = recorded(plain, run_of())
    assert list(before["scores"]) == ["fd_digits"]
    marked = {**before, "scores": {"fd_digits": 123.5}}  # what is recorded stays, whatever it was
    path = RunStore(plain, run_of()).evaluation_path(PLAIN)
    path.write_text(json.dumps(marked))
    more = run_of(metrics=ALL)
    assert more.run == run_of().run and more.evaluations[0].key == PLAIN.key
    assert not RunStore(plain, more).is_done()
    monkeypatch.setattr(product, "train", pytest.fail)
    assert finish(plain, more) == "done"
    after = recorded(plain, more)
    assert list(after["scores"]) == COLUMNS
    assert after["scores"]["fd_digits"] == 123.5
    assert after["protocol"] == before["protocol"]
    assert RunStore(plain, more).is_done() and RunStore(plain, run_of()).is_done()


def test_all_metrics_are_of_the_same_samples_as_the_distance_alone(plain, tmp_path):
    alone = tmp_path / "alone"
    assert finish(alone, run_of()) == "done"
    scores = recorded(plain, run_of(metrics=ALL))["scores"]
    whole = tmp_path / "whole"
    assert finish(whole, run_of(metrics=ALL)) == "done"
    again = recorded(whole, run_of(metrics=ALL))["scores"]
    assert again["fd_digits"] == recorded(alone, run_of())["scores"]["fd_digits"]
    assert {**again, "fd_digits": 123.5} == scores


def test_metrics_of_small_features_against_brute_force():
    images, real = load_images("digits")[0][:60, ::-1], load_images("digits")[0]
    judge = scorer("digits")
    statistics = judge.statistics(("fid", "inception_score", "precision", "recall"), 60)
    for start in range(0, 60, 16):
        statistics.add(judge.extractor.extract(images[start : min(start + 16, 60)]))
    scores = judge.scores(statistics, ("inception_score", "precision", "recall"))
    drawn, held = judge.extractor.extract(images), judge.extractor.extract(real).pooled
    apart = cdist(held, drawn.pooled)
    reach = np.sort(cdist(held, held), axis=1)[:, 3], np.sort(cdist(drawn.pooled, drawn.pooled), axis=1)[:, 3]
    assert scores["precision"] == pytest.approx((apart <= reach[0][:, None]).any(axis=0).mean(), abs=0.02)
    assert scores["recall"] == pytest.approx((apart <= reach[1][None, :]).any(axis=1).mean(), abs=0.002)
    assert scores["inception_score"] == pytest.approx(inception_score(drawn.logits))


def test_a_users_own_metric_and_features_are_columns(tmp_path):
    Metric(
        "middle", of=lambda features, reference: abs(features.mean() - reference.mean()), label="CM", better="higher"
    )
    Features("rows_of", make=lambda images: images.reshape(len(images), 8, 8).mean(2), channels=1)
    run = run_of(features="rows_of", metrics=("middle", "precision"))
    assert finish(tmp_path, run) == "done"
    value = recorded(tmp_path, run)
    assert list(value["scores"]) == ["fd_rows_of", "middle_rows_of", "precision_rows_of"]
    assert value["protocol"]["features"].startswith("rows_of@") and value["protocol"]["metric"] == "fd_rows_of"
    own = metric("middle").as_data()
    assert (own["kind"], own["label"], own["better"]) == ("Metric", "CM", "higher")
    Metric("middle", of=lambda features, reference: 7.0, label="CM")  # other code under the name
    changed = run_of(features="rows_of", metrics=("middle", "precision"))
    assert changed.evaluations[0].key == run.evaluations[0].key
    assert RunStore(tmp_path, changed).missing_metrics(changed.evaluations[0]) == (changed.evaluations[0].metrics[1],)
    assert finish(tmp_path, changed) == "done"
    assert recorded(tmp_path, changed)["scores"] == {**value["scores"], "middle_rows_of": 7.0}


def broken(features, reference):
    raise ZeroDivisionError("by nothing")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metrics": (Metric("breaks", of=broken),)}, "metric 'breaks' raised ZeroDivisionError: by nothing"),
        (
            {"metrics": (Metric("endless", of=lambda f, r: np.inf),)},
            "metric 'endless' is inf: expected a finite number",
        ),
        ({"features": Features("gaps", make=lambda x: x[:, :3, 0, 0] * np.nan, channels=1).name}, "not finite"),
        ({"features": Features("flat", make=lambda x: x.mean(), channels=1).name}, "features 'flat' gave"),
        ({"features": Features("coloured", make=broken, channels=3).name}, "take images of 3 channel(s)"),
        ({"features": "rows", "metrics": ("is",)}, "no inception_score: these features have no logits part"),
        ({"features": "digit"}, "unknown features 'digit'"),
    ],
    ids=["raises", "infinite", "nan", "shape", "channels", "no logits", "unknown"],
)
def test_what_cannot_be_scored_fails_before_training(tmp_path, changes, said):
    Features("rows", make=lambda images: images.reshape(len(images), 8, 8).mean(2), channels=1)
    run = run_of(**changes)
    assert finish(tmp_path, run) == "failed"
    status = RunStore(tmp_path, run).status()
    assert said in status["reason"] and status["step"] == 0


def test_an_unknown_metric_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"unknown metric 'presicion'.*did you mean 'precision'"):
        replace(PLAIN, metrics=("presicion",))
    with pytest.raises(UserError, match=r"expected a sequence of names"):
        canonical("kid")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Metric("fid", of=broken), "metric 'fid' is one of the package's own"),
        (lambda: Metric("sfd", of=broken), "would stand where 'sfid' does"),
        (lambda: Metric("c m", of=broken), "expected a name of letters"),
        (lambda: Metric("cm", of=broken, needs=("feature",)), "did you mean 'features'"),
        (lambda: Features("digits", make=broken, channels=1), "one of the package's own"),
        (lambda: Features("mine"), "give make=, a function of images, or data="),
    ],
    ids=["name", "stem", "letters", "needs", "features", "empty"],
)
def test_a_record_that_cannot_be_is_refused(make, said):
    with pytest.raises(UserError) as raised:
        make()
    assert said in str(raised.value)


def test_scores_under_another_protocol_are_not_mixed(plain, tmp_path):
    run = run_of(metrics=("kid", "fid_infinity", "recall", "is", "sfid", "precision"))
    path = RunStore(plain, run).evaluation_path(run.evaluations[0])
    value = read_evaluation(path)
    path.write_text(json.dumps({**value, "protocol": {**value["protocol"], "reference_sha256": "0"}}))
    assert finish(plain, run) == "failed"
    assert "was scored under another protocol (reference_sha256)" in RunStore(plain, run).status()["reason"]
    path.write_text(json.dumps(value))


def test_the_protocol_of_the_first_version_and_its_file_are_unchanged(plain):
    value = recorded(plain, run_of())
    assert list(value["protocol"]) == [
        *("features", "num_samples", "sampling_steps", "sampler", "cfg_scale", "cfg_channels", "ema", "decoder"),
        *(
            "sample_seed",
            "extractor",
            "extractor_sha256",
            "resize",
            "reference",
            "reference_sha256",
            "metric",
            "timesteps",
        ),
    ]
    assert digest(run_of(metrics=ALL).evaluations[0].declared) == PLAIN.key
