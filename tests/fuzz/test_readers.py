"""No mutant of any file that is read ends in a traceback, hangs, takes memory, or passes as what it is not.

DIT_FUZZ_SECONDS (120) and DIT_FUZZ_SEED (0) say how long and which mutants; a fault names reader, mutant and seed, and its file is kept.
"""

import json
import os
import queue
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from readers import READERS

ATTACK = Path(__file__).parent / "attack.py"
HANGS_S = 30.0
"""The child counts ten seconds of its own; a machine under load may make more of them."""
SMOKE = ("safetensors", "torch", "samples", "png", "attempt", "where", "prices", "wandb-table")


def attacked(names, folder, seed, seconds):
    """Counts by reader, and the faults, of as long an attack; a child that hangs or dies is replaced."""
    left, counts, faults = list(names), {}, []
    while left:
        line = [sys.executable, "-P", str(ATTACK), str(folder), str(seed), str(seconds / len(names)), *left]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*map(str, ATTACK.parents[:2]), *filter(None, sys.path)]),
            "OMP_NUM_THREADS": "1",
        }
        with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment) as child:
            told: queue.Queue = queue.Queue()
            threading.Thread(target=_listen, args=(child.stdout, told), daemon=True).start()
            last = {"begin": left[0], "at": -1}
            try:
                while (said := told.get(timeout=120 if last["at"] < 0 else HANGS_S)) is not None:
                    last = {**last, **json.loads(said)}
                    if "end" in (one := json.loads(said)):
                        counts[one["end"]] = Counter(one["counts"])
                        faults += one["faults"]
                        last = {"begin": "", "at": -1}
                died = child.wait() and f"ended with {child.returncode}"
            except queue.Empty:
                died = f"hung for {HANGS_S:g} s"
                child.kill()
        if died:
            faults.append(f"{last['begin']} mutant {last['at']} of seed {seed}: {died}")
        left = left[left.index(last["begin"]) + 1 :] if died and last["begin"] in left else []
    return counts, faults


def _listen(pipe, told):
    for line in pipe:
        told.put(line)
    told.put(None)


def show(counts):
    """A line for each reader."""
    for name, found in counts.items():
        said = ", ".join(f"{what} {found[what]}" for what in ("refused", "same", "part", "changed") if found[what])
        print(f"{name}: {sum(found.values())} mutants, {said}")


def test_mutants_for_a_moment(tmp_path):
    counts, faults = attacked(SMOKE, tmp_path, seed=1, seconds=3)
    assert not faults, "\n".join(faults)
    assert set(counts) == set(SMOKE)


@pytest.mark.long
def test_mutants_of_every_reader(tmp_path, capsys):
    seconds, seed = float(os.environ.get("DIT_FUZZ_SECONDS", "120")), int(os.environ.get("DIT_FUZZ_SEED", "0"))
    counts, faults = attacked(READERS, tmp_path, seed, seconds)
    with capsys.disabled():
        print()
        show(counts)
    assert not faults, "\n".join(faults)
    assert set(counts) == set(READERS)
