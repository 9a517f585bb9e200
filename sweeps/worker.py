"""A worker process: imports JAX once, then runs one cell after another as they come on standard input.

Speaks JSON, a line each. In: {"folder", "study", "run", "arguments"}. Out: {"event": "ready"}, then for the cell under way `step`, `score`,
`scored`, `warning` and `failed` events, and {"event": "finished", "state"}. It keeps to its share of the processors from before JAX
starts, so that workers do not disturb each other, and ends as soon as its parent does.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any, TextIO


def main() -> None:
    """Serve cells until standard input closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cpus", default="")
    arguments = parser.parse_args()
    if arguments.cpus:
        _use_processors({int(cpu) for cpu in arguments.cpus.split(",")})
    # What libraries print must not mix with the events: they get the log, which is standard error.
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    inbox: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(inbox,), daemon=True).start()
    _use_compilation_cache()
    _send(events, {"event": "ready"})
    while True:
        _serve(events, json.loads(inbox.get()))


def _use_processors(cpus: set[int]) -> None:
    """Stay on these processors, and have XLA compile for them quickly: a third of the time, for code measured no slower.

    Newer XLA has no flag for its older, quicker fusion emitters, and ends the process at flags that it does not know.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    flags = ["--xla_backend_optimization_level=1", "--xla_cpu_parallel_codegen_split_count=1"]
    if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")])


def _listen(inbox: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        inbox.put(line)
    os._exit(0)  # the parent is gone: leave the cell where it is, it resumes


def _use_compilation_cache() -> None:
    import jax

    from dit.classifier import cache_folder

    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _serve(events: TextIO, task: dict[str, Any]) -> None:
    from dit.config import RunArguments, from_json
    from dit.run import execute

    run = from_json(task["run"])

    def report(event: dict[str, Any]) -> None:
        _send(events, {**event, "run": run.run})

    state = execute(Path(task["folder"]), task["study"], run, RunArguments(**task["arguments"]), report)
    _send(events, {"event": "finished", "run": run.run, "state": state})


def _send(events: TextIO, event: dict[str, Any]) -> None:
    events.write(json.dumps(event) + "\n")


if __name__ == "__main__":
    main()
