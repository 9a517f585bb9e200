"""`dit encode` on trees of generated JPEGs, good and bad: what it writes, what it refuses, and what a kill leaves."""

from __future__ import annotations

import argparse
import dataclasses
import json
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
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file
from sklearn.datasets import load_sample_images

import dit.data.encode
from dit.cli import encode as verb
from dit.data.decoded_latents import open_decoded
from dit.data.encode import EncodeRun, encode
from dit.data.image_tree import find_images
from dit.data.images import load_square, to_model
from dit.data.latents import LatentDataset, LatentSource
from dit.data.shards import MANIFEST, open_latents, shard_name
from dit.errors import UserError
from dit.weights.vae import AutoencoderKL
from dit.weights.vae_weights import load_vae, read_config, tensor_shapes

ROOT = Path(__file__).parents[2]
SIZE = 16


def write_vae(folder: Path, **changes: object) -> Path:
    """A random autoencoder of one halving, as a diffusers folder."""
    folder.mkdir(parents=True)
    raw = {"block_out_channels": [4, 8], "layers_per_block": 1, "norm_num_groups": 2} | changes
    (folder / "config.json").write_text(json.dumps(raw))
    config = read_config(folder / "config.json")
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in tensor_shapes(config).items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    return folder


def write_tree(root: Path, count: int, classes: int = 3) -> Path:
    """Patches of photographs as JPEGs, a folder per class."""
    photos = load_sample_images().images
    rng = np.random.default_rng(0)
    for i in range(count):
        y, x = rng.integers(0, 380), rng.integers(0, 590)
        folder = root / f"class{i % classes}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photos[i % 2][y : y + 40, x : x + 40 + i % 9]).save(folder / f"{i:05d}.jpg")
    return root


def add_odd_images(root: Path) -> None:
    """Four that must work and two that cannot, all in class0."""
    photo = Image.fromarray(load_sample_images().images[0]).resize((50, 40))
    photo.convert("L").save(root / "class0" / "grey.JPEG")
    photo.convert("CMYK").save(root / "class0" / "cmyk.jpg")
    photo.convert("P").save(root / "class0" / "palette.png", transparency=bytes(range(256)))
    photo.resize((3, 2)).save(root / "class0" / "tiny.png")
    photo.save(root / "class0" / "cut.jpg")
    data = (root / "class0" / "cut.jpg").read_bytes()
    (root / "class0" / "cut.jpg").write_bytes(data[: len(data) // 2])
    (root / "class0" / "html.jpg").write_bytes(b"<html>not found</html>")


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vae(tmp_path_factory.mktemp("vae") / "tiny")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_tree(tmp_path_factory.mktemp("images"), 30)
    add_odd_images(root)
    return root


@pytest.fixture(scope="module")
def job(tree: Path, vae: Path, tmp_path_factory: pytest.TempPathFactory) -> EncodeRun:
    """A finished run on the tree: 36 images in three shards of 16, 16 and 4."""
    out = tmp_path_factory.mktemp("latents") / "whole"
    run = EncodeRun(tree, vae, SIZE, out, shard_size=16, max_broken=0.1)
    encode(run)
    return run


@nnx.jit
def posterior(model: AutoencoderKL, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    return model.encode(images)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


def test_records_hold_the_posterior_of_the_image_and_of_its_mirror(job: EncodeRun) -> None:
    folder, manifest = open_latents(job.out)
    source = LatentSource(folder, manifest)
    model, _ = load_vae(job.vae)
    for index in (0, 7, len(source) - 1):
        record = source[index]
        square = to_model(load_square(job.images / record.image_id, SIZE))
        both = jnp.asarray(np.stack([square, square[:, ::-1]]))
        mean, logvar = posterior(model, both)
        np.testing.assert_allclose(record.moments[:, 0], np.asarray(mean), rtol=2e-3, atol=1e-3)
        np.testing.assert_allclose(record.moments[:, 1], np.exp(np.asarray(logvar) / 2), rtol=2e-3, atol=1e-3)
        assert record.label == int(Path(record.image_id).parts[0][-1])


def test_odd_images_are_encoded_and_broken_ones_listed(job: EncodeRun) -> None:
    folder, manifest = open_latents(job.out)
    source = LatentSource(folder, manifest)
    encoded = [source[i].image_id for i in range(len(source))]
    assert dict(manifest.broken).keys() == {"class0/cut.jpg", "class0/html.jpg"}
    assert "truncated" in dict(manifest.broken)["class0/cut.jpg"].lower()
    assert {"class0/grey.JPEG", "class0/cmyk.jpg", "class0/palette.png", "class0/tiny.png"} <= set(encoded)
    expected = [path for path, _ in find_images(job.images).images if path not in dict(manifest.broken)]
    assert encoded == expected and len(encoded) == 34
    assert manifest.settings.classes == ("class0", "class1", "class2")


def test_training_reads_what_was_encoded(job: EncodeRun) -> None:
    latents, labels = LatentDataset(job.out, 8, seed=0).batch(0)
    assert latents.shape == (8, SIZE // 2, SIZE // 2, 4)
    assert np.isfinite(latents).all() and set(labels.tolist()) <= {0, 1, 2}


def test_three_processes_write_what_one_writes(job: EncodeRun, tmp_path: Path) -> None:
    manifests = []
    for index in (2, 0, 1):
        part = dataclasses.replace(job, out=tmp_path / "out", process_index=index, process_count=3, max_broken=1.0)
        manifests.append(encode(part)[1])
    assert manifests[:2] == [None, None] and manifests[2] is not None
    assert contents(tmp_path / "out") == contents(job.out)


def test_a_second_run_does_nothing_again(job: EncodeRun) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in job.out.glob("*.arrayrecord")}
    progress, manifest = encode(job)
    assert (progress.resumed, progress.done, progress.broken) == (36, 36, 2)
    assert manifest == open_latents(job.out)[1]
    assert before == {path.name: path.stat().st_mtime_ns for path in job.out.glob("*.arrayrecord")}


def test_a_lost_shard_is_made_again_alike(job: EncodeRun, tmp_path: Path) -> None:
    shutil.copytree(job.out, tmp_path / "out")
    (tmp_path / "out" / shard_name(1)).write_bytes(b"half a shard")
    (tmp_path / "out" / MANIFEST).unlink()
    encode(dataclasses.replace(job, out=tmp_path / "out"))
    assert contents(tmp_path / "out") == contents(job.out)


COMMAND = "import sys; import dit.cli as c; c.VERBS.setdefault('encode', ''); sys.exit(c.main(sys.argv[1:]))"


def command(run: EncodeRun, **changes: object) -> list[str]:
    run = dataclasses.replace(run, **changes)
    options = ["--images", run.images, "--vae", run.vae, "--image-size", run.image_size, "--out", run.out]
    options += ["--shard-size", run.shard_size, "--max-broken", run.max_broken, "--batch-size", 4]
    return [sys.executable, "-c", COMMAND, "encode", *map(str, options)]


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_files(vae: Path, tmp_path: Path) -> None:
    run = EncodeRun(write_tree(tmp_path / "images", 400), vae, SIZE, tmp_path / "killed", shard_size=20)
    killed = 0
    for finished in (1, 6):
        process = subprocess.Popen(command(run), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while process.poll() is None and len(list(run.out.glob("shard-*.json"))) < finished:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        assert process.communicate()[0] == b""
        for shard in run.out.glob("*.arrayrecord"):
            assert shard.stat().st_size > 0
    assert killed == 2 and not (run.out / MANIFEST).exists()
    kept = {p.name: p.stat().st_mtime_ns for p in run.out.glob("*.arrayrecord") if p.with_suffix(".json").exists()}
    done = subprocess.run(command(run), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "400 images in 20 shards" in done.stdout
    assert len(kept) >= 6
    assert all((run.out / name).stat().st_mtime_ns == when for name, when in kept.items())
    encode(dataclasses.replace(run, out=tmp_path / "straight", batch_size=4))
    assert contents(run.out) == contents(tmp_path / "straight")


MEMORY = """
import resource, sys
from pathlib import Path
from dit.data.decoded_latents import open_decoded
from dit.data.encode import EncodeRun, encode
images, vae, out = map(Path, sys.argv[1:])
encode(EncodeRun(images, vae, 96, out, shard_size=40, batch_size=4))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    vae = write_vae(tmp_path / "vae", mid_block_add_attention=False)
    peaks = []
    for count in (120, 1200):
        images = write_tree(tmp_path / f"images{count}", count)
        arguments = [sys.executable, "-c", MEMORY, str(images), str(vae), str(tmp_path / f"out{count}")]
        peaks.append(int(subprocess.run(arguments, cwd=ROOT, capture_output=True, check=True, text=True).stdout))
    # Holding on to 1,080 more squares of 27 KB would cost 30 MB, to their records 80 MB. The allocator itself is good for 10.
    assert peaks[1] - peaks[0] < 20_000, f"peak memory in KB: {peaks}"


def test_a_full_disk_is_said_and_leaves_no_shard(
    job: EncodeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = dataclasses.replace(job, out=tmp_path / "out")
    run.out.mkdir()
    (run.out / f"{shard_name(1)}.tmp").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"the disk of .* is full; finished shards are kept"):
        encode(run)
    assert sorted(path.name for path in run.out.glob("shard*")) == ["shard-00000.arrayrecord", "shard-00000.json"]
    encode(run)
    assert contents(run.out) == contents(job.out)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: argparse.Namespace(free=10))
    with pytest.raises(UserError, match=r"0\.0 GB free; the 36 images left need"):
        encode(dataclasses.replace(job, out=tmp_path / "other"))


def test_too_many_broken_images_are_an_error_that_names_one(job: EncodeRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"2 of 36 images are broken, .*class0/cut\.jpg: .*[Tt]runcated"):
        encode(dataclasses.replace(job, out=tmp_path / "out", max_broken=0.05))
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_a_folder_begun_otherwise_is_refused(job: EncodeRun, vae: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was begun with image_size 16, now it is 32"):
        encode(dataclasses.replace(job, image_size=32))
    shutil.copytree(vae, tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match="was begun with vae_sha256"):
        encode(dataclasses.replace(job, vae=tmp_path / "vae"))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / shard_name(0)).touch()
    with pytest.raises(UserError, match=r"holds shards but no plan\.json"):
        encode(dataclasses.replace(job, out=tmp_path / "old"))


def test_two_writers_of_one_part_are_refused(job: EncodeRun) -> None:
    with dit.data.encode._alone(job), pytest.raises(UserError, match="another encode is writing process 0 of 1"):
        encode(job)


def test_bad_input_is_named_before_anything_is_written(job: EncodeRun, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "flat" / "a.png")
    grey = write_vae(tmp_path / "grey", in_channels=1)
    cases = [
        ({"images": tmp_path / "nowhere"}, "no folder of images"),
        ({"images": tmp_path / "empty"}, "no images in class folders"),
        ({"images": tmp_path / "flat"}, "1 images lie in it directly"),
        ({"vae": tmp_path / "nowhere"}, "no autoencoder at"),
        ({"vae": grey}, "takes 1 channels"),
        ({"image_size": 17}, "17 is not a multiple of the autoencoder's 2"),
        ({"process_index": 3, "process_count": 2}, "--process-index 3"),
        ({"max_broken": 2.0}, "--max-broken 2.0"),
    ]
    for change, message in cases:
        with pytest.raises(UserError, match=message):
            encode(dataclasses.replace(job, out=out, **change))
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", "path,label\nclass1/00001.jpg,4\nclass0/00000.jpg,0\n"),
        ("l.csv", "class1/00001.jpg, 4\n\nclass0/00000.jpg, 0\n"),
        ("l.json", '{"class1/00001.jpg": 4, "class0/00000.jpg": 0}'),
        ("l.json", '{"labels": [["class0/00000.jpg", 0], ["class1/00001.jpg", 4]]}'),
    ],
)
def test_label_files_say_which_images_and_what_they_are(tree: Path, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    found = find_images(tree, tmp_path / name)
    assert found.images == (("class0/00000.jpg", 0), ("class1/00001.jpg", 4))
    assert found.classes == ("0", "1", "2", "3", "4")


def test_label_names_are_numbered_in_sorted_order(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("class0/00000.jpg,zebra\nclass1/00001.jpg,ant\n")
    found = find_images(tree, tmp_path / "l.csv")
    assert (found.images, found.classes) == ((("class0/00000.jpg", 1), ("class1/00001.jpg", 0)), ("ant", "zebra"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "a.jpg\n", "has the line 'a.jpg'"),
        ("l.csv", "", "names no images"),
        ("l.csv", "a.jpg,1\na.jpg,2\n", r"labels a\.jpg twice"),
        ("l.csv", "../a.jpg,1\n", r"names '\.\./a\.jpg': expected paths of images under"),
        ("l.json", '{"/etc/a.jpg": 0}', "names '/etc/a.jpg': expected paths of images under"),
        ("l.csv", "a.jpg,1\nb.jpg,2\n", r"none of the 2 images"),
        ("l.json", "{", "is not JSON"),
        ("l.json", '{"labels": null}', "has no list of labels"),
        ("l.json", '{"a.jpg": 0.5}', "has no list of labels"),
    ],
)
def test_label_files_that_are_not_are_refused(tree: Path, tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        find_images(tree, tmp_path / name)


def run_verb(*options: object) -> int:
    parser = argparse.ArgumentParser()
    verb.configure(parser)
    return verb.run(parser.parse_args(list(map(str, options))))


def test_the_verb_reports_results_and_progress(
    job: EncodeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--images", job.images, "--vae", job.vae, "--image-size", SIZE, "--max-broken", 0.1]
    (tmp_path / "l.csv").write_text("class0/00000.jpg,0\nclass1/00001.jpg,1\nclass0/cut.jpg,0\nclass0/lost.jpg,0\n")
    labels = ["--labels", tmp_path / "l.csv", "--max-broken", 0.5]
    assert run_verb(*options, *labels, "--out", tmp_path / "out") == 0
    captured = capsys.readouterr()
    assert "2 images in 1 shards" in captured.out and "2 broken images left out" in captured.out
    assert "class0/lost.jpg: " in captured.out and "No such file" in captured.out
    assert "4 of 4 images" in captured.err and "images/s" in captured.err
    part = ["--process-index", 1, "--process-count", 2, "--shard-size", 20]
    assert run_verb(*options, *part, "--out", tmp_path / "parts") == 0
    assert "others are still to be encoded" in capsys.readouterr().out
    with pytest.raises(UserError, match="go together"):
        run_verb(*options, "--process-index", 1, "--out", tmp_path / "parts")
    with pytest.raises(UserError, match="--distributed numbers the processes itself"):
        run_verb(*options, *part, "--distributed", "--out", tmp_path / "parts")


def test_processes_of_a_slurm_step_divide_the_shards(job: EncodeRun, tmp_path: Path, capsys, monkeypatch) -> None:
    """By their numbers alone: one after the other, with nobody to connect to."""
    options = ["--images", job.images, "--vae", job.vae, "--image-size", SIZE, "--max-broken", 1, "--shard-size", 10]
    assert run_verb(*options, "--out", tmp_path / "alone") == 0
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "nowhere[1-2]")
    for number in (1, 0):
        monkeypatch.setenv("SLURM_PROCID", str(number))
        assert run_verb(*options, "--distributed", "--out", tmp_path / "two") == 0
        assert ("others are still to be encoded" in capsys.readouterr().out) == (number == 1)
    names = [path.name for path in sorted((tmp_path / "alone").glob("shard-*"))]
    assert len(names) > 2
    assert [path.name for path in sorted((tmp_path / "two").glob("shard-*"))] == names
    for name in names:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_the_autoencoders_scale_and_shift_reach_training_and_decoding(job: EncodeRun, tmp_path: Path) -> None:
    """The same weights under other factors: the same records, other latents in training, the same decoded images."""
    write_vae(tmp_path / "vae", scaling_factor=0.5, shift_factor=0.25)
    run = dataclasses.replace(job, vae=tmp_path / "vae", out=tmp_path / "out")
    encode(run)
    settings = open_latents(run.out)[1].settings
    assert (settings.latent_scale, settings.latent_shift) == (0.5, 0.25)
    assert "latent_shift" not in (job.out / MANIFEST).read_text()
    ours, theirs = (LatentDataset(out, 8, seed=0).batch(3)[0] for out in (run.out, job.out))
    np.testing.assert_allclose(ours, (theirs / 0.18215 - 0.25) * 0.5, rtol=1e-5, atol=1e-5)
    images = [
        next(open_decoded(str(out), vae).batches(4, 0, 4)) for out, vae in ((run.out, run.vae), (job.out, job.vae))
    ]
    np.testing.assert_array_equal(*images)
    with pytest.raises(UserError, match="begun with vae_sha256"):
        encode(dataclasses.replace(run, vae=job.vae))


@pytest.mark.parametrize(
    ("name", "value"),
    [("shard_size", 0), ("image_size", 0), ("num_images", -1), ("latent_size", 2**40), ("latent_scale", "x"), ("latent_scale", 0),
     ("latent_channels", 1.5), ("classes", 3), ("latent_shift", None), ("vae_sha256", 5)],
)  # fmt: skip
def test_a_manifest_of_impossible_numbers_is_refused(job: EncodeRun, tmp_path: Path, name: str, value: object) -> None:
    shutil.copytree(job.out, tmp_path / "out")
    raw = json.loads((tmp_path / "out" / MANIFEST).read_text())
    raw["settings"][name] = value
    (tmp_path / "out" / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(UserError, match="is not a manifest of latents"):
        open_latents(tmp_path / "out")
