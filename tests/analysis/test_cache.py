"""The cache of a study's rows: same rows as a plain reading of the files, whatever changes, tears or cannot be written."""

import json
import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_study import cells, write_run, write_study

from analysis import cache, records
from analysis.results import collect, losses
from dit.store.metrics import MetricsWriter
from dit.store.study import DONE, FAILED, RunStore, Study, save_study, write_json

RUNS = cells(blocks=("adaln_zero",), sizes=("S", "B"), patches=(4, 2), sampling=(8,))


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """Files written a moment ago count as settled, except where a test says otherwise."""
    monkeypatch.setattr(cache, "SETTLED_S", 0.0)


@pytest.fixture
def folder(tmp_path):
    return write_study(tmp_path / "demo", RUNS, failed={1: "stopped"})


@pytest.fixture
def read(monkeypatch):
    """Names of the runs whose files were read, as they are read."""
    names = []

    def spied(name, method):
        def wrapper(self, *arguments):
            names.append((name, self.run.run))
            return method(self, *arguments)

        return wrapper

    for name in ("metrics", "status"):
        monkeypatch.setattr(RunStore, name, spied(name, getattr(RunStore, name)))
    return names


def brute_losses(folder: Path) -> pd.DataFrame:
    """Logged rows straight from the lines; the attempt with the highest number wins a step."""
    rows = {}
    for path in sorted(folder.glob("runs/*/metrics/*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            rows[path.parts[-3], row["step"]] = row["loss"]
    table = pd.DataFrame([(*key, loss) for key, loss in rows.items()], columns=["run", "step", "loss"])
    return table.sort_values(["run", "step"], ignore_index=True)


def log(path: Path, text: str) -> None:
    """Append rows as their attempt would, and what is torn at the end."""
    *lines, torn = text.split("\n")
    writer = MetricsWriter(path.parents[1], int(path.stem))
    for line in lines:
        writer.write(json.loads(line))
    writer._file.write(torn.encode())
    writer.close()


def check(folder: Path) -> None:
    """Losses and scores by way of the cache equal those straight from the files."""
    table = losses(folder)[["run", "step", "loss"]].sort_values(["run", "step"], ignore_index=True)
    pd.testing.assert_frame_equal(table, brute_losses(folder), check_dtype=False)
    scores = collect(folder).table.query("status == 'done'")
    found = {(row["run"], row["step"], row["protocol"]): row["fd_digits"] for row in scores.to_dict("records")}
    files = [json.loads(path.read_text())["row"] for path in folder.glob("runs/*/evals/*.json")]
    assert found == {(row["run"], row["step"], row["protocol"]): row["fd_digits"] for row in files}
    assert len(scores) == len(files)


def test_an_unchanged_study_is_not_read_again(folder, read):
    first = collect(folder), losses(folder)
    assert len(read) == 3 * len(RUNS)
    read.clear()
    again = collect(folder), losses(folder)
    assert read == []
    pd.testing.assert_frame_equal(first[1], again[1])
    pd.testing.assert_frame_equal(first[0].table, again[0].table)
    for name in ("name", "protocols", "floors", "identities", "sizes", "patches", "samples"):
        assert getattr(first[0], name) == getattr(again[0], name)
    check(folder)


def test_a_torn_line_a_later_attempt_and_a_new_score_are_seen_and_other_runs_left_alone(folder, read):
    check(folder)
    runs = folder / "runs"
    changes = {
        runs / RUNS[0].run / "metrics" / "0001.jsonl": '{"step": 1010, "loss": 0.25}\n{"step": 1020, "lo',
        runs / RUNS[2].run / "metrics" / "0002.jsonl": '{"step": 1000, "loss": 7.5}\n',
    }
    for path, text in changes.items():
        read.clear()
        log(path, text)
        check(folder)
        assert read == [("metrics", path.parts[-3]), ("status", path.parts[-3])]
    assert losses(folder).query("run == @RUNS[2].run and step == 1000")["loss"].tolist() == [7.5]
    read.clear()
    score = next((runs / RUNS[3].run / "evals").iterdir())
    value = json.loads(score.read_text())
    value["row"]["fd_digits"] = 1.0
    write_json(score, value)
    check(folder)
    assert read == [("status", RUNS[3].run)]
    next((runs / RUNS[3].run / "evals").iterdir()).unlink()
    check(folder)


def test_a_run_that_failed_since_has_its_row_and_samples_that_went_are_gone(folder):
    study = collect(folder)
    RunStore(folder, RUNS[0]).set_status(FAILED, step=30, attempt=2, reason="the disk is full")
    for path in (folder / "runs" / RUNS[2].run / "samples").iterdir():
        path.unlink()
    again = collect(folder)
    assert again.table.query("run == @RUNS[0].run and status == 'failed'")["reason"].tolist() == ["the disk is full"]
    assert {key[0] for key in study.samples} - {key[0] for key in again.samples} == {RUNS[2].run}


def test_a_study_that_grew_in_the_middle_reads_the_new_runs_only(folder, read, monkeypatch):
    monkeypatch.setattr(cache, "SHARD_RUNS", 3)
    check(folder)
    grown = cells(blocks=("adaln_zero",), sizes=("S", "L", "B"), patches=(4, 2), sampling=(8,))
    save_study(folder, Study("demo", "A made-up study.", grown))
    for run in grown[2:4]:
        write_run(folder, "demo", run)
    read.clear()
    assert collect(folder).sizes == ("S", "B", "L")
    check(folder)
    assert {run for _, run in read} >= {run.run for run in grown[2:4]}
    assert RUNS[0].run not in {run for _, run in read}
    assert list(dict.fromkeys(losses(folder)["run"])) == [run.run for run in grown]


@pytest.mark.parametrize("kind", ["cells", "scores", "losses"])
def test_a_damaged_cache_is_made_anew(folder, kind):
    check(folder)
    path = folder / "cache" / f"{kind}-0000.bin"
    whole = path.read_bytes()
    damaged = [
        b"",
        whole[:5],
        whole[: len(whole) // 2],
        whole[:-1],
        whole + b"x",
        whole.replace(b"cache 1", b"cache 2", 1),
    ]
    for place in (0, len(cache.MAGIC), len(cache.MAGIC) + 5, len(whole) // 2, len(whole) - 1):
        damaged.append(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
    for data in damaged:
        path.write_bytes(data)
        check(folder)
        assert path.read_bytes() == whole


def test_deleting_the_cache_changes_nothing(folder):
    table = collect(folder).table
    for path in (folder / "cache").iterdir():
        path.unlink()
    (folder / "cache").rmdir()
    pd.testing.assert_frame_equal(collect(folder).table, table)


def test_where_the_cache_cannot_be_written_rows_are_read_and_it_is_said_once(folder, capsys):
    (folder / "cache").write_text("in the way")
    check(folder)
    check(folder)
    err = capsys.readouterr().err
    assert "cannot be written (File exists): every run is read each time" in err
    assert err.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_study_is_read(folder):
    folder.chmod(0o500)
    check(folder)
    assert not (folder / "cache").exists()


def test_a_file_that_may_still_change_within_its_time_stamp_is_not_trusted(folder, read, monkeypatch):
    monkeypatch.setattr(cache, "SETTLED_S", 60.0)
    losses(folder)
    path = folder / "runs" / RUNS[0].run / "metrics" / "0001.jsonl"
    before = path.stat()
    rows = RunStore(folder, RUNS[0]).metrics()
    path.unlink()
    log(path, "".join(json.dumps({**row, "loss": row["loss"] + 9}) + "\n" for row in rows))
    with closing(MetricsWriter(path.parents[1], 1)) as writer:
        RunStore(folder, RUNS[0]).set_status(DONE, writer.end, step=1000, attempt=1)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    check(folder)
    for path in [*folder.glob("runs/*/metrics/*"), *folder.glob("runs/*/status.json")]:
        os.utime(path, (1e9, 1e9))
    losses(folder)
    read.clear()
    losses(folder)
    assert read == []


def test_a_writer_that_died_leaves_the_old_cache(folder, monkeypatch, capsys):
    check(folder)
    whole = (folder / "cache" / "losses-0000.bin").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    log(folder / "runs" / RUNS[0].run / "metrics" / "0001.jsonl", '{"step": 1010, "loss": 0.25}\n')
    monkeypatch.setattr(cache.os, "replace", full)
    check(folder)
    assert (folder / "cache" / "losses-0000.bin").read_bytes() == whole
    assert "No space left on device" in capsys.readouterr().err


VALUES = {
    "whole": st.integers(-(2**53), 2**53),
    "real": st.floats(allow_nan=False),
    "text": st.text(),
    "flag": st.booleans(),
    "list": st.lists(st.integers(0, 9), max_size=3),
}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_shard_comes_back_as_it_was(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("shard") / "cache" / "x.bin"
    count = data.draw(st.integers(0, 5))
    columns = {
        name: data.draw(st.lists(st.none() | one if gaps else one, min_size=count, max_size=count), name)
        for kind, one in VALUES.items()
        for name, gaps in ((kind, False), (f"{kind}_gaps", True))
    }
    table = pd.DataFrame(columns).astype({"whole_gaps": "Int64"})
    cache.write_shard(path, cache.Shard(["a"], ["s"], [count], table))
    back = cache.read_shard(path)
    assert (back.runs, back.signatures, back.counts) == (["a"], ["s"], [count])
    assert list(back.table.columns) == list(table.columns)
    for name in table.columns:
        old, new = table[name].astype(object), back.table[name].astype(object)
        np.testing.assert_array_equal(old.isna(), new.isna())
        assert old[old.notna()].tolist() == new[new.notna()].tolist()
        assert back.table[name].dtype == table[name].dtype or count == 0 or table[name].isna().all()


def test_a_column_that_only_some_runs_log_is_empty_for_the_others(folder):
    before = losses(folder)
    log(
        folder / "runs" / RUNS[2].run / "metrics" / "0001.jsonl",
        '{"step": 2000, "loss": 1.0, "learning_rate": 0.001, "note": "slower"}\n',
    )
    table = losses(folder)
    assert len(table) == len(before) + 1
    assert table["learning_rate"].dropna().tolist() == [0.001]
    assert table["note"].dropna().tolist() == ["slower"]
    assert set(records.LOSS_CELL) <= set(table.columns)
