"""A damaged shard of latents, driven through a whole study: its cells fail with one line, the others go on, and mending costs nothing."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_imagenet_path
from test_imagenet_path import ROOT, Inputs
from worker_processes import fake_cells, holdings, make_study, rows_and_ends

import dit.runs.run
from dit.cli import main
from dit.data.latents import LatentSource
from dit.data.shards import MANIFEST, Manifest, ShardWriter, open_latents, shard_name, to_json
from dit.store.files import write_text
from sweeps.ledger import Ledger
from sweeps.study import declared

pytestmark = pytest.mark.long

inputs = test_imagenet_path.inputs

MORE = """

on_latents = runs


def runs():
    import dataclasses

    from worker_processes import fake_cells

    return [dataclasses.replace(run, evaluations=()) for run in on_latents()] + list(fake_cells(2, steps=4))
"""


def more_shards(source: Path, folder: Path, shards: int = 3) -> Path:
    """The records of those latents again, over several shards."""
    source_folder, manifest = open_latents(source)
    records = LatentSource(source_folder, manifest)
    folder.mkdir(parents=True)
    parts = np.array_split(np.arange(len(records)), shards)
    settings = dataclasses.replace(manifest.settings, shard_size=len(parts[0]))
    written = []
    for i, part in enumerate(parts):
        writer = ShardWriter(folder, shard_name(i))
        for index in part.tolist():
            writer.write(records[index])
        written.append(writer.finish([]))
    write_text(folder / MANIFEST, to_json(Manifest(settings, tuple(written))))
    return folder


def flip(path: Path) -> None:
    """One bit, in the first record."""
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    """The second half gone."""
    os.truncate(path, path.stat().st_size // 2)


def encode_otherwise(path: Path) -> None:
    """Whole latents in its folder, but others."""
    shutil.copy(more_shards(path.parent, path.parents[1] / "otherwise", shards=2) / MANIFEST, path.parent)
    for name in (shard_name(0), shard_name(1)):
        shutil.copy(path.parents[1] / "otherwise" / name, path.parent)


def test_a_corrupted_shard_fails_its_cell_alone_and_costs_nothing_once_it_is_mended(
    inputs: Inputs, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two cells of one study, of which one is on the latents, worked on again and again while a shard is damaged in three ways."""
    latents, pristine = more_shards(inputs.latents, tmp_path / "latents"), tmp_path / "pristine"
    shutil.copytree(latents, pristine)
    shard = latents / shard_name(1)
    both = (declared(str(inputs.study)).runs[0], fake_cells(1, steps=4)[0])
    runs = tuple(dataclasses.replace(run, evaluations=()) for run in both)

    def work(folder: Path) -> tuple[int, str]:
        code = main(["worker", "--study", str(folder), "--data", str(latents), "--log-every", "2"])
        return code, capsys.readouterr().err

    build = dit.runs.run.build
    monkeypatch.setattr(
        dit.runs.run, "build", functools.cache(lambda run, *_: build(run))
    )  # each cell is compiled once
    straight, folder = (make_study(tmp_path / name, runs) for name in ("straight", "study"))
    assert work(straight)[0] == 0
    for damage, message in (
        (
            flip,
            r"shard \S*/shard-00001\.arrayrecord is corrupted \(record 0 at byte 64\): sha256 \w+\.\.\., its manifest says",
        ),
        (cut, r"shard \S*/shard-00001\.arrayrecord has [\d,]+ bytes; its manifest says [\d,]+"),
        (encode_otherwise, r"\S*latents holds other latents than this run was begun on"),
    ):
        damage(shard)
        code, said = work(folder)
        states = {cell.run.data.name: (cell.state, cell.reason) for cell in Ledger(folder).cells()}
        assert (code, states["digits"]) == (3, ("done", ""))
        assert states["crops64"][0] == "failed" and re.match(message, states["crops64"][1]), states
        assert said.count(states["crops64"][1]) == 1 and "Traceback" not in said
        shutil.rmtree(latents)
        shutil.copytree(pristine, latents)
        assert main(["retry", str(folder)]) == 0
        if damage is cut:  # the last damage comes to a run that has begun
            with monkeypatch.context() as stopping:
                stopping.setattr(dit.runs.run, "train", killed)
                with pytest.raises(Killed):
                    work(folder)
            assert Ledger(folder).cell(runs[0]).state == "retryable"
    assert work(folder)[0] == 0
    assert rows_and_ends(folder) == rows_and_ends(straight)


def test_a_sweep_goes_on_without_the_cells_of_a_corrupted_shard(inputs: Inputs, tmp_path: Path) -> None:
    """The same through `dit sweep`, whose cells on small images are scored: one line, exit code 3, and after `dit retry` the same table."""
    latents = more_shards(inputs.latents, tmp_path / "latents")
    shard = latents / shard_name(1)
    (tmp_path / "mixed.py").write_text(inputs.study.read_text() + MORE)

    def sweep(folder: Path) -> tuple[int, str]:
        command = [
            sys.executable,
            "-m",
            "dit",
            "sweep",
            str(tmp_path / "mixed.py"),
            "--out",
            str(folder),
            "--data",
            str(latents),
        ]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tests", ROOT)))}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
        return done.returncode, done.stderr

    straight, folder, whole = tmp_path / "straight", tmp_path / "study", shard.read_bytes()
    assert sweep(straight)[0] == 0
    flip(shard)
    code, said = sweep(folder)
    assert code == 3, said
    failures = [
        line for line in said.splitlines() if "is corrupted (record 0 at byte 64)" in line and str(shard) in line
    ]
    assert len(failures) == 2 and "Traceback" not in said
    assert [cell.state for cell in Ledger(folder).cells()] == ["failed", "failed", "done", "done"]
    shard.write_bytes(whole)
    assert main(["retry", str(folder)]) == 0
    assert sweep(folder)[0] == 0
    assert holdings(folder) == holdings(straight)


class Killed(BaseException):
    """The end of the process, as far as the code under test can tell."""


def killed(*_: object, **__: object) -> None:
    """Ends an attempt that has opened everything."""
    raise Killed
