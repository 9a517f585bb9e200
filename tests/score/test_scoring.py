"""Scores while training: zero for the real set, the floor of its halves, and a protocol that every part of changes."""

import dataclasses

import numpy as np
import pytest

from dit.data.batches import load_images
from dit.design.config import DATASETS, DiffusionConfig, Evaluation, RunArguments, RunConfig, model_config
from dit.errors import UserError
from dit.score.evaluation import take_in
from dit.score.scoring import open_scorer, protocol_hash, scorer

EVALUATION = Evaluation(step=100, features="digits", num_samples=64, sampling_steps=16)
RUN = RunConfig(model_config("adaln", "S", 2, DATASETS["digits"], "nano"), DATASETS["digits"], steps=100)


def distance(a, b):
    """Fréchet distance by the eigenvalues of the non-symmetric product of the covariances."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    roots = np.sqrt(np.maximum(np.linalg.eigvals(ca @ cb).real, 0))
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb) - 2 * roots.sum()


def features(images):
    return scorer("digits").extractor.extract(images).pooled


def distance_of(images):
    """As a run is scored: one pass over batches of 128."""
    judge = scorer("digits")
    statistics = judge.statistics(("fid",), len(images))
    take_in(statistics, judge.extractor, (images[i : i + 128] for i in range(0, len(images), 128)), lambda: None)
    return judge.scores(statistics, ("fid",))["fid"]


def test_the_real_set_scores_zero():
    images, _ = load_images("digits")
    assert abs(distance_of(images)) < 1e-6 * scorer("digits").floor


def test_a_score_is_the_distance_to_the_whole_real_set():
    images, _ = load_images("digits")
    worse = 255 - images[:500]
    assert distance_of(worse) == pytest.approx(distance(features(worse), features(images)), rel=1e-3)


def test_the_floor_is_the_distance_between_halves_and_below_that_of_a_single_class():
    pooled, labels = features(load_images("digits")[0]), load_images("digits")[1]
    halves = np.random.default_rng(0).permutation(len(pooled))
    expected = distance(pooled[halves[:898]], pooled[halves[898:]])
    assert scorer("digits").floor == pytest.approx(expected, rel=1e-2)
    zeros = distance_of(load_images("digits")[0][labels == 0])
    assert 0 < scorer("digits").floor < 0.05 * zeros


def test_a_protocol_says_everything_but_the_step():
    protocol = scorer("digits").protocol(RUN, EVALUATION)
    declared = {name: value for name, value in dataclasses.asdict(EVALUATION).items() if value not in (None, "", ())}
    assert declared.pop("step") == 100
    assert declared.pop("metrics") == ("fid",)  # no part of it
    assert declared.pop("precision") == "float32" and "precision" not in protocol  # named only where it is another
    assert declared.items() <= protocol.items()
    own = scorer("digits")
    assert {name: protocol[name] for name in protocol.keys() - declared.keys()} == {
        "extractor": "classifier-digits",
        "extractor_sha256": own.extractor.weights_sha256,
        "resize": "none",
        "reference": "digits",
        "reference_sha256": own.reference_sha256,
        "metric": "fd_digits",
        "timesteps": 1000,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"num_samples": 65}, {"sampling_steps": 17}, {"sampler": "ddim"}, {"cfg_scale": 1.5}, {"cfg_channels": None},
        {"ema": False}, {"decoder": "ft-mse"}, {"sample_seed": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_every_declared_part_changes_the_hash(changes):
    make = scorer("digits").protocol
    other = protocol_hash(make(RUN, dataclasses.replace(EVALUATION, **changes)))
    assert other != protocol_hash(make(RUN, EVALUATION))


def test_extractor_reference_and_process_change_the_hash_and_the_step_does_not():
    own = scorer("digits")
    same = protocol_hash(own.protocol(RUN, EVALUATION))
    assert protocol_hash(own.protocol(RUN, dataclasses.replace(EVALUATION, step=50))) == same
    retrained = dataclasses.replace(own, extractor=dataclasses.replace(own.extractor, weights_sha256="0"))
    hashes = {
        same,
        protocol_hash(retrained.protocol(RUN, EVALUATION)),
        protocol_hash(dataclasses.replace(own, reference_sha256="0").protocol(RUN, EVALUATION)),
        protocol_hash(own.protocol(dataclasses.replace(RUN, diffusion=DiffusionConfig(timesteps=100)), EVALUATION)),
    }
    assert len(hashes) == 4


def test_features_that_nothing_provides_are_refused():
    with pytest.raises(UserError, match=r"unknown features 'digit'.*did you mean 'digits'"):
        open_scorer(RUN, dataclasses.replace(EVALUATION, features="digit"), RunArguments())


def test_features_of_other_images_are_refused():
    for features, said in (("inception", "3 channel"), ("mnist", "32x32")):
        with pytest.raises(UserError, match=rf"'{features}' take images of {said}.*'digits'"):
            open_scorer(RUN, dataclasses.replace(EVALUATION, features=features), RunArguments())
