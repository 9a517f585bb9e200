"""Mutants read in a process of their own, under a limit of memory: `python attack.py FOLDER SEED SECONDS READER...`.

Tells a line before each mutant, so that whoever listens knows which one it hung or died on, and one at the end of each reader.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import resource
import shutil
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from readers import READERS, Reader

from dit.data.images import BrokenImage
from dit.errors import UserError

MORE_BYTES = 2**30
MOST_SECONDS = 10.0


def tell(**said: Any) -> None:
    print(json.dumps(said), flush=True)


def outcome_of(reader: Reader, path: Path, sound: Any, vouched: bool) -> tuple[str, str]:
    """What came of a mutant: refused, same, part or changed are well; anything else is a fault, with its story."""
    err = io.StringIO()
    try:
        with contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = reader.read(path)
    except (UserError, BrokenImage) as error:
        return ("refused", "") if "\n" not in str(error) else ("many lines", str(error))
    except MemoryError:
        return "memory", traceback.format_exc(limit=-3)
    except BaseException:
        return "traceback", traceback.format_exc(limit=-4)
    if value == sound:
        return "same", ""
    if isinstance(value, set) and value < sound:
        return ("part", "") if err.getvalue() or not vouched else ("silent part", repr(sound - value)[:500])
    if vouched:
        return "accepted", repr(value - sound if isinstance(value, set) else value)[:500]
    return "changed", ""


def attack(reader: Reader, folder: Path, seed: int, seconds: float) -> None:
    """Read mutants until time is out; what the first ones import counts as the baseline of memory."""
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = reader.make(folder)
    sound, data = reader.read(path), path.read_bytes()
    assert reader.read(path) == sound, reader.name
    assert reader.vouched is None or reader.vouched in data, reader.name
    counts, faults = Counter(), []
    end, at = time.monotonic() + seconds, 0
    while time.monotonic() < end or at < 6:
        if at == 3:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MORE_BYTES, resource.RLIM_INFINITY))
        rng = random.Random(f"{reader.name} {seed} {at}")
        mutant, mended = reader.mutate(data, rng)
        path.write_bytes(mutant)
        tell(begin=reader.name, at=at, path=str(path))
        started = time.process_time()
        outcome, story = outcome_of(
            reader, path, sound, reader.vouched is not None and not mended and reader.vouched in mutant
        )
        if (took := time.process_time() - started) > MOST_SECONDS:
            outcome, story = "slow", f"{took:.1f} s"
        counts[outcome] += 1
        if outcome not in ("refused", "same", "part", "changed"):
            shutil.copy(path, folder.parent / f"{reader.name}-{at}{path.suffix}")
            faults.append(f"{reader.name} mutant {at} of seed {seed}: {outcome}: {story}")
        at += 1
    tell(end=reader.name, counts=counts, faults=faults[:20])


def main() -> None:
    folder, seed, seconds, names = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]
    for name in names:
        attack(READERS[name], folder / name, seed, seconds)


if __name__ == "__main__":
    main()
