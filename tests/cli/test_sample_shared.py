"""`dit sample` and `dit evaluate` of a checkpoint in bfloat16, and shared between two real processes."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from process_group import free_port
from test_sample_cli import DRAWN, ROOT, digits, study  # noqa: F401
from worker_processes import ended

import dit.score.sample_images
from dit.cli import main
from dit.data.images import to_uint8
from dit.design.config import Evaluation
from dit.model.compute import require_precision
from dit.score.sampling import Sampler
from dit.train.restore import open_checkpoint


def test_bfloat16_is_drawn_where_the_device_has_it_and_refused_before_anything_else(
    digits: Path,  # noqa: F811
    tmp_path: Path,
    capsys,
    monkeypatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    drawn = [str(digits), "--num-samples", "16", "--sampling-steps", "2", "--sample-seed", "5"]
    scored = ["--reference", "digits", "--extractor", "digits", "--metrics", "fid", "--json"]
    half = ["--precision", "bfloat16"]
    volta = SimpleNamespace(platform="gpu", device_kind="Tesla V100", compute_capability="7.0")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(
            dit.score.sample_images, "require_precision", lambda given, _: require_precision(given, volta)
        )
        for command in (["evaluate", *drawn, *scored], ["sample", str(digits), "--out", "half.npz"]):
            assert main([*command, *half]) == 2
            error = capsys.readouterr().err
            assert "bfloat16 on Tesla V100, which has none" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
    with jax.numpy_dtype_promotion("standard"):
        assert main(["evaluate", *drawn, *scored, *half]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["model_precision"] == "bfloat16"
    (file,) = tmp_path.glob("*.npz")
    loaded = open_checkpoint(digits)
    assert Evaluation(1, "none", 16, 2, sample_seed=5, precision="bfloat16").key in file.name
    sampler = Sampler(loaded.apply, loaded.model, loaded.diffusion, 16)
    with jax.numpy_dtype_promotion("standard"):
        (expected,) = sampler.draw(loaded.params, dataclasses.replace(DRAWN, precision="bfloat16"), 0, 16)
    (exact,) = sampler.draw(loaded.params, DRAWN, 0, 16)
    with np.load(file) as found:
        pixels = found["arr_0"]
    np.testing.assert_array_equal(pixels, to_uint8(expected.images))
    assert not np.array_equal(pixels, to_uint8(exact.images))


def in_two(folder: Path, cache: Path, *arguments: str) -> list[tuple[int, str, str]]:
    """A verb of `dit` in two processes that find each other by DIT_* variables: exit code and output of each."""
    named = {"DIT_COORDINATOR": f"127.0.0.1:{free_port()}", "DIT_NUM_PROCESSES": "2", "JAX_PLATFORMS": "cpu"}
    named |= {"PYTHONPATH": str(ROOT), "DIT_CACHE": str(cache)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "dit", *arguments],
            env={**os.environ, **named, "DIT_PROCESS_ID": str(k)},
            cwd=folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for k in range(2)
    ]
    with ended(*processes):
        outputs = [process.communicate(timeout=600) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs)]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch) -> None:
    """A cache in which nobody has trained the extractor: a worker's compiler options would have given it other last bits."""
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "alone"))


@pytest.mark.long
@pytest.mark.usefixtures("own_cache")
def test_two_processes_sample_and_evaluate_as_one_does(
    digits: Path,  # noqa: F811
    tmp_path: Path,
    capsys,
    monkeypatch,
) -> None:
    """`--distributed` on the command line, by DIT_* variables: shards of samples, features and moments divided between two."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two").mkdir()
    drawn = ["--num-samples", "2048", "--sampling-steps", "2", "--sample-seed", "5"]
    scored = ["--reference", "digits", "--extractor", "digits", "--metrics", "fid", "inception_score", "--json"]
    assert main(["evaluate", str(digits), *drawn, *scored]) == 0
    (lone,) = json.loads(capsys.readouterr().out)
    two = functools.partial(in_two, tmp_path / "two", tmp_path / "cache")
    (code, out, _), (other, nothing, _) = two("evaluate", str(digits), *drawn, *scored, "--distributed")
    assert (code, other, nothing) == (0, 0, "")
    (row,) = json.loads(out)
    for name in ("fd_digits", "is_digits"):
        assert row.pop(name) == pytest.approx(lone.pop(name), rel=1e-4)
    assert {**row, "spreads": None} == {**lone, "spreads": None}
    (npz,) = (tmp_path / "two").glob("*.npz")
    assert npz.read_bytes() == (tmp_path / npz.name).read_bytes()
    refused = two("evaluate", "nothing.npz", *scored, "--distributed")
    assert [code for code, *_ in refused] == [2, 2]
    assert all(error.splitlines()[-1].startswith("dit evaluate: ") for *_, error in refused)
    options = ["--num", "8", "--steps", "2", "--shard-size", "4", "--out", "s.npz", "--distributed"]
    (code, said, _), (other, nothing, _) = two("sample", str(digits), *options)
    assert (code, other, nothing) == (0, 0, "") and "8 images" in said
    assert main(["sample", str(digits), *options[:-1]]) == 0
    assert (tmp_path / "two" / "s.npz").read_bytes() == (tmp_path / "s.npz").read_bytes()


@pytest.mark.long
@pytest.mark.usefixtures("own_cache")
def test_two_processes_make_the_reference_of_a_lone_one(tmp_path: Path, capsys, monkeypatch) -> None:
    """Each takes half of the images; their moments are one process's to rounding, the kept features each image's, in order."""
    monkeypatch.chdir(tmp_path)
    command = ["reference", "digits", "--extractor", "digits", "--out", "made.npz", "--json"]
    assert main(command) == 0
    (lone,) = json.loads(capsys.readouterr().out)
    (tmp_path / "two").mkdir()
    (code, out, _), (other, nothing, _) = in_two(tmp_path / "two", tmp_path / "cache", *command, "--distributed")
    assert (code, other, nothing) == (0, 0, "")
    assert json.loads(out) == [lone]
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["made.npz"]
    with np.load("made.npz") as one, np.load("two/made.npz") as two:
        assert one.files == two.files
        assert len(two["features"]) == lone["num_images"] == lone["num_references"]
        np.testing.assert_allclose(two["features"], one["features"], rtol=1e-5, atol=1e-5)
        for name in set(one.files) & {"mu", "sigma", "mu_s", "sigma_s"}:
            np.testing.assert_allclose(two[name], one[name], rtol=1e-5, atol=1e-6)
