"""The power goes at any moment between a cell's claim and its end: what was not synced is lost or torn, and the cell still ends the same.

Every sync, rename, link, removal and logged row of a cell is an event. At each the folder is known as it was, and as storage surely
holds it: of a file what it held when it was last synced, of a folder the names when that was. A power cut leaves, for each name and each
file by itself, the one or the other, or a part of what was being added, or zeros in its place.
"""

import os
import random
import shutil
import stat
from pathlib import Path

import crashing_worker
import pytest
from worker_processes import attempts_of, fake_cells, holdings, make_study

from dit.design.config import RunArguments
from dit.store import lease
from dit.store.metrics import MetricsWriter
from dit.store.study import RunStore
from dit.store.verify import DAMAGED, MISSING, verify
from sweeps import ledger
from sweeps.ledger import Ledger

RUNS = fake_cells(1, steps=20)
ARGUMENTS = RunArguments(log_every=2, checkpoint_every=5)


class Disk:
    """Watches what happens to a folder; `events` are the folder as it was and as it was surely kept, at each event."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.events, self.kept_names, self.kept_content, self.alive = folder, [], {}, {}, {}
        for path in [folder, *folder.rglob("*")]:  # what was there has long been synced
            self.sync(path, self.number(path))
        for name in ("replace", "rename", "link", "unlink", "mkdir", "rmdir"):
            monkeypatch.setattr(os, name, self.watched(getattr(os, name)))
        monkeypatch.setattr(os, "fsync", self.synced(os.fsync))
        monkeypatch.setattr(MetricsWriter, "write", self.watched(MetricsWriter.write))

    def number(self, path):
        """The file's inode, which nothing else takes as long as this lives."""
        number = os.stat(path).st_ino
        if number not in self.alive:
            self.alive[number] = os.open(path, os.O_RDONLY)
        return number

    def sync(self, path, number):
        if Path(path).is_dir():
            self.kept_names[number] = {one: self.number(Path(path, one)) for one in os.listdir(path)}
        else:
            self.kept_content[number] = Path(path).read_bytes()

    def watched(self, function):
        def call(*arguments, **named):
            result = function(*arguments, **named)
            self.note()
            return result

        return call

    def synced(self, function):
        def call(descriptor):
            function(descriptor)
            self.sync(f"/proc/self/fd/{descriptor}", self.number(f"/proc/self/fd/{descriptor}"))
            self.note()

        return call

    def note(self):
        names, content = {}, {}
        for place in [self.folder, *(one for one in self.folder.rglob("*") if one.is_dir())]:
            names[self.number(place)] = {one.name: self.number(one) for one in place.iterdir()}
        for place in self.folder.rglob("*"):
            if place.is_file():
                content[self.number(place)] = place.read_bytes()
        self.events.append((names, content, dict(self.kept_names), dict(self.kept_content)))

    def after_a_cut(self, event, place, dice):
        """Make the folder as storage may show it once the power is back."""
        names, content, kept_names, kept_content = self.events[event]
        content = {**kept_content, **content}

        def fill(number, place):
            place.mkdir()
            now, sure = names.get(number, {}), kept_names.get(number, {})
            for name in sorted({*now, *sure}):
                one = dice.choice([now, sure]).get(name)
                if one is None:
                    continue
                if stat.S_ISDIR(os.fstat(self.alive[one]).st_mode):
                    fill(one, place / name)
                else:
                    (place / name).write_bytes(torn(kept_content.get(one, b""), content.get(one, b""), dice))

        fill(self.number(self.folder), place)

    def close(self):
        for descriptor in self.alive.values():
            os.close(descriptor)


def torn(sure, now, dice):
    """What may be left of a file that held `sure` when it was last synced."""
    added = now[len(sure) :] if now.startswith(sure) else now
    part = added[: dice.randrange(len(added) + 1)]
    left = dice.choice([b"", added, part, bytes(len(part)), part[: len(part) // 2] + bytes(len(part) - len(part) // 2)])
    return sure + left if now.startswith(sure) else dice.choice([sure, now, left])


def work(folder):
    """Bring the cell to its end in this process; every earlier owner is gone, as after a power cut. False if there was nothing to do."""
    held = Ledger(folder).claim(RUNS[0])
    if held is None:
        return False
    return crashing_worker.fake_execute(folder, "mine", RUNS[0], ARGUMENTS, lambda event: None, held) == "done"


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.setattr(crashing_worker, "STEP_S", 0.0)
    for module in (lease, ledger):
        monkeypatch.setattr(module, "is_gone", lambda owner: True)


def recorded(folder):
    """The disk that saw the cell worked on to its end."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        disk = Disk(folder, monkeypatch)
        assert work(folder)
    return disk


def cut_and_go_on(disk, event, folder, wanted, seed):
    """Cut the power at that event; the cell must then end as one that nothing disturbed, each row and score once."""
    disk.after_a_cut(event, folder, random.Random(seed))
    bad = [one for one in verify(folder) if one.kind in (DAMAGED, MISSING)]
    assert not bad, bad
    was_done = RunStore(folder, RUNS[0]).is_done()
    assert work(folder) != was_done
    assert holdings(folder) == wanted
    assert RunStore(folder, RUNS[0]).is_done()
    assert len(RunStore(folder, RUNS[0]).evaluations()) == len(RUNS[0].evaluations)
    tokens = [one.token for one in attempts_of(folder, RUNS[0])]
    assert tokens == sorted(set(tokens))
    return was_done


def cuts(tmp_path, step, depth, seed=0):
    """Cut at every `step`-th event of a cell, then at some events of the attempts after it."""
    folder = make_study(tmp_path / "whole", RUNS)
    disk = recorded(folder)
    wanted = holdings(folder)
    assert was_kept(disk, tmp_path, wanted)
    count = 0
    for event in range(seed % step, len(disk.events), step):
        place = tmp_path / f"cut-{event}"
        cut_and_go_on(disk, event, place, wanted, seed + event)
        shutil.rmtree(place)
        count += 1
        if depth:
            disk.after_a_cut(event, place, random.Random(seed + event))
            if RunStore(place, RUNS[0]).is_done():
                continue
            second = recorded(place)
            for later in range(seed % 7, len(second.events), 7 * step):
                cut_and_go_on(second, later, tmp_path / f"cut-{event}-{later}", wanted, seed + later)
                count += 1
            second.close()
    disk.close()
    return count


def was_kept(disk, tmp_path, wanted):
    """A cell that was told to be done stays done: nothing of it was only in memory."""
    return all(cut_and_go_on(disk, len(disk.events) - 1, tmp_path / f"end-{seed}", wanted, seed) for seed in range(5))


def test_a_power_cut_at_some_moments_loses_nothing_and_counts_nothing_twice(tmp_path, alone):
    assert cuts(tmp_path, step=5, depth=0) >= 15


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_a_power_cut_at_any_moment_loses_nothing_and_counts_nothing_twice(tmp_path, alone, seed):
    assert cuts(tmp_path, step=1, depth=1, seed=seed) > 100
