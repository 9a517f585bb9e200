"""What checkpoints cost: how long training is held up, until the files are whole on disk, and to restore and verify them.

    python tests/benchmarks/checkpoint.py [--size nano|S3|S|B] [--steps 20] [--repeats 5] [--out FOLDER]

One state (weights, average, two moments) is saved while a step that gives its buffers away goes on, as in training. The share of the step
budget is what a save blocks over the time of the steps between two saves. Orbax alone, in the same rounds, tells what hashing adds.
"""

import argparse
import contextlib
import dataclasses
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from dit.design.config import DATASETS, RunConfig, model_config
from dit.train.checkpoint import CheckpointWriter, flatten
from dit.train.step import build

INTERVAL = 10_000
"""Steps between two checkpoints by default (`dit.design.config.RunArguments.checkpoint_every`)."""

CELLS = {
    "nano": ("S", "nano", 4, "digits", 64),
    "S3": ("S", "dit", 4, "digits", 8),
    "S": ("S", "dit", 4, "digits", 8),
    "B": ("B", "dit", 4, "digits", 8),
}
"""Size, ladder, patch size, data set and batch. S3 is S cut to three blocks, a quarter of its state."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=CELLS, default="S")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    size, ladder, patch, data, batch = CELLS[args.size]
    model = model_config("adaln_zero", size, patch, DATASETS[data], ladder=ladder)
    if args.size == "S3":
        model = dataclasses.replace(model, depth=3)
    run = RunConfig(model, DATASETS[data], 1, batch)
    program = build(run)
    state = program.init()
    shape = (batch, run.model.input_size, run.model.input_size, run.model.in_channels)
    images, labels = jax.numpy.zeros(shape), jax.numpy.zeros(batch, "int32")
    size_mb = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6

    def steps(state, count):
        for _ in range(count):
            state, _ = program.step(state, images, labels)
        return jax.block_until_ready(state)

    state = steps(state, 2)
    times = {
        name: [] for name in ("step", "blocked", "whole", "restore", "orbax blocked", "orbax whole", "orbax restore")
    }

    def timed(name, call, *arguments):
        start = time.perf_counter()
        result = call(*arguments)
        times[name].append(time.perf_counter() - start)
        return result

    folder = Path(tempfile.mkdtemp(dir=args.out))
    with contextlib.closing(ocp.StandardCheckpointer()) as orbax, CheckpointWriter(folder / "own", "x", keep=2) as own:
        for repeat in range(1, args.repeats + 1):
            start = time.perf_counter()
            state = steps(state, args.steps)
            times["step"].append((time.perf_counter() - start) / args.steps)
            start = time.perf_counter()
            timed("blocked", own.save, repeat, state)
            state = steps(state, 2)
            own.wait()
            times["whole"].append(time.perf_counter() - start)
            timed("restore", own.restore, repeat, program.abstract())
            place = folder / f"orbax-{repeat}"
            start = time.perf_counter()
            timed("orbax blocked", orbax.save, place, flatten(state))
            state = steps(state, 2)
            orbax.wait_until_finished()
            times["orbax whole"].append(time.perf_counter() - start)
            timed("orbax restore", orbax.restore, place, flatten(program.abstract()))
    shutil.rmtree(folder)
    print(
        f"{run.model.block}-{args.size}/{patch} ({ladder}), state {size_mb:.1f} MB, batch {batch}, {jax.devices()[0].device_kind}"
    )
    print(f"{'seconds':16}{'median':>10}{'least':>10}{'most':>10}")
    for name, values in times.items():
        print(f"{name:16}{statistics.median(values):10.4f}{min(values):10.4f}{max(values):10.4f}")
    share = statistics.median(times["blocked"]) / (INTERVAL * statistics.median(times["step"]))
    print(f"blocked share of the step budget, a checkpoint every {INTERVAL} steps: {share:.5%}")


if __name__ == "__main__":
    main()
