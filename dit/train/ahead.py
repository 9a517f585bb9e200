"""Compile a run's training step for devices that are only described, and read off what it needs of each.

The step is the one that trains: `dit.train.step.build` on a mesh of the described devices, state and batch laid out as in training.
Started as a process of its own (`python -m dit.train.ahead`, a JSON request on standard input, a JSON report as the last line of standard
output), since the TPU compiler belongs to a process. With `JAX_PLATFORMS=cpu` and libtpu installed no TPU is needed.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from dit.design.arguments import Remat
from dit.design.config import Model, RunArguments, RunConfig, from_json
from dit.design.unet import UNetConfig
from dit.model import mesh as meshes
from dit.model.memory import choose_remat
from dit.train.step import Program, build

POLICIES: tuple[Remat, ...] = ("none", "dots", "full")
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
SIZES = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def report(request: dict[str, Any]) -> dict[str, Any]:
    """Compile and report. With `remat` "auto", first what training would choose in `limit` bytes, then what recomputes more until it fits.

    Args:
        request: `run` (JSON of a `RunConfig`), `topology` (libtpu's name, or null for this machine's CPU), `chip_config`, `host_bounds`,
            `mesh` (as `--mesh`), `remat` and `limit`, bytes of a device.

    Returns:
        `remat`, `auto` (training's own choice), `needed` (bytes of a device), `fits`, and of a step that compiled its sizes, collectives,
        custom calls, host callbacks and attention products; `attempts` has the same of every policy tried.
    """
    run = from_json(request["run"])
    mesh = meshes.make_mesh(request["mesh"], _devices(request))
    arguments = RunArguments(mesh=request["mesh"], remat=request["remat"])
    chosen = build(run, mesh, dataclasses.replace(arguments, remat="none")).compute
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    first = choose_remat(run, dataclasses.replace(chosen, mesh=mesh), arguments, device, request["limit"])
    tried = POLICIES[POLICIES.index(first) :] if request["remat"] == "auto" else (first,)
    attempts: list[dict[str, Any]] = []
    for policy in tried:
        program = build(run, mesh, dataclasses.replace(arguments, remat=policy))
        attempts.append({"remat": policy, **compile_step(run, program, mesh, request["limit"])})
        if attempts[-1]["fits"]:
            break
    return {**attempts[-1], "auto": first, "attempts": attempts}


def _devices(request: dict[str, Any]) -> list[Any]:
    if request["topology"] is None:
        return jax.devices("cpu")[:1]
    described = topologies.get_topology_desc(
        platform="tpu",
        topology_name=request["topology"],
        chip_config_name=request["chip_config"],
        chips_per_host_bounds=tuple(request["host_bounds"]),
    )
    return list(described.devices)


def compile_step(run: RunConfig, program: Program, mesh: Mesh | None, limit: int) -> dict[str, Any]:
    """Compile the step and describe it; a step that the compiler refuses for its size is described by what it says it would need."""
    size = run.model.input_size
    images = jax.ShapeDtypeStruct((run.batch_size, size, size, run.model.in_channels), jnp.float32)
    labels = jax.ShapeDtypeStruct((run.batch_size,), jnp.int32)
    if mesh is not None:
        rows = meshes.batch_sharding(mesh)
        images, labels = (jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for x in (images, labels))
    started = time.perf_counter()
    lowered = program.step.lower(program.abstract(), images, labels)
    told = {"attention": attention_products(lowered.as_text(), *_heads(run.model)), "device": _device_kind(mesh)}
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = needed_bytes(str(error))
        if needed is None:
            raise
        return {**told, "needed": needed, "fits": False, "compile_s": round(time.perf_counter() - started, 1)}
    sizes, text = compiled.memory_analysis(), compiled.as_text()
    assert sizes is not None and text is not None, "libtpu and XLA's CPU compiler give an account of what they compiled"
    parts = {
        "arguments": sizes.argument_size_in_bytes,
        "outputs": sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
        "code": sizes.generated_code_size_in_bytes,
    }
    needed = sum(parts.values())
    seconds = round(time.perf_counter() - started, 1)
    described = {**told, **describe(text), "needed": needed, "fits": needed <= limit}
    return {**described, "bytes": parts, "compile_s": seconds}


def _device_kind(mesh: Mesh | None) -> str:
    return (jax.devices()[0] if mesh is None else mesh.devices.flat[0]).device_kind


def needed_bytes(message: str) -> int | None:
    """Bytes that a compiler's refusal says a program needs; `None` if it was refused for something else."""
    used = re.search(r"Used ([\d.]+)([BKMGT]?) of [\d.]+[BKMGT]? hbm", message)
    total = re.search(r"memory required[^(]*\(([\d.]+)([BKMGT]?)\) exceeds", message)
    found = used or total
    return None if found is None else int(float(found[1]) * SIZES[found[2] or "B"])


def describe(text: str) -> dict[str, Any]:
    """What a compiled program's text shows: collectives (each written once, however often a loop runs it), custom calls, host callbacks."""
    operations = Counter(re.findall(rf"\s({'|'.join(COLLECTIVES)})(?:-start)?\(", text))
    calls = Counter(re.findall(r'custom_call_target="([^"]+)"', text))
    host = [name for name in calls if "callback" in name.lower()]
    host += re.findall(r"\s(infeed|outfeed)\(", text) + re.findall(r"is_host_transfer=true", text)
    return {
        "collectives": {name: operations[name] for name in COLLECTIVES if operations[name]},
        "custom_calls": dict(sorted(calls.items())),
        "host_callbacks": sorted(set(host)),
    }


def _heads(model: Model) -> set[int]:
    """How many heads the model's attentions have."""
    if isinstance(model, UNetConfig):
        return {model.heads(channels) for channels in model.attended}
    return {model.num_heads}


def attention_products(text: str, *num_heads: int) -> dict[str, Any]:
    """Attention in a lowered step: matrix products with batch and heads as batch dimensions, by number format, and softmax's own.

    Blocks are scanned and written once: the forward pass has two products for each attention, the backward pass four, and what is
    recomputed comes again.
    """
    products: Counter[str] = Counter()
    heads = {str(count) for count in num_heads}
    pattern = r"stablehlo\.dot_general .*?batching_dims = \[\d+, \d+\].*? : \(tensor<([\dx]+)x(\w+)>"
    for shape, kind in re.findall(pattern, text):
        if heads & set(shape.split("x")):
            products[kind] += 1
    softmax = Counter(
        kind
        for shape, kind in re.findall(r"stablehlo\.exponential .*? : tensor<([\dx]+)x(\w+)>", text)
        if len(shape.split("x")) >= 4 and heads & set(shape.split("x")[-4:-2])
    )
    return {"products": dict(sorted(products.items())), "softmax": dict(sorted(softmax.items()))}


def main() -> None:
    """Answer one request."""
    print(json.dumps(report(json.load(sys.stdin))))


if __name__ == "__main__":
    main()
