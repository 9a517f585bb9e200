"""Progress of a sweep: durations, plain lines, the live line, and the time left on made-up events."""

import io
from types import SimpleNamespace

import pytest
from synthetic_study import cells

from dit.design.flops import scoring_gflops
from dit.duration import duration
from sweeps import progress
from sweeps.progress import Progress, work

RUNS = list(cells(blocks=("adaln", "adaln_zero"), sizes=("S",), patches=(4,), sampling=(), steps=100))


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is told to go."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    return clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


def step(run, number, worker=0):
    return {"event": "step", "run": run.run, "step": number, "loss": 0.25, "worker": worker}


def started(run, worker=0):
    return {"event": "started", "run": run.run, "worker": worker}


def finished(run, state="done", worker=0):
    return {"event": "finished", "run": run.run, "state": state, "worker": worker}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (86399, "23 h 59 min"),
        (86400, "1 d 0 h"),
        (273_700, "3 d 4 h"),
    ],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_the_work_of_a_cell_is_its_training_and_its_samples():
    run = RUNS[0]
    per_image = 3 * run.batch_size * run.steps
    assert work(run) == pytest.approx((per_image + 5 * 512 * 32) * scoring_gflops(run) / (5 * 512 * 32), rel=1e-12)


def test_time_left_is_unknown_before_any_work_and_nothing_after_all_of_it(clock):
    shown = Progress(RUNS, done=0, stream=io.StringIO())
    assert shown.time_left() is None
    clock.now += 10
    for run in RUNS:
        shown(started(run))
        shown(step(run, 50))
        shown(finished(run))
    assert shown.time_left() == 0


def test_time_left_follows_the_work_done(clock):
    twins = cells(blocks=("adaln",), sizes=("S",), patches=(4,), seeds=(0, 1), sampling=(), steps=100)
    shown = Progress(list(twins), done=0, stream=io.StringIO())
    shown(started(twins[0]))
    clock.now += 30
    shown(finished(twins[0]))
    assert shown.time_left() == pytest.approx(30)


def test_time_left_tells_a_cells_constant_from_its_work(clock):
    runs = list(cells(blocks=("adaln",), sizes=("S", "B", "L", "XL"), patches=(4,), sampling=(), steps=100))
    shown = Progress(runs, done=0, stream=io.StringIO())
    per_gflop = 20 / work(runs[0])
    for run in runs[:2]:
        shown(started(run))
        clock.now += 7 + per_gflop * work(run)
        shown(finished(run))
    assert shown.time_left() == pytest.approx(14 + per_gflop * (work(runs[2]) + work(runs[3])))


def test_time_left_is_shared_by_the_workers_and_no_more_than_the_cells_that_are_left(clock):
    runs = list(cells(blocks=("adaln",), sizes=("S",), patches=(4,), seeds=range(5), sampling=(), steps=100))
    shown = Progress(runs, done=0, stream=io.StringIO())
    for worker in (0, 1):
        shown(started(runs[worker], worker))
    clock.now += 30
    for worker in (0, 1):
        shown(finished(runs[worker], worker=worker))
        shown(started(runs[2 + worker], worker))
    assert shown.time_left() == pytest.approx(3 * 30 / 2)
    shown(step(runs[2], 50))
    assert shown.time_left() == pytest.approx(2.5 * 30 / 2)
    clock.now += 30
    for worker in (0, 1):
        shown(finished(runs[2 + worker], worker=worker))
    assert shown.time_left() == pytest.approx(30)


def test_time_left_knows_a_constant_and_a_rate_from_cells_of_different_work(clock):
    runs = list(cells(blocks=("adaln",), sizes=("S", "XL"), patches=(4, 2), sampling=(), steps=100))
    shown = Progress(runs, done=0, stream=io.StringIO())
    rate = 50 / work(runs[0])
    for run in runs[:3]:
        shown(started(run))
        clock.now += 12 + rate * work(run)
        shown(finished(run))
    assert shown.time_left() == pytest.approx(12 + rate * work(runs[3]))


def test_a_finished_cell_is_a_plain_line_with_the_count(clock):
    stream = io.StringIO()
    shown = Progress(RUNS, done=46, stream=stream)
    shown(started(RUNS[0]))
    shown(started(RUNS[1], worker=1))
    assert stream.getvalue() == ""
    shown(finished(RUNS[0]))
    shown(finished(RUNS[1], "failed", worker=1))
    first, second = stream.getvalue().splitlines()
    assert first.startswith(f"{RUNS[0].run} done; 47 of 48 cells done, ")
    assert second.startswith(f"{RUNS[1].run} failed; 47 of 48 cells done, 1 failed, ")
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()


def test_plain_lines_say_the_cell_under_way_every_ten_seconds_and_no_more_often(clock):
    stream = io.StringIO()
    shown = Progress(RUNS, done=0, stream=stream)
    shown(started(RUNS[0]))
    for second in range(1, 26):
        clock.now += 1
        shown(step(RUNS[0], second))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("0 of 2 cells done, ")
    assert lines[0].endswith("| adaln-S-4-s0 step 10 of 100, loss 0.2500")
    shown({"event": "score", "run": RUNS[0].run, "step": 40, "worker": 0})
    clock.now += 10
    shown({"event": "tick"})
    assert stream.getvalue().splitlines()[2].endswith("| adaln-S-4-s0 sampling at step 40")


@pytest.mark.parametrize(
    ("event", "text"),
    [
        ({"event": "failed", "reason": "the loss is gone"}, "the loss is gone"),
        ({"event": "warning", "message": "set aside"}, "set aside"),
        ({"event": "died", "how": "exit code -9"}, "worker died (exit code -9)"),
    ],
)
def test_what_went_wrong_is_said_at_once_with_the_run(clock, event, text):
    stream = io.StringIO()
    Progress(RUNS, done=0, stream=stream)({**event, "run": RUNS[0].run, "worker": 0})
    (line,) = stream.getvalue().splitlines()
    assert line.startswith(f"{event['event']}: {RUNS[0].run}: ")
    assert text in line


def test_a_terminal_has_one_live_line_no_wider_than_itself(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    shown = Progress(RUNS, done=0, stream=stream)
    shown(started(RUNS[0]))
    for number in range(1, 4):
        clock.now += 1
        shown(step(RUNS[0], number))
    shown.close()
    drawn = stream.getvalue().split("\r\x1b[K")
    assert "\n" not in stream.getvalue()
    assert drawn[-1] == ""
    assert max(map(len, drawn)) < 40
    assert drawn[-2].startswith("0 of 2 cells done")
