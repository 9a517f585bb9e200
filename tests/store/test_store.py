"""The record of runs: whole files or none, torn lines, attempts, schema versions, and who may write where."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from synthetic_study import cells, write_run

from dit.errors import UserError
from dit.store import study as store
from dit.store.study import (
    DONE,
    RUNNING,
    Busy,
    MetricsWriter,
    RunStore,
    Study,
    exclusive,
    load_study,
    read_json,
    read_metrics,
    save_study,
    write_json,
)

RUNS = cells(blocks=("adaln_zero",), sizes=("S", "B"), patches=(4,), sampling=(), steps=100)
STUDY = Study("mine", "What for.", RUNS)


def test_json_comes_back_with_its_version_and_no_other_file(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"schema_version": 1, "x": [0.1, None, "é"]})
    assert read_json(tmp_path / "new" / "a.json") == {"schema_version": 1, "x": [0.1, None, "é"]}
    assert os.listdir(tmp_path / "new") == ["a.json"]


def test_a_write_that_is_cut_off_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})

    def cut_off(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", cut_off)
    with pytest.raises(OSError, match="no space"):
        write_json(path, {"x": 2})
    assert read_json(path) == {"x": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_whoever_reads_during_a_write_has_the_whole_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with open(path) as reader:
        write_json(path, {"x": 2})
        assert json.load(reader)["x"] == 1
    assert read_json(path) == {"x": 2}


def test_what_json_cannot_hold_is_refused_and_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert read_json(tmp_path / "a.json") == {"x": 1}


@pytest.mark.parametrize("content", [b"", b'{"x": 1', b"\xff\xfe\x00"])
def test_a_file_that_is_not_json_is_named(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json is not readable as JSON .*: restore it from a copy"):
        read_json(path)


def test_a_newer_schema_is_refused_by_both_versions(tmp_path):
    write_json(tmp_path / "a.json", {"schema_version": 2})
    with pytest.raises(UserError, match="has schema version 2, this version reads up to 1: upgrade"):
        read_json(tmp_path / "a.json")


def test_a_study_comes_back_as_it_was_and_is_not_written_twice(tmp_path):
    save_study(tmp_path / "out", STUDY)
    assert load_study(tmp_path / "out") == STUDY
    before = (tmp_path / "out" / "study.json").stat()
    save_study(tmp_path / "out", STUDY)
    after = (tmp_path / "out" / "study.json").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)


def test_a_study_may_grow(tmp_path):
    save_study(tmp_path, replace(STUDY, runs=RUNS[:1]))
    save_study(tmp_path, STUDY)
    assert load_study(tmp_path).runs == RUNS


def test_another_study_is_refused_and_the_first_stays(tmp_path):
    save_study(tmp_path, STUDY)
    with pytest.raises(UserError, match="holds study 'mine', not 'yours': choose another --out"):
        save_study(tmp_path, replace(STUDY, name="yours"))
    assert load_study(tmp_path).name == "mine"


def test_a_study_of_a_newer_schema_is_refused_for_reading_and_for_writing(tmp_path):
    write_json(tmp_path / "study.json", {"schema_version": 7, "study": "mine"})
    for use in (load_study, lambda folder: save_study(folder, STUDY)):
        with pytest.raises(UserError, match="schema version 7, this version reads up to 1"):
            use(tmp_path)


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_an_output_path_on_a_file_is_refused(tmp_path, below):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match=r"out is a file: expected a folder"):
        save_study(tmp_path / "out" / below, STUDY)


def test_runs_without_their_study_are_refused(tmp_path):
    write_run(tmp_path, "mine", RUNS[0], images=False)
    with pytest.raises(UserError, match=r"has runs but no study\.json"):
        save_study(tmp_path, STUDY)
    with pytest.raises(UserError, match="no study in"):
        load_study(tmp_path)


def test_a_run_folder_of_another_identity_is_refused(tmp_path):
    first, second = (RunStore(tmp_path, run) for run in RUNS)
    first.create()
    first.create()
    os.rename(first.path, second.path)
    with pytest.raises(UserError, match=f"describes another run than {RUNS[1].run}"):
        second.create()


def test_a_configuration_that_was_edited_is_refused(tmp_path):
    record = RunStore(tmp_path, RUNS[0])
    record.create()
    path = record.path / "config.json"
    path.write_text(path.read_text().replace('"batch_size": 64', '"batch_size": 32'))
    with pytest.raises(UserError, match="has changed since it was written"):
        record.create()
    write_json(path, {**json.loads(path.read_text()), "batch_size": 32})
    with pytest.raises(UserError, match="describes another run"):
        record.create()


def metrics_files(folder, **attempts):
    (folder / "metrics").mkdir()
    for attempt, text in attempts.items():
        (folder / "metrics" / f"{attempt[1:]}.jsonl").write_text(text)


def test_the_highest_attempt_wins_and_each_step_comes_once_in_order(tmp_path):
    metrics_files(
        tmp_path,
        a0002='{"step": 20, "loss": 2.2}\n{"step": 30, "loss": 2.3}\n',
        a0001='{"step": 10, "loss": 1.1}\n{"step": 20, "loss": 1.2}\n{"step": 40, "loss": 1.4}\n',
    )
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [
        (10, 1.1),
        (20, 2.2),
        (30, 2.3),
        (40, 1.4),
    ]


@pytest.mark.parametrize("torn", ['{"step": 20, "lo', '{"step": 2', "{", '{"step": 20, "loss": 1.2}'])
def test_a_torn_last_line_is_dropped_and_a_whole_one_kept(tmp_path, torn):
    metrics_files(tmp_path, a0001='{"step": 10}\n' + torn)
    steps = [row["step"] for row in read_metrics(tmp_path)]
    assert steps == ([10, 20] if torn.endswith("}") else [10])


def test_a_torn_line_in_the_middle_is_an_error_with_file_and_line(tmp_path):
    metrics_files(tmp_path, a0003='{"step": 10}\n{"step": 2\n{"step": 30}\n')
    with pytest.raises(UserError, match=r"0003\.jsonl line 2 is not a row of metrics"):
        read_metrics(tmp_path)


def test_a_row_can_be_read_as_soon_as_it_is_written(tmp_path):
    writer = MetricsWriter(tmp_path, 12)
    writer.write({"step": 5, "loss": 0.1})
    assert read_metrics(tmp_path) == [{"step": 5, "loss": 0.1}]
    assert os.listdir(tmp_path / "metrics") == ["0012.jsonl"]
    with pytest.raises(ValueError, match="JSON compliant"):
        writer.write({"step": 6, "loss": float("nan")})
    writer.close()
    assert len(read_metrics(tmp_path)) == 1


HOLD = """
import sys, time
from pathlib import Path
from dit.store.study import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_keeps_a_second_process_out_until_the_first_is_killed(tmp_path):
    path = tmp_path / "folder" / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"held\n"
            with pytest.raises(Busy), exclusive(path):
                pass
        finally:
            other.send_signal(signal.SIGKILL)
        other.wait()
        for _ in range(2):  # and leaving it lets it go
            with exclusive(path):
                pass


def test_a_run_is_done_when_its_last_step_and_all_its_scores_are_on_record(tmp_path):
    run = RUNS[0]
    record = RunStore(tmp_path, run)
    assert record.status() == {"state": "planned", "step": 0, "attempt": 0}
    assert not record.is_done()
    write_run(tmp_path, "mine", run, images=False)
    assert record.is_done()
    assert record.missing_evaluations() == []
    assert [value["row"]["step"] for value in record.evaluations()] == [20, 40, 60, 80, 100]
    record.set_status(RUNNING, step=100, attempt=1)
    assert not record.is_done()
    record.set_status(DONE, step=99, attempt=1)
    assert not record.is_done()
    record.set_status(DONE, step=100, attempt=1)
    assert record.is_done()
    record.evaluation_path(run.evaluations[-1]).unlink()
    record.evaluation_path(run.evaluations[1]).unlink()
    assert [e.step for e in record.missing_evaluations()] == [40, 100]
    assert not record.is_done()


def test_missing_evaluations_come_by_step_and_protocols_do_not_mix(tmp_path):
    run = RUNS[0]
    last = run.evaluations[-1]
    record = RunStore(
        tmp_path, replace(run, evaluations=(last, replace(last, sampling_steps=3), replace(last, step=7)))
    )
    write_json(record.evaluation_path(last), {})
    assert [(e.step, e.sampling_steps) for e in record.missing_evaluations()] == [(7, 32), (100, 3)]
    assert record.evaluation_path(last).name == f"00000100-{last.key}.json"


def test_a_longer_run_of_the_same_identity_takes_up_the_shorter_ones_folder(tmp_path):
    write_run(tmp_path, "mine", RUNS[0], images=False)
    longer = RunStore(tmp_path, replace(RUNS[0], steps=200))
    longer.create()
    assert longer.status()["state"] == store.DONE
    assert not longer.is_done()
