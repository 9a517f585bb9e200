"""Who works on a run: numbered attempts, of which the highest holds the run while its heartbeat counts on.

    attempts/<n>.json     attempt n: its owner, a counter that it raises while it lives, how far it came, and how it ended
    attempts/cancel.json  someone asks the holder to save and stop, and everyone not to begin
    attempts/retry.json   failures up to that attempt are forgiven

Claiming a run is creating the next number, which storage grants to one process alone; the number is the fencing token. Before each
write the holder looks for a higher number: finding one, it has lost the run and writes nothing more. An observer takes a run over when
it has seen the same count for the lease time on its own monotonic clock, so no two hosts' clocks are ever compared; an owner on the same
host whose process is gone need not be waited for.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from dit.errors import UserError
from dit.store.files import SCHEMA_VERSION, parse_record, record_bytes
from dit.store.lease_files import DiskFiles, LeaseFiles

LEASE_S = 60.0
"""Seconds without a heartbeat after which a run may be taken over."""

BEATS_PER_LEASE = 6

CANCEL, RETRY = "cancel.json", "retry.json"
CANCELLED, PREEMPTED, LOST = "cancelled", "preempted", "lost"


class Busy(Exception):
    """Another process holds the lock or the lease."""


class LeaseLost(Exception):
    """Another process has taken the run over: this one must not write to it any more."""


class Stopped(Exception):
    """The run was asked to save and end (see `Lease.stop`), and has."""


def this_process() -> dict[str, Any]:
    """What tells this process from every other: host, boot and process name space, process number and its start."""
    return {"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(), "started": _started(os.getpid())}


def is_gone(owner: dict[str, Any]) -> bool:
    """Whether that process has provably ended: it was started under this very kernel and is not there any more."""
    boot, pid = _boot(), owner.get("pid")
    if not boot or owner.get("boot") != boot or not isinstance(pid, int):
        return False
    return _started(pid) != owner.get("started")


def _boot() -> str:
    """This kernel and its process name space; empty where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When the process started, in the kernel's ticks; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run as its file tells it. `held_s` counts by its owner's clock; `ended` is empty while it has not ended."""

    token: int
    owner: dict[str, Any] = field(default_factory=dict)
    beat: int = -1
    lease_s: float = LEASE_S
    held_s: float = 0.0
    ended: str = ""
    progress: dict[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The file's content."""
        return record_bytes({"schema_version": SCHEMA_VERSION, **vars(self)})


_KINDS = {
    "owner": (dict,),
    "beat": (int,),
    "lease_s": (int, float),
    "held_s": (int, float),
    "ended": (str,),
    "progress": (dict,),
}


def parse_attempt(token: int, data: bytes | None) -> Attempt:
    """The attempt in a file; one that is damaged, cut short, or of other making, counts as silent from the start."""
    try:
        value, _ = parse_record(data or b"", _name(token))
        found = Attempt(token, *(value[name] for name in _KINDS))
        told = [found.progress.get(name) for name in ("step", "loss", "images_per_s")]
    except (UserError, KeyError, TypeError, AttributeError):
        return Attempt(token)
    plain = all(type(value[name]) in kinds for name, kinds in _KINDS.items())
    return found if plain and all(type(one) in (int, float, NoneType) for one in told) else Attempt(token)


def tokens(names: list[str]) -> list[int]:
    """The numbers of the attempts among those names, in order."""
    return sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdecimal())


def attempts(files: LeaseFiles) -> list[Attempt]:
    """Every attempt on record, in order."""
    return [parse_attempt(token, files.read(_name(token))) for token in tokens(files.names())]


def _name(token: int) -> str:
    return f"{token:04d}.json"


class Observer:
    """Judges heartbeats by this process's own clock; it remembers what it has seen of each run."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._seen: dict[str, tuple[tuple[int, int], float, bool]] = {}

    def is_free(self, key: str, attempt: Attempt) -> bool:
        """Whether the run named `key`, whose highest attempt that is, may be taken over."""
        if attempt.ended or is_gone(attempt.owner):
            return True
        count, now = (attempt.token, attempt.beat), self._clock()
        before = self._seen.get(key)
        if before is None or before[0] != count:
            self._seen[key] = (count, now, before is not None and before[0][0] == attempt.token)
            return False
        return now - before[1] > attempt.lease_s

    def has_moved(self, key: str) -> bool:
        """Whether this observer has seen the run's holder raise its count."""
        return key in self._seen and self._seen[key][2]

    def silent_s(self, key: str) -> float:
        """Seconds since this observer first saw the present count; 0 for a run it has not looked at."""
        return self._clock() - self._seen[key][1] if key in self._seen else 0.0


class Lease:
    """A run held by this process, with its heartbeat in a thread of its own.

    `stop` is empty until someone asks this attempt to save and end: `preempted` (a signal, see `request_stop`), `cancelled` or `lost`.
    """

    def __init__(
        self,
        files: LeaseFiles,
        token: int,
        lease_s: float = LEASE_S,
        on_beat: Callable[[], None] = lambda: None,
        progress: dict[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.files, self.token, self.lease_s, self.stop = files, token, lease_s, ""
        self._owner = {**this_process(), "claim": uuid.uuid4().hex}  # two claims by one process differ too
        self._clock, self._on_beat = clock, on_beat
        self._progress: dict[str, Any] = dict(progress or {})
        self._beat, self._ended, self._began, self._beaten = 0, "", clock(), clock()
        self._lock, self._closed = threading.RLock(), threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name=f"heartbeat-{token}", daemon=True)

    @property
    def ended(self) -> str:
        """How the attempt ended; empty while it has not."""
        return self._ended

    def start(self) -> Lease:
        """Begin the heartbeat."""
        self._thread.start()
        return self

    def attempt(self) -> Attempt:
        """This attempt as its file tells it."""
        held = round(self._clock() - self._began, 3)
        return Attempt(self.token, self._owner, self._beat, self.lease_s, held, self._ended, dict(self._progress))

    def note(self, **progress: Any) -> None:
        """Let the next heartbeat tell this: `step`, `loss`, `images_per_s`."""
        with self._lock:
            self._progress |= progress

    def request_stop(self, reason: str) -> None:
        """Ask the run to save its state and end; the first reason stays."""
        self.stop = self.stop or reason

    def check(self) -> None:
        """Return if this process may write to the run now.

        Raises:
            LeaseLost: if another has taken it over.
            OSError: if storage does not answer.
        """
        with self._lock:
            if self._clock() - self._beaten > self.lease_s / 2:
                self.beat()  # this process has been paused, or storage away: ask anew before trusting what was known
            else:
                self._look()

    def beat(self) -> None:
        """Raise the count, then see whether the run is still held and whether it should stop; raises as `check` does."""
        with self._lock:
            now = self._clock()
            self._look()
            self._beat += 1
            self.files.replace(_name(self.token), self.attempt().to_bytes())
            self._look()
            self._beaten = now

    def _look(self) -> None:
        names = self.files.names()
        if self._ended or max(tokens(names), default=0) != self.token:
            self.request_stop(LOST)
            taker = "this process ended it" if self._ended else f"attempt {max(tokens(names), default=0)} holds the run"
            raise LeaseLost(f"attempt {self.token} has lost its lease: {taker}")
        if CANCEL in names:
            self.request_stop(CANCELLED)

    def _beat_on(self) -> None:
        while not self._closed.wait(self.lease_s / BEATS_PER_LEASE):
            try:
                self.beat()
            except LeaseLost:
                return
            except OSError:
                pass  # the next write meets it and says so; this thread goes on trying
            self._on_beat()

    def end(self, how: str) -> None:
        """Let the run go and record how the attempt ended; raises as `check` does."""
        with self._lock:
            self.check()
            self._ended = how
            self.files.replace(_name(self.token), self.attempt().to_bytes())

    def withdraw(self) -> None:
        """Undo a claim under which nothing was written."""
        self._ended = LOST
        self.close()
        self.files.remove(_name(self.token))

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        """Let the run go at once if it was not ended, and stop the heartbeat; where storage does not answer, the lease grows stale."""
        if not self._ended:
            with contextlib.suppress(LeaseLost, OSError):
                self.end(LOST)
        self.close()

    def close(self) -> None:
        """Stop the heartbeat and nothing else."""
        self._closed.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()


def claim(
    files: LeaseFiles,
    key: str,
    observer: Observer,
    lease_s: float = LEASE_S,
    after: int = 0,
    on_beat: Callable[[], None] = lambda: None,
    progress: dict[str, Any] | None = None,
) -> Lease:
    """Claim the run named `key`; its attempt gets the next number, more than `after`, and tells `progress` from the start.

    Raises:
        Busy: if another process holds it, or was quicker.
    """
    latest = max(tokens(files.names()), default=0)
    if latest and not observer.is_free(key, parse_attempt(latest, files.read(_name(latest)))):
        raise Busy(f"{key} is held by another process (attempt {latest})")
    lease = Lease(files, max(latest, after) + 1, lease_s, on_beat, progress)
    name = _name(lease.token)
    if not files.create(name, lease.attempt().to_bytes()):
        raise Busy(f"another process was quicker to claim {key}")
    if max(tokens(files.names())) != lease.token:  # this process had looked at an old listing
        files.remove(name)
        raise Busy(f"another process has claimed {key}")
    return lease.start()


def run_files(run_folder: Path) -> DiskFiles:
    """Where the attempts of a run are."""
    return DiskFiles(run_folder / "attempts")
