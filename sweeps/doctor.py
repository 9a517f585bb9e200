"""Checks of a machine and of a study's folder before they cost a run: each a line with ok, warn or fail, and what to do.

Nothing is left behind. Devices are asked in a process of their own, with a deadline, so that none is held here.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dit.design import flops
from dit.design.config import RunArguments, RunConfig
from dit.errors import UserError
from dit.store.lease import LeaseLost, Observer, claim
from dit.store.lease_files import DiskFiles
from dit.store.study import Study, load_study
from sweeps.arguments import load as load_arguments
from sweeps.devices import gpus, tpu_chips
from sweeps.ledger import Ledger
from sweeps.status import status_rows, storage_time, summary

OK, WARN, FAIL = "ok", "warn", "fail"
DEVICES_DEADLINE_S = 120.0
LOW_DISK = 5 * 2**30
RACERS = 8
ELSEWHERE = "keep the study on another disk: this one is not safe"


@dataclass(frozen=True)
class Finding:
    """One check: what it is about, how it came out, what was seen, and what to do about it."""

    level: Literal["ok", "warn", "fail"]
    what: str
    seen: str
    remedy: str = ""


def examine(folder: Path | None) -> Iterator[Finding]:
    """Every check, one after another; those of a folder if one is given."""
    yield from versions()
    yield devices()
    study, arguments = None, RunArguments()
    if folder is not None:
        try:
            study = load_study(folder) if (folder / "study.json").exists() else None
            arguments = load_arguments(folder)
            yield _of_study(folder, study)
        except UserError as error:
            yield Finding(FAIL, "study", str(error), "restore the file from a copy")
    yield wandb(arguments)
    place = folder if folder is not None else Path.cwd()
    writable = storage(place)
    yield writable
    if writable.level == OK:
        yield lease(place)
        yield clock(place)
    yield disk(place, study, arguments)


def versions() -> Iterator[Finding]:
    """Python and the packages that dit stands on, against what it asks for."""
    found = ".".join(map(str, sys.version_info[:3]))
    yield Finding(OK, "python", found)
    seen, old = [], []
    for requirement in importlib.metadata.requires("dit-scaling") or []:
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", requirement)
        if not match:
            continue
        try:
            version = importlib.metadata.version(match[1])
        except importlib.metadata.PackageNotFoundError:
            old.append(f"{match[1]} is missing")
            continue
        seen.append(f"{match[1]} {version}")
        if _numbers(version) < _numbers(match[2]):
            old.append(f"{match[1]} {version} is older than {match[2]}")
    if old:
        yield Finding(FAIL, "packages", "; ".join(old), "pip install --upgrade dit-scaling")
    else:
        yield Finding(
            OK,
            "packages",
            ", ".join(one for one in seen if one.split()[0] in ("jax", "flax", "optax", "orbax-checkpoint")),
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def devices(deadline_s: float = DEVICES_DEADLINE_S) -> Finding:
    """What JAX sees, and whether that is all the accelerators there are."""
    code = "import jax, json; print(json.dumps([[d.platform, d.device_kind] for d in jax.devices()]))"
    try:
        done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=deadline_s)
    except subprocess.TimeoutExpired:
        return Finding(
            FAIL,
            "devices",
            f"JAX did not start within {deadline_s:.0f} s",
            "see whether another process holds the accelerator",
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Finding(
            FAIL, "devices", f"JAX does not start: {last}", "install jax for this accelerator, or set JAX_PLATFORMS=cpu"
        )
    seen = json.loads(done.stdout.splitlines()[-1])
    text = ", ".join(
        f"{sum(one == kind for one in seen)} x {kind[1]} ({kind[0]})"
        for kind in map(list, sorted(set(map(tuple, seen))))
    )
    idle = "GPUs" if gpus() else "TPU chips" if tpu_chips() else ""
    if idle and all(kind == "cpu" for kind, _ in seen) and os.environ.get("JAX_PLATFORMS", "") != "cpu":
        extra = "cuda" if idle == "GPUs" else "tpu"
        return Finding(WARN, "devices", f"{text}, but this machine has {idle}", f"pip install 'dit-scaling[{extra}]'")
    return Finding(OK, "devices", text)


def wandb(arguments: RunArguments) -> Finding:
    """Whether the mirror that the study asks for can work; it is off unless asked for."""
    mode, forced = arguments.wandb, os.environ.get("WANDB_MODE", "")
    if mode == "off":
        return Finding(OK, "wandb", "off")
    try:
        version = importlib.metadata.version("wandb")
    except importlib.metadata.PackageNotFoundError:
        return Finding(
            WARN, "wandb", f"{mode}, but it is not installed", "pip install wandb, or sweep with --wandb off"
        )
    if forced and forced != mode:
        return Finding(
            WARN, "wandb", f"the study asks for {mode}, WANDB_MODE says {forced}", "unset WANDB_MODE, or change --wandb"
        )
    if mode == "online" and not (os.environ.get("WANDB_API_KEY") or Path("~/.netrc").expanduser().exists()):
        return Finding(WARN, "wandb", "online, but nobody is logged in", "wandb login, or sweep with --wandb offline")
    return Finding(OK, "wandb", f"{mode}, version {version}")


def storage(folder: Path) -> Finding:
    """Whether the folder can be written, and what kind of disk it is on."""
    place = folder
    while not place.exists():
        place = place.parent
    path = place / f".doctor.{uuid.uuid4().hex}"
    try:
        with open(path, "wb") as file:
            file.write(b"dit doctor")
            file.flush()
            os.fsync(file.fileno())
        path.unlink()
    except OSError as error:
        return Finding(
            FAIL,
            "storage",
            f"{place} cannot be written: {error.strerror}",
            "make it writable, or choose another folder",
        )
    return Finding(OK, "storage", f"{place} on {_disk_type(place)} can be written")


def _disk_type(folder: Path) -> str:
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "a disk of unknown type"
    inside = [(place, kind) for place, kind in mounts if folder.resolve().is_relative_to(place.replace("\\040", " "))]
    return max(inside, key=lambda one: len(one[0]), default=("", "unknown"))[1]


def lease(folder: Path) -> Finding:
    """Whether the disk grants a claim to one of many, refuses a second, and shows a holder that it was overtaken."""
    place = folder
    while not place.exists():
        place = place.parent
    with tempfile.TemporaryDirectory(prefix=".doctor.", dir=place) as scratch:
        began = time.perf_counter()
        race, held = DiskFiles(Path(scratch) / "race"), DiskFiles(Path(scratch) / "held")
        with ThreadPoolExecutor(RACERS) as pool:
            granted = sum(pool.map(lambda racer: race.create("0001.json", str(racer).encode()), range(RACERS)))
        if granted != 1:
            return Finding(FAIL, "lease", f"{granted} of {RACERS} claims won, expected one", ELSEWHERE)
        with claim(held, "doctor", Observer()) as mine:
            mine.beat()
            held.create("0002.json", b"{}")
            try:
                mine.check()
            except LeaseLost:
                took = 1000 * (time.perf_counter() - began)
                seen = f"one of {RACERS} claims won, and the loser of a lease is told ({took:.0f} ms)"
                return Finding(OK, "lease", seen)
        return Finding(FAIL, "lease", "a worker that lost its lease is not told", ELSEWHERE)


def clock(folder: Path) -> Finding:
    """How far the disk's clock is from this host's; nothing depends on it but what `dit status` shows."""
    now = storage_time(folder) if folder.exists() else None
    if now is None:
        return Finding(OK, "clock", "not compared: the folder does not exist yet")
    apart = now - time.time()
    if abs(apart) > 5:
        return Finding(
            WARN,
            "clock",
            f"the disk's clock is {apart:+.0f} s from this host's",
            "leases do not mind; set the clocks for readable logs",
        )
    return Finding(OK, "clock", f"the disk's clock is {apart:+.1f} s from this host's")


def disk(folder: Path, study: Study | None, arguments: RunArguments) -> Finding:
    """Free space, against what the study's checkpoints will take."""
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    need = 0 if study is None else sum(checkpoint_bytes(run, arguments) for run in study.runs)
    text = f"{free / 2**30:.1f} GiB free"
    if need:
        text += f", the study's checkpoints take {need / 2**30:.1f} GiB when all is done"
    if free < LOW_DISK // 10:
        return Finding(FAIL, "disk", text, "make room: a full disk stops every run")
    if free < max(need, LOW_DISK):
        return Finding(WARN, "disk", text, "make room, keep fewer checkpoints, or choose a larger disk")
    return Finding(OK, "disk", text)


def checkpoint_bytes(run: RunConfig, arguments: RunArguments) -> int:
    """What one run keeps in float32: weights, average and both moments in each checkpoint, and the average of each scored step."""
    scored = len({e.step for e in run.evaluations})
    return 4 * flops.params(run.model) * (4 * arguments.keep_checkpoints + scored)


def _of_study(folder: Path, study: Study | None) -> Finding:
    if study is None:
        return Finding(OK, "study", f"{folder} holds none yet")
    total = summary(status_rows(Ledger(folder, study)))
    counts = ", ".join(f"{count} {state}" for state, count in sorted(total.states.items()))
    text = f"'{study.name}', {total.cells} cells: {counts}"
    if total.stale:
        seen, remedy = f"{text}; {len(total.stale)} stale workers", "names them; any worker takes their cells over"
        return Finding(WARN, "study", seen, f"`dit status {folder}` {remedy}")
    if total.states.get("failed"):
        remedy = f"`dit status {folder}` tells why; `dit retry {folder}` takes them up again"
        return Finding(WARN, "study", text, remedy)
    return Finding(OK, "study", text)
