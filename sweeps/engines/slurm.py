"""The Slurm engine: one job per cell, submitted by submitit; what vanished without having ended is submitted again.

Slurm is asked where a job is (`squeue`) and never whether a cell is done: that is the ledger's to say, so nothing depends on accounting.
A job's name holds the study's folder and the cell, by which a later sweep on any login node takes over the jobs of an earlier one.
SIGTERM comes two minutes before a job's time is up; the cell is saved, and the job requeues itself.
"""

from __future__ import annotations

import argparse
import getpass
import importlib.util
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dit.design.config import RunConfig, digest
from dit.errors import UserError
from dit.store.paths import refuse_links
from dit.store.study import run_folder
from sweeps.engine import (
    DONE,
    GONE,
    PENDING,
    RUNNING,
    SOME_FAILED,
    STOPPED,
    CellTask,
    CommandState,
    Listener,
    Resources,
)
from sweeps.engines import needs, slurm_jobs
from sweeps.queues import Queue

POLL_S = 15.0
"""Seconds between two looks at the queue: schedulers of thousands of users do not like to be asked more often."""
WARNING_S = 120
"""Seconds before the end of a job's time at which its worker is asked to save."""
OURS = ("job-name", "output", "error", "parsable", "wrap", "array", "signal", "open-mode")
"""Options of sbatch that this engine sets itself, or that would change what a job is."""
TRANSIENT = re.compile(
    "timed out|unable to contact|connection refused|temporarily|submitjob|submit limit|too many|try again",
    re.IGNORECASE,
)
"""Refusals that pass: the controller is busy or restarting, or the user has as many jobs as is allowed."""
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
GOING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the engine's options."""
    group = parser.add_argument_group("engine slurm (see docs/clusters.md)")
    for name, what in (
        ("partition", "partition of the jobs"),
        ("account", "account to charge"),
        ("qos", "quality of service"),
        ("time", "time limit of a job, such as 4:00:00; a cell that needs more goes on in the next"),
        ("constraint", "features that nodes must have"),
        ("gres", "generic resources of a node, such as gpu:h100:4 (default: gpu:N for N GPUs per host)"),
    ):
        group.add_argument(f"--{name}", metavar=name.upper(), help=what)
    group.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="any other long option of sbatch; repeatable",
    )
    group.add_argument(
        "--max-jobs", type=int, default=500, metavar="N", help="jobs in the queue at once (default: 500)"
    )
    group.add_argument(
        "--poll-every",
        type=float,
        default=POLL_S,
        metavar="S",
        help=f"seconds between looks at the queue (default: {POLL_S:g})",
    )


def resources(args: argparse.Namespace, run: RunConfig, declared: needs.Declared | None = None) -> Resources:
    """What a cell's job asks for, sbatch's own options in `scheduler`.

    Raises:
        UserError: for an option that this engine sets itself or that is no long option, or for a TPU slice.
    """
    asked = needs.resources(args, run, declared)
    if asked.platform == "tpu":
        raise UserError(
            f"--hardware for {run.run} is a TPU slice: expected GPUs or cpu with --engine slurm, or --engine ray"
        )
    options = dict(asked.scheduler)
    for text in args.sbatch:
        name, _, value = text.partition("=")
        options[name.removeprefix("--")] = value
    for name in ("partition", "account", "qos", "time", "constraint", "gres"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    for name in options:
        if name in OURS or not re.fullmatch("[a-z][a-z0-9-]+", name):
            raise UserError(
                f"sbatch option {name!r}: expected a long option such as partition, and none of {', '.join(OURS)}"
            )
        if not slurm_jobs.is_one_line(options[name]):
            raise UserError(f"sbatch option {name!r} is {options[name]!r}: expected one line")
    return Resources(**{**vars(asked), "scheduler": tuple(options.items())})


def check(args: argparse.Namespace) -> None:
    """Refuse limits that make no sense, and a machine without submitit or Slurm."""
    if args.max_jobs < 1:
        raise UserError(f"--max-jobs {args.max_jobs}: expected a positive whole number")
    if not args.poll_every > 0:
        raise UserError(f"--poll-every {args.poll_every}: expected a positive number of seconds")
    if importlib.util.find_spec("submitit") is None:
        raise UserError('--engine slurm needs submitit, which is not installed here: pip install "dit-scaling[slurm]"')
    done = _slurm(["squeue", f"--user={getpass.getuser()}", "--noheader"])
    if done.returncode != 0:
        raise UserError(f"Slurm does not answer here: {_last_line(done.stderr)}")


def make(folder: Path, args: argparse.Namespace, listen: Listener) -> SlurmEngine:
    """The engine for the study in `folder`."""
    return SlurmEngine(folder, listen, args.python, args.max_jobs, args.poll_every)


@dataclass(frozen=True)
class Job:
    """A job of Slurm's and the state of its command."""

    number: str
    state: CommandState


class SlurmEngine:
    """Places cells as Slurm jobs; see `sweeps.engine.Engine`."""

    name, detached, reports = "slurm", True, False

    def __init__(
        self, folder: Path, listen: Listener, python: str | None = None, max_jobs: int = 500, poll_s: float = POLL_S
    ):
        self.folder, self.listen, self.python = folder.absolute(), listen, python
        self._max_jobs, self._poll_s = max_jobs, poll_s
        if not slurm_jobs.is_one_line(str(self.folder)):
            raise UserError(f"{str(self.folder)!r}: expected a folder's name of one line with --engine slurm")
        self._prefix = f"dit-{digest(str(self.folder), 8)}-"
        self._scripts = slurm_jobs.jobs_folder(self._prefix.strip("-"))
        self._jobs: dict[str, Job] = {}
        self._waiting: dict[str, CellTask] = {}
        self._queue = Queue(folder, self.name, detached=True)
        self._looked, self._warned = 0.0, ""

    def submit(self, cells: Sequence[CellTask]) -> None:
        """Submit a job for each cell, taking over those that an earlier sweep left in Slurm's queue.

        Raises:
            UserError: with Slurm's own words, if it cannot be reached or refuses the first job for good.
        """
        for task in cells:
            run_folder(self.folder, task.cell)  # names that are none stop here
        for cell, job in self._listing().items():
            self._jobs[cell] = job
        slurm_jobs.tidy(self._scripts, {job.number for job in self._jobs.values()})
        for task in cells:
            if self._jobs.get(task.cell, Job("", GONE)).state == GONE:
                self._waiting[task.cell] = task
        self._submit_waiting()

    def _submit_waiting(self) -> None:
        """Submit what there is room for; the rest waits until jobs have left the queue."""
        for cell, task in list(self._waiting.items()):
            in_queue = sum(job.state != GONE for job in self._jobs.values())
            if in_queue >= self._max_jobs:
                break
            try:
                number = self._place(task)
            except slurm_jobs.Refused as error:
                said = str(error)
                if not TRANSIENT.search(said):
                    raise UserError(f"sbatch refused the job of {cell}: {_last_line(said)}") from error
                self._warn(f"Slurm takes no job now ({_last_line(said)}): trying again")
                break
            self._jobs[cell] = Job(number, PENDING)
            del self._waiting[cell]
        self._save()

    def _place(self, task: CellTask) -> str:
        """Submit a cell's job, the user's options after this engine's own choices; its number."""
        words = task.command if self.python is None else (self.python, *task.command[1:])
        logs = self.folder / "logs"
        refuse_links(logs)
        logs.mkdir(parents=True, exist_ok=True)
        return slurm_jobs.submit(
            self._scripts,
            words,
            self._prefix + task.cell,
            f"{str(logs).replace('%', '%%')}/slurm-{task.cell}-%j.log",
            task.resources,
            {"signal": f"TERM@{WARNING_S}", **dict(task.resources.scheduler)},
        )

    def poll(self, timeout_s: float = 1.0) -> dict[str, CommandState]:
        """Where every cell's job is, as of the last look at the queue."""
        wait = self._looked + self._poll_s - time.monotonic()
        if wait > timeout_s:
            time.sleep(timeout_s)
        else:
            time.sleep(max(0.0, wait))
            self._look()
        states: dict[str, CommandState] = {cell: job.state for cell, job in self._jobs.items()}
        for cell in self._waiting:
            states[cell] = PENDING
        return states

    def _look(self) -> None:
        try:
            there = self._listing()
        except UserError as error:
            self._warn(str(error))
            self._looked = time.monotonic()
            return
        for cell, job in self._jobs.items():
            now = there.get(cell, Job(job.number, GONE))
            self._jobs[cell] = now
            if job.state != GONE and now.state == GONE and (how := self._how_it_ended(job.number)):
                self.listen({"event": "died", "run": cell, "worker": cell, "how": how})
        self._submit_waiting()

    def _listing(self) -> dict[str, Job]:
        """The study's jobs in Slurm's queue, by cell.

        Raises:
            UserError: if Slurm cannot be asked.
        """
        done = _slurm(["squeue", f"--user={getpass.getuser()}", "--noheader", "--format=%i|%T|%j"])
        self._looked = time.monotonic()
        if done.returncode != 0:
            raise UserError(f"squeue failed: {_last_line(done.stderr)}")
        found: dict[str, Job] = {}
        for line in done.stdout.splitlines():
            number, state, name = (*line.strip().split("|", 2), "", "")[:3]
            command = RUNNING if state in GOING else PENDING if state in WAITING else GONE
            if name.startswith(self._prefix) and command != GONE:
                found[name.removeprefix(self._prefix)] = Job(number, command)
        return found

    def _how_it_ended(self, number: str) -> str:
        """What Slurm still remembers of a job that ended other than by its worker's own doing; empty for one that did."""
        done = _slurm(["scontrol", "show", "job", "--oneliner", number])
        said = dict(pair.split("=", 1) for pair in done.stdout.split() if "=" in pair)
        state, code = said.get("JobState", ""), said.get("ExitCode", "")
        own = code in {f"{one}:0" for one in (DONE, SOME_FAILED, STOPPED)} and state in ("COMPLETED", "FAILED")
        if done.returncode != 0 or own or not state:
            return ""
        return f"Slurm job {number} {state}, exit code {code}"

    def cancel(self, cells: Sequence[str]) -> None:
        """Have Slurm end these cells' jobs: SIGTERM, then SIGKILL after the site's KillWait."""
        for cell in cells:
            self._waiting.pop(cell, None)
        numbers = [job.number for cell, job in self._jobs.items() if cell in cells and job.state != GONE]
        if numbers:
            done = _slurm(["scancel", *numbers])
            if done.returncode != 0:
                raise UserError(f"scancel failed: {_last_line(done.stderr)}")

    def detail(self, cell: str) -> str:
        """How the cell's last job ended, as far as Slurm remembers it."""
        return self._how_it_ended(self._jobs[cell].number) if cell in self._jobs else ""

    def _warn(self, message: str) -> None:
        if message != self._warned:
            self.listen({"event": "warning", "message": message})
        self._warned = message

    def _save(self) -> None:
        in_hand = {cell: job.number for cell, job in self._jobs.items() if job.state != GONE} | dict.fromkeys(
            self._waiting, ""
        )
        if in_hand:
            self._queue.save(in_hand)
        else:
            self._queue.close()

    def close(self) -> None:
        """Leave the jobs to Slurm; cells that it has not taken wait for the next sweep."""
        self._waiting.clear()
        self._save()


def _slurm(command: list[str]) -> subprocess.CompletedProcess[str]:
    """A finished command of Slurm's.

    Raises:
        UserError: where it is not installed.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=120)
    except FileNotFoundError as error:
        raise UserError(
            f"no {command[0]} on this machine: run --engine slurm on a login node of the cluster"
        ) from error
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"{command[0]} timed out after 120 s")


def _last_line(text: str) -> str:
    lines = [re.sub("^[a-z_]+: (error: |fatal: )?", "", line) for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
