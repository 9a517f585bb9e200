"""Encoded images as a reference: against decoding by hand, and what does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN
from PIL import Image

import dit.cli.reference
from dit.cli import main
from dit.data.decoded_latents import open_decoded
from dit.data.decoding import open_decoder
from dit.data.latents import LatentSource
from dit.data.shards import open_latents
from dit.design.config import DataConfig
from dit.score.features import Features, NetworkExtractor

SIZE = 64


def extractor(*_: object) -> NetworkExtractor:
    """Six pooled features: a random projection of the mean colours of 64 squares."""
    weights = np.random.default_rng(0).standard_normal((192, 6)).astype(np.float32)

    def network(weights: jax.Array, images: jax.Array) -> Features:
        means = jnp.mean(images.astype(jnp.float32).reshape(len(images), 8, 8, 8, 8, 3), axis=(2, 4)) / 255
        features = means.reshape(len(images), 192) @ weights
        return Features(features, features[:, :2], features[:, 2:])

    return NetworkExtractor("squares", "0" * 64, "none", network, weights, image_size=SIZE, batch_size=4)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of latents of nine images, and the autoencoder that made them."""
    root = tmp_path_factory.mktemp("encoded")
    rng = np.random.default_rng(0)
    for i in range(9):
        folder = root / "images" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        smooth = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((SIZE // 8, SIZE // 8, 1)))
        Image.fromarray(smooth.astype(np.uint8)).save(folder / f"{i}.png")
    (root / "vae").mkdir()
    shutil.copy(GOLDEN / "vae_tiny.json", root / "vae" / "config.json")
    shutil.copy(GOLDEN / "vae_tiny.safetensors", root / "vae" / "diffusion_pytorch_model.safetensors")
    encode = ["--images", root / "images", "--vae", root / "vae", "--image-size", SIZE, "--out", root / "latents"]
    assert main(["encode", *map(str, encode)]) == 0
    return root / "latents", root / "vae"


def test_images_are_the_decoded_means_in_order(encoded: tuple[Path, Path]) -> None:
    latents, vae = encoded
    images = open_decoded(str(latents), vae)
    folder, manifest = open_latents(latents)
    decoder = open_decoder(vae, DataConfig("latents", SIZE, manifest.settings.latent_size, 4, 2))
    source = LatentSource(folder, manifest)
    assert len(images) == 9
    by_hand = np.concatenate(
        [decoder.images(source[i].moments[0, 0][None].astype(np.float32) * np.float32(0.18215)) for i in range(9)]
    )
    streamed = np.concatenate(list(images.batches(4, 0, 9)))
    assert streamed.shape == (9, SIZE, SIZE, 3)
    # Another place in the batch may round another way at a boundary of uint8's truncation.
    assert np.abs(streamed.astype(int) - by_hand).max() <= 1
    assert np.array_equal(np.concatenate(list(images.batches(2, 3, 7))), streamed[3:7])


def test_reference_by_command_holds_the_decoder_in_its_hash(
    encoded: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    latents, vae = encoded
    monkeypatch.setattr(dit.cli.reference, "make_extractor", extractor)
    out = tmp_path / "reference.npz"
    assert main(["reference", str(latents), "--vae", str(vae), "--out", str(out), "--json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)
    assert facts["source"] == "latents decoded by vae" and facts["num_images"] == 9
    images = open_decoded(str(latents), vae)
    assert facts["source_sha256"] == images.sha256
    with np.load(out) as arrays:
        features = extractor().extract(np.concatenate(list(images.batches(4, 0, 9)))).pooled
        np.testing.assert_allclose(arrays["mu"], features.astype(np.float64).mean(0), rtol=1e-5)


def test_what_does_not_fit_is_one_line(
    encoded: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    latents, vae = encoded
    monkeypatch.setattr(dit.cli.reference, "make_extractor", extractor)
    out = ["--out", str(tmp_path / "reference.npz")]
    for arguments, message in (
        (["reference", str(latents), *out], "holds latents: decode them with `dit reference"),
        (["reference", str(tmp_path), "--vae", str(vae), *out], "no latents at"),
        (["reference", "x.npz", "--vae", str(vae), "--made-with-resize", "none", *out], "give one of them"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not (tmp_path / "reference.npz").exists()
