"""From photographs to a score and a picture: encode, train on latents, sample, evaluate, with a tiny autoencoder and tiny models."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN
from PIL import Image
from safetensors.numpy import save_file
from sklearn.datasets import load_sample_images

import dit.cli.evaluate
import dit.score.scoring
from dit.cli import main
from dit.data.decoding import open_decoder
from dit.data.shards import open_latents
from dit.design.config import Evaluation, RunArguments, RunConfig
from dit.errors import UserError
from dit.hosts.processes import Processes
from dit.runs.inputs import check_fit, identity, open_training_data
from dit.runs.journal import Journal
from dit.runs.run import execute
from dit.score import inception_weights, reference
from dit.score.features import Features, NetworkExtractor
from dit.score.metrics.frechet import Gaussian, frechet_distance
from dit.score.sampling import Sampler
from dit.score.scoring import open_scorer
from dit.store.files import read_json, write_json
from dit.store.lease import LeaseLost
from dit.store.study import RunStore, Study, save_study
from dit.train.restore import open_checkpoint
from sweeps.study import declared

ROOT = Path(__file__).parents[2]
STUDY = '''
"""Two small cells on 64 px photographs."""

from dit.design.config import DataConfig, Evaluation, ModelConfig, RunConfig

DATA = DataConfig("crops64", image_size=64, input_size=8, in_channels=4, num_classes=2)


def runs():
    return [
        RunConfig(
            model=ModelConfig(block, 4, 1, 16, 2, input_size=8, in_channels=4, num_classes=2, size="S"),
            data=DATA,
            steps=4,
            batch_size=4,
            evaluations=(Evaluation(4, "inception", num_samples=6, sampling_steps=2, decoder="tiny"),),
        )
        for block in ("adaln_zero", "in_context")
    ]
'''


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a user has on disk."""

    images: Path
    vae: Path
    latents: Path
    reference: Path
    study: Path


def crops(count: int, size: int) -> list[np.ndarray]:
    """Pieces of the two photographs that scikit-learn ships."""
    photos, rng = load_sample_images().images, np.random.default_rng(0)
    corners = [(rng.integers(0, 427 - size), rng.integers(0, 640 - size)) for _ in range(count)]
    return [photos[i % 2][y : y + size, x : x + size] for i, (y, x) in enumerate(corners)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    root = tmp_path_factory.mktemp("inputs")
    for i, crop in enumerate(crops(12, 80)):
        folder = root / "images" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(crop).save(folder / f"{i}.jpg")
    (root / "vae").mkdir()
    shutil.copy(GOLDEN / "vae_tiny.json", root / "vae" / "config.json")
    shutil.copy(GOLDEN / "vae_tiny.safetensors", root / "vae" / "diffusion_pytorch_model.safetensors")
    (root / "small.py").write_text(STUDY)
    np.savez(root / "real.npz", arr_0=np.stack(crops(8, 64)))
    encode = ["--images", root / "images", "--vae", root / "vae", "--image-size", 64, "--out", root / "latents"]
    assert main(["encode", *map(str, encode)]) == 0
    return Inputs(root / "images", root / "vae", root / "latents", root / "real.npz", root / "small.py")


def small_extractor(*_: object) -> NetworkExtractor:
    """Stands for Inception: 6 features of the mean colours of sixteenths, under Inception's interface."""
    weights = np.random.default_rng(0).standard_normal((48, 6)).astype(np.float32)

    def network(weights: jax.Array, images: jax.Array) -> Features:
        means = jnp.mean(images.astype(jnp.float32).reshape(len(images), 4, 16, 4, 16, 3), axis=(2, 4)) / 255
        features = means.reshape(len(images), 48) @ weights
        return Features(features, features[:, :2], features[:, 2:])

    return NetworkExtractor("small", "0" * 64, "none", network, weights, image_size=64, batch_size=8)


@pytest.fixture
def small_inception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dit.score.scoring, "make_extractor", small_extractor)
    monkeypatch.setattr(dit.cli.evaluate, "make_extractor", small_extractor)
    dit.score.scoring._of_decoded.cache_clear()


def arguments(inputs: Inputs) -> RunArguments:
    return RunArguments(
        data=str(inputs.latents), vae=str(inputs.vae), reference=str(inputs.reference), sample_batch_size=4
    )


def finished(folder: Path, inputs: Inputs, run: RunConfig, **changes: str) -> tuple[str, list[dict]]:
    events: list[dict] = []
    state = execute(folder, "small", run, dataclasses.replace(arguments(inputs), **changes), events.append)
    return state, events


@pytest.mark.slow
def test_from_photographs_to_scores_and_pictures(inputs: Inputs, small_inception, tmp_path: Path, capsys) -> None:
    study = declared(str(inputs.study))
    folder = tmp_path / "study"
    save_study(folder, Study("small", "", study.runs))
    for run in study.runs:
        state, events = finished(folder, inputs, run)
        assert state == "done", events[-1]
    run = study.runs[0]
    record = RunStore(folder, run)

    # The score is the distance between decoded samples of the averaged weights and the reference.
    loaded = open_checkpoint(record.path)
    assert loaded.step == 4 and loaded.data == run.data
    decoder = open_decoder(inputs.vae, run.data)
    sampler = Sampler(loaded.apply, loaded.model, loaded.diffusion, 4)
    drawn = np.concatenate([batch.images for batch in sampler.draw(loaded.params, run.evaluations[0], 0, 6)])
    features = small_extractor().extract(decoder.images(drawn)).pooled.astype(np.float64)
    real = small_extractor().extract(np.stack(crops(8, 64))).pooled.astype(np.float64)
    distance = frechet_distance(*(Gaussian(f.mean(0), np.cov(f, rowvar=False), len(f)) for f in (features, real)))
    (entry,) = record.evaluations()
    assert entry["scores"]["fid"] == pytest.approx(distance, rel=1e-3)
    protocol = entry["protocol"]
    assert (protocol["decoder"], protocol["decoder_sha256"]) == ("tiny", decoder.sha256)
    assert (protocol["extractor_sha256"], protocol["reference"]) == ("0" * 64, "real.npz")
    assert entry["floor"] is None
    with np.load(record.samples_path(run.evaluations[0])) as kept:
        assert kept["images"].shape == (6, 64, 64, 3) and kept["labels"].shape == (6,)

    # The same images again through the command, scored from the file.
    options = ["--vae", inputs.vae, "--num", 6, "--steps", 2, "--batch-size", 4, "--out", tmp_path / "s.npz"]
    assert main(["sample", str(record.path), *map(str, options)]) == 0
    evaluate = [tmp_path / "s.npz", "--reference", inputs.reference, "--metrics", "fid", "--out", tmp_path / "row.json"]
    assert main(["evaluate", *map(str, evaluate)]) == 0
    row = json.loads((tmp_path / "row.json").read_text())
    assert row["fid"] == pytest.approx(entry["scores"]["fid"], rel=0.01)
    assert row["decoder"] == f"vae@{decoder.sha256[:12]}" and row["sampling_steps"] == 2
    capsys.readouterr()


def test_every_missing_path_is_named_before_anything_compiles(
    inputs: Inputs, small_inception, tmp_path: Path, capsys
) -> None:
    (run, _) = declared(str(inputs.study)).runs
    for missing in ("data", "vae", "reference"):
        state, events = finished(tmp_path, inputs, run, **{missing: ""})
        assert state == "failed" and f"--{missing}" in events[-1]["reason"]
        assert not (RunStore(tmp_path, run).path / "checkpoints").exists()
        state, events = finished(tmp_path, inputs, run, **{missing: str(tmp_path / "nowhere")})
        assert state == "failed" and "nowhere" in events[-1]["reason"]
    assert main(["sweep", str(inputs.study), "--out", str(tmp_path / "out"), "--vae", "x"]) == 2
    assert "--data, --reference" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_random_inception_weights_never_make_a_score(inputs: Inputs) -> None:
    (run, _) = declared(str(inputs.study)).runs
    with pytest.raises(UserError, match="random weights score nothing"):
        open_scorer(run, run.evaluations[0], dataclasses.replace(arguments(inputs), inception="random:0"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"features": "digits"}, "expected inception"), ({"decoder": "none"}, "declares no decoder")],
)
def test_an_evaluation_that_does_not_suit_latents_is_refused(
    inputs: Inputs, changes: dict[str, str], message: str
) -> None:
    (run, _) = declared(str(inputs.study)).runs
    evaluation: Evaluation = dataclasses.replace(run.evaluations[0], **changes)
    with pytest.raises(UserError, match=message):
        open_scorer(run, evaluation, arguments(inputs))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 128, "input_size": 16}, "image_size is 64, data set 'crops64' needs 128"),
        ({"in_channels": 3}, "latent_channels is 4"),
        ({"num_classes": 1}, "2 classes, data set 'crops64' has 1"),
    ],
)
def test_latents_that_do_not_fit_the_study_are_refused(inputs: Inputs, changes: dict[str, int], message: str) -> None:
    (run, _) = declared(str(inputs.study)).runs
    _, manifest = open_latents(inputs.latents)
    check_fit(manifest, run.data, "here")
    with pytest.raises(UserError, match=message):
        check_fit(manifest, dataclasses.replace(run.data, **changes), "here")


def test_a_run_is_not_resumed_on_other_latents(inputs: Inputs, tmp_path: Path) -> None:
    (run, _) = declared(str(inputs.study)).runs
    dataset = open_training_data(run, arguments(inputs))
    latents, labels = dataset.batch(0)
    assert latents.shape == (4, 8, 8, 4) and set(labels.tolist()) <= {0, 1}
    allowed = [True]

    def fence() -> None:
        if not allowed[0]:
            raise LeaseLost

    journal = Journal(tmp_path, "small", run, arguments(inputs), lambda event: None, None, Processes())
    journal.fence, place = fence, journal.record.path / "data.json"
    allowed[0] = False
    with pytest.raises(LeaseLost):
        journal.trained_on(identity(dataset), "here")
    assert not place.exists()
    allowed[0] = True
    for _ in range(2):
        journal.trained_on(identity(dataset), "here")
    write_json(place, {**read_json(place), "latents": "0" * 64})
    with pytest.raises(UserError, match="here holds other latents than this run was begun on"):
        journal.trained_on(identity(dataset), "here")
    journal.processes.tell = lambda name, value: {**value, "latents": "1" * 64}
    with pytest.raises(UserError, match="here holds other latents than process 0"):
        journal.trained_on(identity(dataset), "here")


@pytest.mark.slow
def test_a_sweep_scores_with_the_real_inception(inputs: Inputs, tmp_path: Path) -> None:
    """Random weights in a file of the published layout, so the network is run, if not its meaning."""
    state = inception_weights.random(0)
    save_file(state, tmp_path / "inception.safetensors")
    identity = Gaussian(np.zeros(2048), np.eye(2048), None)
    made_by = {
        "extractor": "inception-2015",
        "extractor_sha256": inception_weights.weights_hash(state),
        "resize": "tf1-bilinear-299",
        "num_images": None,
        "source": "identity",
        "source_sha256": "0" * 64,
    }
    reference.save(tmp_path / "ref.npz", reference.Reference(identity, None, np.empty((0, 2048), np.float32), made_by))
    paths = ["--data", inputs.latents, "--vae", inputs.vae, "--inception", tmp_path / "inception.safetensors"]
    options = ["--out", tmp_path / "study", "--workers", 1, *paths, "--reference", tmp_path / "ref.npz"]
    command = [sys.executable, "-m", "dit", "sweep", str(inputs.study), *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for run in declared(str(inputs.study)).runs:
        (entry,) = RunStore(tmp_path / "study", run).evaluations()
        assert np.isfinite(entry["scores"]["fid"]) and entry["scores"]["fid"] > 0
        assert entry["protocol"]["extractor_sha256"] == made_by["extractor_sha256"]
