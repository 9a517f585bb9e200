"""The Ray engine, seen from the user's machine: one job of Ray's per study, which goes on when this machine is gone.

The job (`sweeps.engines.ray_driver`) places cells on the cluster's hosts. Its submission id follows from the study's folder, so that Ray
itself refuses a second one. Nothing is kept in Ray that is not in the study's folder, which every host must see under the same path: a
cluster that dies loses no more than the steps since the last checkpoints.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dit.design.config import RunConfig, digest
from dit.errors import UserError
from dit.store.study import SCHEMA_VERSION, run_folder, write_json
from sweeps.engine import GONE, PENDING, RUNNING, CellTask, CommandState, Listener, Resources
from sweeps.engines import needs
from sweeps.queues import Queue

PLAN = "ray.json"
"""In the study's folder: what the job is to place, and what each cell needs."""
PATIENCE_S = 300.0
"""Seconds without an answer after which a cluster is taken to be gone."""
POLL_S = 2.0
NO_TELEMETRY = {"RAY_USAGE_STATS_ENABLED": "0"}


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the engine's options."""
    group = parser.add_argument_group("engine ray (see docs/clusters.md)")
    group.add_argument(
        "--address", metavar="URL", help="Ray's dashboard (default: RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265)"
    )
    group.add_argument(
        "--start-within",
        type=float,
        default=600.0,
        metavar="S",
        help="seconds that a cell's hosts may take to start together before they are asked for anew (default: 600)",
    )


def resources(args: argparse.Namespace, run: RunConfig, declared: needs.Declared | None = None) -> Resources:
    """What a cell's command needs of the cluster."""
    return needs.resources(args, run, declared)


def check(args: argparse.Namespace) -> None:
    """Refuse a deadline that makes no sense, a machine without Ray, and an address where no cluster answers."""
    if not args.start_within > 0:
        raise UserError(f"--start-within {args.start_within}: expected a positive number of seconds")
    _client(address(args.address))


def make(folder: Path, args: argparse.Namespace, listen: Listener) -> RayEngine:
    """The engine for the study in `folder`."""
    return RayEngine(folder, listen, address(args.address), args.python or "python3", args.start_within)


def address(given: str | None) -> str:
    """Where the cluster's dashboard is."""
    url = given or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    return url if "://" in url else f"http://{url}"


def submission_id(folder: Path) -> str:
    """The id of a study's job: its folder's name to read and its path's hash to tell."""
    return f"dit-{re.sub('[^A-Za-z0-9_-]', '-', folder.name)[:40]}-{digest(str(folder.absolute()))}"


class RayEngine:
    """Submits a study's cells as one job and watches it; see `sweeps.engine.Engine`."""

    name, detached, reports = "ray", True, False

    def __init__(self, folder: Path, listen: Listener, url: str, python: str, start_within_s: float):
        self.folder, self.listen, self.url = folder.absolute(), listen, url
        self._python, self._start_within_s = python, start_within_s
        self.job = submission_id(folder)
        self._client = _client(url)
        self._cells: dict[str, CommandState] = {}
        self._looked = self._answered = time.monotonic()
        self._queue = Queue(folder, self.name, detached=True)

    def submit(self, cells: Sequence[CellTask]) -> None:
        """Submit the job; one of this study's that has ended makes room for it.

        Raises:
            UserError: if the study's job is running already, or the cluster refuses it.
        """
        for task in cells:
            run_folder(self.folder, task.cell)  # names that are none stop here
        state = self._job_state()
        if state in (PENDING, RUNNING):
            raise UserError(self._runs_already())
        if state is not None:
            self._client.delete_job(self.job)
        plan = {task.cell: dataclasses.asdict(task.resources) for task in cells}
        write_json(self.folder / PLAN, {"schema_version": SCHEMA_VERSION, "cells": plan})
        command = [self._python, "-P", "-m", "sweeps.engines.ray_driver", "--study", str(self.folder)]
        command += ["--start-within", str(self._start_within_s)]
        try:
            self._client.submit_job(
                entrypoint=shlex.join(command), submission_id=self.job, runtime_env={"env_vars": NO_TELEMETRY}
            )
        except Exception as error:
            if "already exists" in str(error):
                raise UserError(self._runs_already()) from error
            raise UserError(f"Ray at {self.url} refused the job {self.job}: {_reason(error)}") from error
        self._cells |= {task.cell: PENDING for task in cells}
        self._queue.save({task.cell: self.job for task in cells})
        self.listen(
            {"event": "warning", "message": f"submitted as Ray job {self.job}: it goes on if this command ends"}
        )

    def _runs_already(self) -> str:
        return (
            f"the study in {self.folder} is running already, as Ray job {self.job} at {self.url}: "
            f"watch it with `dit status {self.folder} --watch`, or stop it with `ray job stop {self.job}`"
        )

    def _job_state(self) -> CommandState | None:
        """The job's state; None if the cluster has none of that id.

        Raises:
            UserError: once the cluster has been silent for too long.
        """
        try:
            status = self._client.get_job_status(self.job)
        except Exception as error:
            if "does not exist" in str(error) or "404" in str(error):
                self._answered = time.monotonic()
                return None
            if time.monotonic() - self._answered < PATIENCE_S:
                return RUNNING if self._cells else None
            raise UserError(
                f"Ray at {self.url} has not answered for {PATIENCE_S:.0f} s ({_reason(error)}): "
                "nothing saved is lost, sweep again when the cluster is back"
            ) from error
        self._answered = time.monotonic()
        return GONE if status.is_terminal() else PENDING if status.name == "PENDING" else RUNNING

    def poll(self, timeout_s: float = 1.0) -> dict[str, CommandState]:
        """Every cell is where the job is: what becomes of each, the job sees to and the ledger tells."""
        wait = self._looked + POLL_S - time.monotonic()
        time.sleep(max(0.0, min(wait, timeout_s)))
        if wait <= timeout_s:
            state = self._job_state() or GONE
            self._looked = time.monotonic()
            self._cells = dict.fromkeys(self._cells, state)
            if state == GONE:
                self._queue.close()
        return dict(self._cells)

    def cancel(self, cells: Sequence[str]) -> None:
        """End the job if these are all its cells; a single cell's worker sees its cancellation in the ledger."""
        if set(self._cells) <= set(cells):
            self._client.stop_job(self.job)

    def detail(self, cell: str) -> str:
        """What Ray says of the job."""
        try:
            return str(self._client.get_job_info(self.job).message or "")[:300]
        except Exception:
            return ""

    def close(self) -> None:
        """Leave the job to the cluster."""


def _client(url: str) -> Any:
    """Ray's client for jobs.

    Raises:
        UserError: where Ray is not installed, or no cluster answers.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError('--engine ray needs Ray, which is not installed here: pip install "dit-scaling[ray]"')
    os.environ.update(NO_TELEMETRY)
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise UserError(f'--engine ray needs all of Ray ({error}): pip install "dit-scaling[ray]"') from error
    try:
        return JobSubmissionClient(url)
    except Exception as error:
        reason = "" if "Failed to connect" in str(error) else f" ({_reason(error)})"
        raise UserError(
            f"no Ray cluster answers at {url}{reason}: start one (`ray start --head`), or give its --address"
        ) from error


def _reason(error: Exception) -> str:
    """The last line of Ray's message, which may hold a whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
