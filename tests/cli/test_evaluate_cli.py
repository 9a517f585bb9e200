"""`dit evaluate` and `dit reference` from the command line: rows, resuming, and one line for each fault."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_extractor import some_images, tiny_extractor

from dit import cli
from dit.score import kept_samples
from dit.score.features import Features, NetworkExtractor
from dit.store.files import read_json


@pytest.fixture(autouse=True)
def setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for verb in ("evaluate", "reference"):
        monkeypatch.setitem(cli.VERBS, verb, "")
    _extract_with(monkeypatch, tiny_extractor())
    monkeypatch.chdir(tmp_path)
    np.savez("samples.npz", arr_0=some_images(100, 1), protocol=json.dumps({"sampler": "ddpm", "sampling_steps": 250}))
    np.savez("real.npz", arr_0=some_images(120, 2))


def _extract_with(monkeypatch: pytest.MonkeyPatch, extractor) -> None:
    for module in ("dit.cli.evaluate", "dit.cli.reference"):
        monkeypatch.setattr(f"{module}.make_extractor", lambda *_: extractor)


def _row(capsys: pytest.CaptureFixture[str], *options: str) -> dict:
    capsys.readouterr()
    assert (
        cli.main(["evaluate", "samples.npz", "--reference", "real.npz", "--out", "row.json", "--json", *options]) == 0
    )
    (row,) = json.loads(capsys.readouterr().out)
    assert row == read_json(Path("row.json"))
    return row


def _fault(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(list(arguments)) == 2
    error = capsys.readouterr().err.splitlines()
    return error[-1]


def test_row_holds_every_metric_and_the_whole_protocol(capsys) -> None:
    metrics = ("fid", "sfid", "inception_score", "precision", "recall", "kid", "fid_infinity")
    row = _row(capsys, "--metrics", *metrics, "--cfg-scale", "1.5", "--ema", "--bootstrap", "20")
    assert all(isinstance(row[name], float) for name in metrics)
    assert row["intervals"]["fid"][0] < row["intervals"]["fid"][1] and row["spreads"]["kid"] > 0
    expected = {
        "extractor": "tiny",
        "extractor_sha256": "0" * 64,
        "resize": "none",
        "reference": "real.npz",
        "num_references": 120,
        "num_samples": 100,
        "sampler": "ddpm",
        "sampling_steps": 250,
        "cfg_scale": 1.5,
        "cfg_channels": None,
        "ema": True,
        "decoder": None,
        "sample_seed": None,
    }
    assert {name: row[name] for name in expected} == expected
    assert not Path("row.json.partial").exists()


def test_another_number_of_samples_is_another_protocol(capsys) -> None:
    rows = [_row(capsys), _row(capsys, "--num-samples", "50"), _row(capsys, "--cfg-scale", "4"), _row(capsys)]
    assert len({row["protocol"] for row in rows}) == 3 and rows[0] == rows[3]


def test_bfloat16_is_another_protocol_and_float32_the_one_it_always_was(capsys) -> None:
    plain, exact, half = (
        _row(capsys, *given) for given in ((), ("--precision", "float32"), ("--precision", "bfloat16"))
    )
    assert plain == exact and "model_precision" not in plain and half["model_precision"] == "bfloat16"
    assert half["protocol"] != plain["protocol"]
    assert (half["fid"], half["precision"]) == (plain["fid"], plain["precision"])  # the latter a score
    np.savez("samples.npz", arr_0=some_images(100, 1), protocol=json.dumps({"precision": "bfloat16"}))
    assert _row(capsys)["model_precision"] == "bfloat16"
    assert "left out of the row" not in capsys.readouterr().err


def test_reference_made_before_or_on_the_way_gives_the_same_scores(capsys) -> None:
    row = _row(capsys)
    assert cli.main(["reference", "real.npz", "--out", "ref.npz"]) == 0
    assert cli.main(["evaluate", "samples.npz", "--reference", "ref.npz", "--out", "again.json"]) == 0
    assert read_json(Path("again.json")) == row
    assert "100 samples" in capsys.readouterr().out


def test_table_names_other_features_as_what_they_are(capsys, monkeypatch) -> None:
    _extract_with(monkeypatch, dataclasses.replace(tiny_extractor(), metric_suffix="random_0"))
    assert cli.main(["evaluate", "samples.npz", "--reference", "real.npz"]) == 0
    printed = capsys.readouterr()
    assert "fd_random_0" in printed.out and "random weights" in printed.err
    assert len(list(Path().glob("samples.*.json"))) == 1


class Killed(BaseException):
    """Not an error that anything catches."""


def test_resumes_after_a_kill_with_the_same_bits_and_no_batch_twice(capsys, monkeypatch) -> None:
    options = ("--batch-size", "16")
    whole = _row(capsys, *options)
    monkeypatch.setattr(kept_samples, "SAVE_EVERY_S", 0)
    extractor = tiny_extractor()
    calls: list[int] = []

    class Counting(NetworkExtractor):
        """The tiny extractor, dying in the 12th batch."""

        def extract(self, images: np.ndarray) -> Features:
            calls.append(len(images))
            if len(calls) == 12:
                raise Killed
            return extractor.extract(images)

    _extract_with(monkeypatch, Counting(**vars(extractor)))
    with pytest.raises(Killed):
        _row(capsys, *options)
    assert _row(capsys, *options) == whole
    # eight batches of the reference and three of samples were done; the reference has none left, the samples four
    assert sum(calls[12:]) == 100 - 3 * 16


def test_a_partial_pass_of_other_images_is_not_taken_up(capsys, monkeypatch) -> None:
    monkeypatch.setattr(kept_samples, "SAVE_EVERY_S", 0)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # as if every pass had been killed at the end
    first = _row(capsys)
    np.savez("samples.npz", arr_0=some_images(100, 3))
    assert _row(capsys)["fid"] != first["fid"]


def test_identical_sets_are_at_zero(capsys) -> None:
    np.savez("samples.npz", arr_0=some_images(120, 2))
    row = _row(capsys)
    assert abs(row["fid"]) < 1e-6 and abs(row["sfid"]) < 1e-6 and row["precision"] == row["recall"] == 1


def test_faults_are_one_line(capsys, monkeypatch) -> None:
    def fault(samples: str = "samples.npz", *more: str) -> str:
        return _fault(capsys, "evaluate", samples, "--reference", "real.npz", *more)

    np.savez("one.npz", arr_0=some_images(1, 0))
    np.savez("grey.npz", arr_0=some_images(9, 0)[..., :1])
    Path("short.npz").write_bytes(Path("samples.npz").read_bytes()[:9000])
    Path("model.ckpt").write_bytes(b"x")
    assert "1 sample(s) of the 1" in fault("one.npz")
    assert "images have 1 channel(s), tiny takes 3" in fault("grey.npz")
    assert "cut short" in fault("short.npz")
    assert "model.ckpt" in fault("model.ckpt")
    assert "no file, folder or data set 'nothing'" in fault("nothing")
    assert "says that its sampler is ddpm, --sampler says ddim: leave the option out" in fault(
        "samples.npz", "--sampler", "ddim"
    )
    assert "101 sample(s) of the 100" in fault("samples.npz", "--num-samples", "101")
    assert "no other processes are to be found" in fault("samples.npz", "--distributed")
    assert "--bootstrap 5: expected 0, or at least 20" in fault("samples.npz", "--bootstrap", "5")
    Path("folder").mkdir()
    assert "--out folder is a folder" in fault("samples.npz", "--out", "folder")
    np.savez("bare.npz", mu=np.zeros(12), sigma=np.eye(12))
    assert "declare it with" in _fault(capsys, "evaluate", "samples.npz", "--reference", "bare.npz")
    broken = tiny_extractor()
    weights = broken.parameters.copy()
    weights[0, 0] = np.nan
    _extract_with(monkeypatch, dataclasses.replace(broken, parameters=weights))
    assert "pooled features of image 0 are not finite" in fault()


def test_metrics_that_the_reference_cannot_give(capsys, monkeypatch) -> None:
    _extract_with(monkeypatch, dataclasses.replace(tiny_extractor(), name="inception-2015", resize="tf1-bilinear-299"))
    np.savez("bare.npz", mu=np.zeros(12), sigma=np.eye(12))
    assert cli.main(["reference", "bare.npz", "--made-with-resize", "tf1-bilinear-299", "--out", "declared.npz"]) == 0
    assert cli.main(["evaluate", "samples.npz", "--reference", "declared.npz", "--out", "row.json"]) == 0
    row = read_json(Path("row.json"))
    assert row["fid"] > 0 and row["sfid"] is None and row["precision"] is None
    error = _fault(capsys, "evaluate", "samples.npz", "--reference", "declared.npz", "--metrics", "precision")
    assert "no precision: the reference holds statistics only" in error
