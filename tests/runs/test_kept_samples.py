"""An evaluation that ends in its middle goes on with the next batch, to the same bits; what is not just its own is left aside."""

import numpy as np
import pytest

from dit.design import features as parts
from dit.design.config import Evaluation
from dit.hosts.processes import Processes
from dit.runs.draws import Draws
from dit.score import kept_samples
from dit.score.features import Features, OwnExtractor
from dit.score.kept_samples import KeptSamples
from dit.score.metrics.frechet import Gaussian
from dit.score.reference import Reference
from dit.score.sampling import Drawn, Sampler
from dit.score.scoring import Scorer
from dit.store.lease import LeaseLost, Stopped

SCORE = Evaluation(7, "digits", num_samples=22)
WEIGHTS = {"w": np.arange(3.0)}


class Killed(BaseException):
    """The end of the process, as far as the code under test can tell."""


class OneByOne(Sampler):
    """In the place of a sampler: image i is random under its own number. `drawn` tells which it was asked for."""

    batch_size = 4

    def __init__(self):
        self.drawn = []

    def draw(self, params, evaluation, start, stop, weak=None):
        for first in range(start, stop, self.batch_size):
            numbers = range(first, min(first + self.batch_size, stop))
            self.drawn.extend(numbers)
            images = [np.random.default_rng(number).uniform(-1, 1, (2, 2, 1)).astype(np.float32) for number in numbers]
            yield Drawn(np.stack(images), np.array(numbers, np.int32))


class OfPixels(Scorer):
    """A judge of images that sees every bit."""

    decoder, metrics = None, ("fid", "precision")

    def __init__(self):
        rng = np.random.default_rng(0)
        extractor = OwnExtractor(parts.Features("waves", make=features, channels=1), features)
        pooled, spatial = (Gaussian(np.zeros(n), np.eye(n), None) for n in (4, 2))
        self.__dict__ |= {
            "extractor": extractor,
            "real": Reference(pooled, spatial, rng.normal(size=(9, 4)).astype(np.float32), {}),
        }

    def statistics(self, metrics, num_samples):
        return super().statistics(self.metrics, num_samples)

    def scores(self, statistics, metrics):
        return super().scores(statistics, self.metrics)


class OfDecoded(OfPixels):
    """A judge whose samples are latents, and of every metric."""

    metrics = ("fid", "sfid", "inception_score", "precision", "kid")

    def images(self, drawn):
        return np.repeat(((drawn + 1) * 127).astype(np.uint8), 3, axis=3)


def features(images):
    flat = images.reshape(len(images), -1)[:, :: images.shape[3]].astype(np.float32)
    return Features(np.sin(flat), np.cos(flat[:, :2]), np.sin(flat[:, 1:] * 3))


@pytest.fixture(params=[OfPixels, OfDecoded])
def judge(request):
    return request.param()


@pytest.fixture(autouse=True)
def kept_after_every_batch(monkeypatch):
    monkeypatch.setattr(kept_samples, "SAVE_EVERY_S", 0.0)


def no_fence():
    pass


def score(judge, place, batches=100, end=Killed, made_of=("a run",), fence=no_fence):
    """The score as exact text with its images and labels, and which samples were drawn; ended so when that many batches are done."""
    sampler, asked = OneByOne(), []

    def go_on():
        asked.append(1)
        if len(asked) > batches:
            raise end

    kept = KeptSamples(place, list(made_of), Processes(), fence)
    try:
        found = Draws(sampler, Processes(), go_on).score(judge, SCORE, WEIGHTS, kept)
    except (Killed, Stopped):
        return None, sampler.drawn
    scores = {name: value.hex() for name, value in found.scores.items()}
    return (scores, found.images[:16].tobytes(), found.labels[:16].tobytes()), sampler.drawn


def test_killed_after_any_batch_it_goes_on_with_the_next_to_the_same_bits(judge, tmp_path):
    whole, drawn = score(judge, tmp_path / "none" / "kept")
    assert drawn == list(range(22))
    for batches in range(6):
        place = tmp_path / str(batches) / "kept"
        for dead in range(2):  # twice, the second time one batch further on
            assert score(judge, place, batches if dead == 0 else 1)[0] is None
        again, drawn = score(judge, place)
        assert again == whole
        assert drawn == list(range(4 * (batches + 1), 22))


def test_a_stop_keeps_what_is_done_though_nothing_was_due(judge, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_samples, "SAVE_EVERY_S", 1e9)
    assert score(judge, tmp_path / "d" / "kept", 3, Killed)[0] is None
    assert not (tmp_path / "d").exists()
    assert score(judge, tmp_path / "d" / "kept", 3, Stopped)[0] is None
    again, drawn = score(judge, tmp_path / "d" / "kept")
    assert drawn == list(range(12, 22)) and again == score(judge, tmp_path / "none" / "kept")[0]
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["kept"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "protocol", "weights"])
def test_what_is_damaged_or_of_other_samples_is_drawn_anew(judge, tmp_path, damage, monkeypatch):
    place = tmp_path / "kept"
    whole, _ = score(judge, tmp_path / "none")
    score(judge, place, 3)
    content = place.read_bytes()
    made_of = ("a run",)
    match damage:
        case "flipped":
            place.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
        case "cut":
            place.write_bytes(content[: len(content) // 2])
        case "empty":
            place.write_bytes(b"")
        case "protocol":
            made_of = ("another run",)
        case "weights":
            monkeypatch.setitem(WEIGHTS, "w", np.arange(3.0) + 1e-9)
    again, drawn = score(judge, place, made_of=made_of)
    assert (again, drawn) == (whole, list(range(22)))


def test_whoever_has_lost_the_run_writes_nothing(tmp_path):
    place, looks = tmp_path / "kept", []

    def fence():
        looks.append(1)
        if len(looks) > 1:
            raise LeaseLost

    with pytest.raises(LeaseLost):
        score(OfPixels(), place, fence=fence)
    assert score(OfPixels(), place)[1] == list(range(4, 22))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_processes_that_see_different_files_all_begin_anew(tmp_path):
    """Process 1 of two, whose view of a shared disk is old."""
    score(OfPixels(), tmp_path / "kept", 3)
    kept = KeptSamples(tmp_path / "kept", ["a run"], Processes(), no_fence)
    assert int(kept.load(WEIGHTS)["pooled_count"]) == 12
    kept._processes.tell = lambda name, value: "0" * 64
    assert kept.load(WEIGHTS) is None
