"""Memory of the true training step, compiled ahead of time without the accelerators: asked of `dit.train.ahead`, kept by configuration.

A report is kept in the cache folder under a hash of everything that it depends on: the run (but for its seed and scores), the described
devices, the mesh, the policy asked for, the versions of JAX and libtpu, and the source of the step. What is kept is not compiled again.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dit
from dit.design.config import RunConfig, digest, to_json
from dit.errors import UserError
from dit.store.environment import cache_folder
from dit.store.study import exclusive, read_json, write_json
from sweeps.hardware import Hardware

STEP_SOURCES = (
    "model/*.py",
    "diffusion/*.py",
    "design/blocks.py",
    "design/memory_rules.py",
    "train/ahead.py",
    "train/optim.py",
    "train/step.py",
)
"""Files of `dit` that decide what is compiled."""
PACKAGES = ("jax", "jaxlib", "flax", "optax", "libtpu")


@functools.cache
def versions() -> dict[str, str | None]:
    """Versions of what compiles; null for what is not installed. Finding them takes milliseconds: once."""

    def version(name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {name: version(name) for name in PACKAGES}


@functools.cache
def source() -> str:
    """The hash of what decides what is compiled."""
    folder = Path(dit.__file__).parent
    files = [path for pattern in STEP_SOURCES for path in sorted(folder.glob(pattern))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def request(run: RunConfig, hardware: Hardware, mesh: str, remat: str) -> dict[str, Any]:
    """What `dit.train.ahead` is asked: how long to train, which seed and what to score change nothing of the step."""
    cell = to_json(run) | {"steps": 1, "seed": 0, "evaluations": ()}
    cell["model"] = cell["model"] | {"size": "custom", "ladder": "custom"}
    return {
        "run": cell,
        "topology": hardware.topology,
        "chip_config": hardware.chip_config,
        "host_bounds": hardware.host_bounds,
        "mesh": mesh,
        "remat": remat,
        "limit": int(hardware.chip.memory_gib * 2**30),
    }


def _path(asked: dict[str, Any]) -> Path:
    key = digest(json.loads(json.dumps({**asked, "versions": versions(), "source": source()})), 16)
    return cache_folder() / "plans" / f"{key}.json"


def kept(run: RunConfig, hardware: Hardware, mesh: str, remat: str) -> dict[str, Any] | None:
    """The report of a step that has been compiled before under these versions, or none."""
    path = _path(request(run, hardware, mesh, remat))
    return read_json(path)["report"] if path.is_file() else None


def require_compiler(hardware: Hardware) -> None:
    """Whether steps can be compiled for that hardware here.

    Raises:
        UserError: for GPUs, whose compiler needs the GPU; for a TPU without libtpu.
    """
    if hardware.topology is None and hardware.chip.kind != "cpu":
        raise UserError(
            f"--memory compiled cannot be had for {hardware.name}: a GPU's compiler needs the GPU; use --memory analytic"
        )
    if hardware.topology is not None and importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "--memory compiled needs libtpu, which is not installed: pip install 'dit-scaling[tpu-plan]' (no TPU is needed), "
            "or use --memory analytic"
        )


def compiled(run: RunConfig, hardware: Hardware, mesh: str, remat: str, study: str = "") -> dict[str, Any]:
    """The report of `dit.train.ahead` on the run's step, from the cache or compiled now (minutes for large models); one at a time.

    `study` is the file that makes the run's own parts, where it has some.

    Raises:
        UserError: if it cannot be compiled here, or the compiler fails for another reason than size.
    """
    require_compiler(hardware)
    if run.own_parts and not Path(study).is_file():
        raise UserError(f"--memory compiled runs the code of {run.run}: give the study's file in place of its folder")
    asked = request(run, hardware, mesh, remat)
    path = _path(asked)
    with exclusive(path.parent / ".lock", wait=True):
        if not path.is_file():
            answer = _ask(asked, run.run, ["sweeps.compiled", study] if run.own_parts else ["dit.train.ahead"])
            write_json(path, {"schema_version": 1, "request": asked, "versions": versions(), "report": answer})
    return read_json(path)["report"]


def _ask(asked: dict[str, Any], name: str, module: list[str]) -> dict[str, Any]:
    """Run `dit.train.ahead`, or this module where the study's own file has to be run first.

    It is told what makes JAX describe devices instead of looking for them.

    libtpu would let one process of a machine use it, by a lock file that a killed one leaves behind; here no TPU is there to be shared.
    """
    described = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    environment = {**os.environ, **described, "TF_CPP_MIN_LOG_LEVEL": "2"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # what comes from it is no longer the compiler's account
    done = subprocess.run(
        [sys.executable, "-P", "-m", *module],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env=environment,
    )
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    last = ([line for line in done.stderr.splitlines() if line.strip()] or ["no message"])[-1]
    if done.returncode < 0:
        last = f"ended by signal {-done.returncode}; the compiler of a large model needs some 8 GB of memory"
    raise UserError(f"the step of {name} did not compile: {' '.join(last.split())[:300]}")


def main() -> None:
    """Answer a request about a step with parts of the study's own file, whose path is the argument."""
    from dit.train import ahead
    from sweeps.study import declared

    declared(sys.argv[1])
    ahead.main()


if __name__ == "__main__":
    main()
