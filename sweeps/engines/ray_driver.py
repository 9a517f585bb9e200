"""The job that places a study's cells on a Ray cluster: `python -m sweeps.engines.ray_driver --study DIR`.

It runs on the cluster, imports no JAX, and drives the same loop as `dit sweep` does, with Ray's tasks as its engine. A host that is
lost takes its cells' tasks with it; they are placed anew when the ledger says that they had not ended.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dit.design.config import RunConfig
from dit.errors import UserError
from dit.store.study import load_study, read_json
from sweeps import arguments
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
from sweeps.engines import ray_tasks
from sweeps.engines.ray import NO_TELEMETRY, PLAN
from sweeps.queues import Queue
from sweeps.sweep import sweep

AGAIN_S = 10.0
"""Seconds after which cells that others hold are looked at again."""


def main() -> int:
    """Place the planned cells until each has ended; the exit code of `dit sweep`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--start-within", type=float, required=True)
    args = parser.parse_args()
    study, plan = load_study(args.study), planned(args.study)
    runs = tuple(run for run in study.runs if run.run in plan)
    chosen = arguments.load(args.study)

    def needs(run: RunConfig) -> Resources:
        return plan[run.run]

    def tell(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    placement: list[Placement] = []

    def make(folder: Path, listen: Listener) -> Placement:
        placement[:] = placement or [Placement(folder, args.start_within)]
        placement[0].listen = listen
        return placement[0]

    connect()
    while True:
        outcome = sweep(study, runs, args.study, chosen, make, needs, False, tell)
        tell(f"{outcome.done} of {outcome.cells} done, {outcome.failed} failed, {outcome.cancelled} cancelled")
        if outcome.stopped:
            return STOPPED
        if outcome.done + outcome.failed + outcome.cancelled == outcome.cells:
            return SOME_FAILED if outcome.failed else DONE
        time.sleep(AGAIN_S)


def planned(folder: Path) -> dict[str, Resources]:
    """What each cell of the job needs, as `sweeps.engines.ray` wrote it.

    Raises:
        UserError: for a plan of another making.
    """
    value = read_json(folder / PLAN)
    try:
        plan = {}
        for cell, asked in value["cells"].items():
            scheduler = tuple((str(name), str(setting)) for name, setting in asked.pop("scheduler"))
            plan[str(cell)] = Resources(**asked, scheduler=scheduler)
        return plan
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / PLAN} is no plan of this version: sweep again") from error


def connect() -> None:
    """Join the cluster that this process was started on."""
    import os

    os.environ.update(NO_TELEMETRY)
    import ray

    ray.init(address="auto", log_to_driver=False)


class Placement:
    """Places cells as tasks and gangs of the cluster that this process is connected to; see `sweeps.engine.Engine`."""

    name, detached, reports = "ray", False, False

    def __init__(self, folder: Path, start_within_s: float, listen: Listener = lambda event: None):
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.folder, self.listen, self._ray = folder.absolute(), listen, ray
        self._start_within_s = start_within_s
        self._refs: dict[Any, str] = {}
        self._gangs: dict[str, float] = {}
        self._tasks: dict[str, CellTask] = {}
        self._late: set[str] = set()
        self._waiting: dict[str, CellTask] = {}
        self._details: dict[str, str] = {}
        self._cells: dict[str, CommandState] = {}
        # What only waits stays on this process's own host: on another it would be lost with that.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._here = {"num_cpus": 0, "scheduling_strategy": here}
        self._starts = ray.remote(**self._here)(ray_tasks.Starts).remote()
        self._fences: dict[str, Any] = {}
        self._queue = Queue(folder, self.name, detached=True)

    def submit(self, cells: Sequence[CellTask]) -> None:
        """Hand one-host cells to Ray, which places them as hosts become free; gangs wait until their hosts are."""
        for task in cells:
            if self._cells.get(task.cell) in (PENDING, RUNNING):
                continue
            self._cells[task.cell] = PENDING
            if task.resources.hosts > 1:
                self._waiting[task.cell] = task
            else:
                self._start(task)
        self._start_gangs()
        self._save()

    def _start(self, task: CellTask) -> None:
        asked, ray = task.resources, self._ray
        log = str(self.folder / "logs" / f"ray-{task.cell}.log")
        once = {"max_calls": 1, "max_retries": 0}
        if asked.hosts > 1:
            ref = ray.remote(**self._here, **once)(ray_tasks.run_gang).remote(
                task.cell, task.command, log, dataclasses.asdict(asked), self._start_within_s, self._starts
            )
            self._gangs[task.cell], self._tasks[task.cell] = time.monotonic(), task
        else:
            options: dict[str, Any] = {"num_cpus": asked.cpus_per_host, **once}
            if asked.platform == "gpu":
                options["num_gpus"] = asked.chips_per_host
            elif asked.platform == "tpu":
                options["resources"] = {"TPU": asked.chips_per_host}
            if asked.accelerator:
                options["accelerator_type"] = ray_tasks.RAY_ACCELERATORS[asked.accelerator]
            if asked.memory_gb:
                options["memory"] = int(asked.memory_gb * 1e9)
            ref = ray.remote(**options)(ray_tasks.run_command).remote(task.command, log)
        self._refs[ref] = task.cell
        self._cells[task.cell] = RUNNING

    def poll(self, timeout_s: float = 1.0) -> dict[str, CommandState]:
        """Take note of tasks that have ended, and start gangs for which there is room."""
        if self._refs:
            ended, _ = self._ray.wait(list(self._refs), num_returns=len(self._refs), timeout=timeout_s)
        else:
            ended = []
            time.sleep(timeout_s)
        for ref in ended:
            self._take(ref)
        self._end_late_gangs()
        self._start_gangs()
        if ended:
            self._save()
        return dict(self._cells)

    def _take(self, ref: Any) -> None:
        cell = self._refs.pop(ref)
        self._cells[cell] = GONE
        self._gangs.pop(cell, None)
        try:
            code = ray_tasks.NOT_STARTED if cell in self._late else self._ray.get(ref)
            self._details[cell] = f"exit code {code}"
        except Exception as error:
            code, self._details[cell] = None, _in_a_line(error)
        self._late.discard(cell)
        if code in (DONE, SOME_FAILED, STOPPED):
            return
        if code == ray_tasks.NOT_STARTED:
            self._cells[cell], self._waiting[cell] = PENDING, self._tasks[cell]
            message = f"{cell}: its hosts did not start together within {self._start_within_s:g} s, asking anew"
            self.listen({"event": "warning", "message": message})
            return
        self.listen({"event": "died", "run": cell, "worker": cell, "how": self._details[cell]})

    def _start_gangs(self) -> None:
        """Start as many gangs as there are whole slices, or hosts, for; one at least, for a cluster that grows on demand."""
        if not self._waiting:
            return
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        self._fence_broken_slices(nodes)
        for cell, task in list(self._waiting.items()):
            if len(self._gangs) >= max(1, room(nodes, task.resources)):
                break
            del self._waiting[cell]
            self._start(task)

    def _fence_broken_slices(self, nodes: list[dict[str, Any]]) -> None:
        """Keep the heads of slices that have lost hosts, as Ray would go on reserving them in vain; let go of mended ones."""
        from ray.util.placement_group import placement_group, remove_placement_group

        broken = broken_slices(nodes, next(iter(self._waiting.values())).resources)
        for name, head in broken.items():
            if name not in self._fences:
                label = {"ray.io/tpu-slice-name": name}
                self._fences[name] = placement_group([{head: 1}], bundle_label_selector=[label])
        for name in set(self._fences) - set(broken):
            remove_placement_group(self._fences.pop(name))

    def _end_late_gangs(self) -> None:
        """End gangs whose hosts have not all started in time, whatever Ray's own deadline did."""
        if not self._gangs:
            return
        for cell in self._ray.get(self._starts.take.remote()):
            if cell in self._gangs:
                self._gangs[cell] = float("inf")
        overdue = time.monotonic() - 1.5 * self._start_within_s - 60
        self._late |= {cell for cell, began in self._gangs.items() if began < overdue}
        for ref, cell in list(self._refs.items()):
            if cell in self._late:
                self._ray.cancel(ref, force=True)

    def cancel(self, cells: Sequence[str]) -> None:
        """End these cells' tasks: commands on one host get SIGTERM and time to save, gangs end by force."""
        for cell in cells:
            if self._waiting.pop(cell, None):
                self._cells[cell] = GONE
        for ref, cell in self._refs.items():
            if cell in cells:
                self._ray.cancel(ref, force=cell in self._gangs)

    def detail(self, cell: str) -> str:
        """How the cell's last task ended."""
        return self._details.get(cell, "")

    def _save(self) -> None:
        in_hand = dict.fromkeys((cell for cell, state in self._cells.items() if state != GONE), "")
        if in_hand:
            self._queue.save(in_hand)
        else:
            self._queue.close()

    def close(self) -> None:
        """Ask what runs to save and end; the job ends with this process."""
        self.cancel(list(self._cells))
        if self._refs:
            self._ray.wait(list(self._refs), num_returns=len(self._refs), timeout=ray_tasks.GRACE_S)
        for ref in list(self._refs):
            self._cells[self._refs.pop(ref)] = GONE
        self._gangs.clear()
        self._save()


def room(nodes: list[dict[str, Any]], asked: Resources) -> int:
    """How many gangs of that kind the cluster's live nodes can hold at once.

    `nodes` are Ray's own descriptions, with `Resources` and `Labels`.
    """
    if asked.platform == "tpu":
        sizes = _slices(nodes, asked.topology)
        return sum(chips >= asked.hosts * asked.chips_per_host for chips, _ in sizes.values())
    wanted = {"CPU": asked.cpus_per_host, "GPU": asked.chips_per_host if asked.platform == "gpu" else 0}
    fits = 0
    for node in nodes:
        has = node["Resources"]
        fits += int(min(has.get(name, 0) // count for name, count in wanted.items() if count))
    return fits // asked.hosts


def broken_slices(nodes: list[dict[str, Any]], asked: Resources) -> dict[str, str]:
    """Slices that have their head but not all their chips: name, and the resource that stands for the head."""
    if asked.platform != "tpu":
        return {}
    whole = asked.hosts * asked.chips_per_host
    return {name: head for name, (chips, head) in _slices(nodes, asked.topology).items() if head and chips < whole}


def _slices(nodes: list[dict[str, Any]], topology: str) -> dict[str, tuple[float, str]]:
    """Each TPU slice's live chips, and its head's resource; empty if the head is gone."""
    found: dict[str, tuple[float, str]] = {}
    for node in nodes:
        labels = node.get("Labels") or {}
        name = labels.get("ray.io/tpu-slice-name")
        if name and labels.get("ray.io/tpu-topology") == topology:
            has = node["Resources"]
            head = next((one for one in has if one.startswith("TPU-") and one.endswith("-head")), "")
            chips, known = found.get(name, (0.0, ""))
            found[name] = (chips + has.get("TPU", 0), known or head)
    return found


def _in_a_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {(lines or [''])[0][:200]}"


if __name__ == "__main__":
    sys.exit(main())
