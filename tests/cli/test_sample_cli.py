"""`dit sample`: what it writes, that nothing but seed and number decides an image, what it refuses, and what a kill leaves."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN
from PIL import Image
from safetensors.numpy import save_file

import dit.score.sample_images
from dit.cli import main
from dit.data.decoding import Decoder, open_decoder
from dit.data.image_sets import open_images
from dit.design.config import BLOCKS, DATASETS, Evaluation, RunConfig, model_config
from dit.errors import UserError
from dit.score.sample_images import SampleRun, draw, tile
from dit.score.sampling import Sampler
from dit.store.study import RunStore, Study, load_study, save_study
from dit.train.checkpoint import CheckpointWriter
from dit.train.restore import Declared, Loaded, open_checkpoint, read_official, save_imported
from dit.train.step import build
from dit.weights.vae import LATENT_SCALE

ROOT = Path(__file__).parents[2]
DRAWN = Evaluation(step=1, features="none", num_samples=1, sampling_steps=2, sample_seed=5)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae") / "tiny-vae"
    folder.mkdir()
    shutil.copy(GOLDEN / "vae_tiny.json", folder / "config.json")
    shutil.copy(GOLDEN / "vae_tiny.safetensors", folder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference's small latent model, imported."""
    folder = tmp_path_factory.mktemp("weights")
    with np.load(GOLDEN / "model_patch4.npz") as values:
        tensors = {n.removeprefix("state_dict/"): values[n] for n in values.files if n.startswith("state_dict/")}
    save_file(tensors, folder / "official.safetensors")
    save_imported(read_official(folder / "official.safetensors", Declared(4)), folder / "dit")
    return folder / "dit"


@pytest.fixture(scope="module")
def latent(checkpoint: Path, vae: Path) -> tuple[Loaded, Decoder]:
    loaded = open_checkpoint(checkpoint)
    return loaded, open_decoder(vae, loaded.data)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of digits with four cells, of which two have weights: random ones, scaled so that images differ."""
    folder, data = tmp_path_factory.mktemp("study"), DATASETS["digits"]
    cells = [(block, patch) for block in ("adaln_zero", "in_context") for patch in (4, 2)]
    runs = [
        RunConfig(model=model_config(block, "S", patch, data, ladder="nano"), data=data, steps=3)
        for block, patch in cells
    ]
    save_study(folder, Study("small", "", tuple(runs)))
    rng = np.random.default_rng(0)
    for run in (runs[0], runs[3]):
        record = RunStore(folder, run)
        record.create()
        shapes = jax.eval_shape(build(run).init).ema
        weights = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape).astype(np.float32)), shapes)
        with CheckpointWriter(record.path / "ema", run.hash) as writer:
            writer.save(3, weights)
    return folder


@pytest.fixture(scope="module")
def digits(study: Path) -> Path:
    return next(path for path in (study / "runs").glob("adaln_zero*"))


@pytest.fixture(scope="module")
def pixels(digits: Path) -> Loaded:
    return open_checkpoint(digits)


@pytest.fixture(scope="module")
def samplers(pixels: Loaded):
    """Samplers of `pixels` by batch size, so that many short runs compile once."""
    return functools.cache(lambda batch_size: Sampler(pixels.apply, pixels.model, pixels.diffusion, batch_size))


@pytest.fixture
def compiled_once(samplers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        dit.score.sample_images, "Sampler", lambda apply, model, diffusion, batch_size, objective: samplers(batch_size)
    )


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def test_the_file_holds_what_the_sampler_draws_and_the_decoder_makes_of_it(
    checkpoint, vae, latent, tmp_path: Path, capsys
) -> None:
    options = [
        "--labels",
        "3,7",
        "--num",
        "6",
        "--steps",
        "2",
        "--seed",
        "5",
        "--batch-size",
        "4",
        "--cfg-scale",
        "2",
        "--png-grid",
    ]
    assert main(["sample", str(checkpoint), "--vae", str(vae), "--out", str(tmp_path / "s"), *options]) == 0
    loaded, decoder = latent
    evaluation = dataclasses.replace(DRAWN, cfg_scale=2.0)
    sampler = Sampler(loaded.apply, loaded.model, loaded.diffusion, batch_size=4)
    drawn = np.concatenate(
        [b.images for b in sampler.draw(loaded.params, evaluation, 0, 6, np.array([3, 7], np.int32))]
    )
    decoded = np.asarray(decoder.vae.decode(jnp.asarray(drawn / np.float32(LATENT_SCALE))))
    expected = np.clip(127.5 * decoded + 128, 0, 255).astype(np.uint8)
    found = arrays(tmp_path / "s" / "samples.npz")
    assert found["arr_0"].dtype == np.uint8 and found["arr_0"].shape == (6, 64, 64, 3)
    assert np.abs(found["arr_0"].astype(int) - expected).max() <= 1 and (found["arr_0"] == expected).mean() > 0.999
    assert found["arr_1"].tolist() == [3, 7, 3, 7, 3, 7]
    with Image.open(tmp_path / "s" / "samples.png") as grid:
        np.testing.assert_array_equal(np.asarray(grid)[:64, 64:128], found["arr_0"][1])
    images = open_images(str(tmp_path / "s" / "samples.npz"), 3)
    assert images.protocol == {
        "sampler": "ddpm",
        "sampling_steps": 2,
        "cfg_scale": 2.0,
        "cfg_channels": 3,
        "ema": True,
        "sample_seed": 5,
        "decoder": f"tiny-vae@{decoder.sha256[:12]}",
    }
    made_by = json.loads(str(found["made_by"]))
    assert (made_by["checkpoint_identity"], made_by["decoder_sha256"]) == (loaded.identity, decoder.sha256)
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["samples.json", "samples.npz", "samples.png"]
    assert "6 images of official.safetensors" in capsys.readouterr().out


def test_an_image_does_not_change_with_the_batch_or_with_how_its_label_was_chosen(
    pixels: Loaded, compiled_once, tmp_path: Path
) -> None:
    whole = SampleRun(tmp_path / "a.npz", 7, DRAWN, batch_size=7)
    draw(whole, pixels, None)
    images, labels = (arrays(tmp_path / "a.npz")[name] for name in ("arr_0", "arr_1"))
    assert images.shape == (7, 8, 8, 1) and len(set(labels.tolist())) > 1
    draw(dataclasses.replace(whole, out=tmp_path / "b.npz", batch_size=3), pixels, None)
    draw(dataclasses.replace(whole, out=tmp_path / "c.npz", num=5, labels=tuple(labels.tolist())), pixels, None)
    for name, count in (("b", 7), ("c", 5)):
        other = arrays(tmp_path / f"{name}.npz")
        assert np.abs(other["arr_0"].astype(int) - images[:count]).max() <= 1
        assert other["arr_1"].tolist() == labels[:count].tolist()


class Killed(BaseException):
    """Stands for a kill."""


def test_a_resumed_run_and_a_divided_one_end_in_the_same_bytes(pixels: Loaded, compiled_once, tmp_path: Path) -> None:
    run = SampleRun(tmp_path / "whole.npz", 22, DRAWN, batch_size=4, shard_size=8)
    assert draw(run, pixels, None)
    expected = run.npz.read_bytes()
    draw(dataclasses.replace(run, out=tmp_path / "one.npz", shard_size=32), pixels, None)
    np.testing.assert_array_equal(arrays(tmp_path / "one.npz")["arr_0"], arrays(run.npz)["arr_0"])

    def stop(done: int, total: int) -> None:
        if done == 12:
            raise Killed

    killed = dataclasses.replace(run, out=tmp_path / "killed.npz")
    with pytest.raises(Killed):
        draw(killed, pixels, None, stop)
    assert not killed.npz.exists() and [p.name for p in (tmp_path / "killed.npz.partial").glob("*.npz")] == [
        "shard-00000.npz"
    ]
    seen: list[int] = []
    assert draw(killed, pixels, None, lambda done, total: seen.append(done))
    assert seen[0] == 8 and killed.npz.read_bytes() == expected
    assert not (tmp_path / "killed.npz.partial").exists()

    parts = [dataclasses.replace(run, out=tmp_path / "parts.npz", process_index=i, process_count=2) for i in (1, 0)]
    assert [draw(part, pixels, None) for part in parts] == [False, True]
    assert parts[0].npz.read_bytes() == expected


def test_other_samples_are_neither_written_over_nor_mixed(pixels: Loaded, compiled_once, tmp_path: Path) -> None:
    run = SampleRun(tmp_path / "s.npz", 4, DRAWN, batch_size=4, shard_size=2)

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise Killed

    with pytest.raises(Killed):
        draw(run, pixels, None, stop)
    other = dataclasses.replace(run, drawn=dataclasses.replace(DRAWN, sample_seed=6))
    with pytest.raises(UserError, match="begun with another protocol"):
        draw(other, pixels, None)
    assert draw(run, pixels, None)
    before = run.npz.read_bytes()
    assert draw(run, pixels, None)
    with pytest.raises(UserError, match="holds other samples"):
        draw(other, pixels, None)
    assert run.npz.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--vae"),
        (["--vae", "VAE", "--labels", "3,10"], "label 10"),
        (["--vae", "VAE", "--labels", "cat"], "--labels cat"),
        (["--vae", "VAE", "--steps", "1001"], "sampling_steps 1001"),
        (["--vae", "VAE", "--num", "0"], "--num 0"),
        (["--vae", "VAE", "--cfg-channels", "some"], "--cfg-channels some"),
        (["--vae", "VAE", "--seed", "-1"], "--seed -1"),
        (["--vae", "VAE", "--step", "3"], "--step 3"),
        (["--vae", "nowhere"], "no autoencoder at nowhere"),
        (["--vae", "VAE", "--process-index", "1"], "--process-index"),
        (["--vae", "VAE", "--grid", "x"], "one of CHECKPOINT and --grid"),
        (["--vae", "VAE", "--distributed"], "no other processes are to be found"),
        (["--vae", "VAE", "--distributed", "--process-index", "0", "--process-count", "2"], "leave --grid and"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(checkpoint, vae, tmp_path: Path, capsys, options, message) -> None:
    options = [str(vae) if option == "VAE" else option for option in options]
    assert main(["sample", str(checkpoint), "--out", str(tmp_path / "s.npz"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_pixels_need_no_autoencoder_and_take_none(digits: Path, vae: Path, tmp_path: Path, capsys) -> None:
    assert main(["sample", str(digits), "--out", str(tmp_path / "s.npz"), "--vae", str(vae)]) == 2
    assert "leave --vae out" in capsys.readouterr().err


def test_an_autoencoder_of_another_size_is_refused(vae: Path) -> None:
    with pytest.raises(UserError, match="makes 4x4x4 latents of 32 px images, the model's are 8x8x4"):
        open_decoder(vae, dataclasses.replace(DATASETS["imagenet256"], image_size=32, input_size=8))


def test_a_checkpoint_is_scored_as_its_samples_are(digits: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    scored = ["--reference", "digits", "--extractor", "digits", "--metrics", "fid", "--json"]
    drawn = ["--num-samples", "16", "--sampling-steps", "2", "--sample-seed", "5"]
    assert main(["evaluate", str(digits), *drawn, *scored]) == 0
    (direct,) = json.loads(capsys.readouterr().out)
    assert main(["sample", str(digits), "--num", "16", "--steps", "2", "--seed", "5", "--out", "own.npz"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "own.npz", *scored]) == 0
    (indirect,) = json.loads(capsys.readouterr().out)
    assert direct["fd_digits"] == indirect["fd_digits"]
    assert direct["protocol"] == indirect["protocol"]


def test_images_are_tiled_row_by_row() -> None:
    images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
    np.testing.assert_array_equal(tile(images)[:, :, 0], [[0, 1], [2, 255]])


def test_one_noise_and_one_label_through_every_cell_of_a_study(study: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "grid.png"
    assert main(["sample", "--grid", str(study), "--label", "4", "--seed", "5", "--steps", "2", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "2 cells, label 4, seed 5" in said.out and "2 of 4 cells have no checkpoint yet" in said.err
    with Image.open(out) as picture:
        pixels = np.asarray(picture.convert("L"))
    # two panels of one row and two columns, 8x8 images twelve times enlarged
    assert pixels.shape == (2 * (2 * 24 + 100), 56 + 2 * 100)
    run = next(run for run in load_study(study).runs if (run.model.block, run.model.patch_size) == ("adaln_zero", 4))
    loaded = open_checkpoint(RunStore(study, run).path)
    sampler = Sampler(loaded.apply, loaded.model, loaded.diffusion, 1)

    def image(label: int) -> np.ndarray:
        drawn = next(sampler.draw(loaded.params, DRAWN, 0, 1, np.array([label], np.int32)))
        return np.clip(127.5 * drawn.images[0, :, :, 0] + 128, 0, 255).astype(np.uint8)

    expected = image(4)
    assert not np.array_equal(expected, image(0))
    # adaLN-Zero comes last in the paper's order of blocks, the largest patch first
    assert BLOCKS.index("adaln_zero") > BLOCKS.index("in_context")
    np.testing.assert_array_equal(pixels[148 + 48 : 148 + 48 + 96 : 12, 56 : 56 + 96 : 12], expected)


def command(digits: Path, out: Path) -> list[str]:
    options = ["--num", "2000", "--steps", "2", "--batch-size", "50", "--shard-size", "100", "--out", str(out)]
    return [sys.executable, "-m", "dit", "sample", str(digits), *options]


@pytest.mark.slow
def test_two_thousand_samples_are_the_same_after_two_kills(digits: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    out, partial = tmp_path / "killed.npz", tmp_path / "killed.npz.partial"
    for finished in (2, 9):
        process = subprocess.Popen(
            command(digits, out), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        while process.poll() is None and len(list(partial.glob("shard-*.npz"))) < finished:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL and not out.exists()
    kept = {path.name: path.stat().st_mtime_ns for path in partial.glob("shard-*.npz")}
    assert 9 <= len(kept) < 20
    done = subprocess.run(command(digits, out), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "2,000 images" in done.stdout, done.stderr
    straight = subprocess.run(
        command(digits, tmp_path / "straight.npz"), cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert straight.returncode == 0, straight.stderr
    assert out.read_bytes() == (tmp_path / "straight.npz").read_bytes()
    assert not partial.exists()


@pytest.mark.slow
def test_the_number_of_devices_does_not_change_an_image(checkpoint: Path, vae: Path, latent, tmp_path: Path) -> None:
    options = [
        "--vae",
        str(vae),
        "--num",
        "10",
        "--steps",
        "2",
        "--batch-size",
        "6",
        "--out",
        str(tmp_path / "four.npz"),
    ]
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "dit", "sample", str(checkpoint), *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    loaded, decoder = latent
    draw(SampleRun(tmp_path / "one.npz", 10, dataclasses.replace(DRAWN, sample_seed=0), batch_size=6), loaded, decoder)
    four, one = arrays(tmp_path / "four.npz"), arrays(tmp_path / "one.npz")
    assert np.abs(four["arr_0"].astype(int) - one["arr_0"]).max() <= 1
    assert four["arr_1"].tolist() == one["arr_1"].tolist()
