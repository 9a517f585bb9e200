"""Loss curves of one small run over other devices, for the tests of meshes: a process of its own, so that it can have eight CPU devices.

Reads a JSON line {"devices", "block", "cases": [{"mesh", "accumulate"}], "process"?: [address, count, index]} and writes one line per case.
"""

import json
import sys

import jax
import numpy as np

from dit.data.batches import ImageDataset, load_images
from dit.design.config import DATASETS, ModelConfig, OptimConfig, RunArguments, RunConfig
from dit.hosts import distributed
from dit.model.mesh import make_mesh
from dit.train.loop import train
from dit.train.step import Program, TrainState, build

STEPS = 6


def a_run(block: str) -> RunConfig:
    model = ModelConfig(block, 4, depth=2, hidden_size=32, num_heads=2, input_size=8, in_channels=1, num_classes=10)
    return RunConfig(
        model,
        DATASETS["digits"],
        steps=STEPS,
        batch_size=16,
        seed=3,
        optim=OptimConfig(learning_rate=2e-3, ema_decay=0.9),
    )


def first_state(program: Program) -> TrainState:
    """No parameter zero, so that no branch is hidden behind a closed gate. By its path: the same over every mesh, nothing compiled."""

    def make(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        value = np.zeros(leaf.shape, leaf.dtype)
        if name.startswith(("params", "ema")):
            rng = np.random.default_rng(list(name.partition("/")[2].encode()))
            value = rng.normal(0, 0.15, leaf.shape).astype(np.float32)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])

    return jax.tree_util.tree_map_with_path(make, program.abstract())


def curve(run: RunConfig, mesh: str, accumulate: int) -> dict:
    program = build(run, make_mesh(mesh), RunArguments(accumulate=accumulate))
    data = ImageDataset(*load_images("digits"), run.batch_size, run.seed, program.rows)
    rows: list[dict] = []
    state = train(program, first_state(program), data, STEPS, 1, rows.append)
    kernel = state.opt_state[0].mu["blocks"]["mlp"]["fc1"]["kernel"][...]  # type: ignore[index]
    shards = {shard.data.shape for shard in kernel.addressable_shards}
    return {
        "mesh": mesh,
        "rows": program.rows.tolist(),
        "loss": [row["loss"] for row in rows],
        "grad_norm": [row["grad_norm"] for row in rows],
        "fc1_moment": kernel.shape,
        "fc1_moment_shards": sorted(shards),
    }


def main() -> None:
    task = json.loads(sys.stdin.readline())
    jax.config.update("jax_num_cpu_devices", task["devices"])
    if "process" in task:
        distributed.start(distributed.Group("the test", *task["process"]))
    for case in task["cases"]:
        print(json.dumps(curve(a_run(task["block"]), case["mesh"], case.get("accumulate", 1))), flush=True)


if __name__ == "__main__":
    main()
