"""bfloat16 against float32 over 500 steps on digits: `python tests/benchmarks/precision.py [--steps 500]`.

The same seed, so the same images, timesteps, noise and drops in both. Beside them float32 from another seed, which shows how far losses lie
apart where nothing but chance differs. Losses are means over the last fifth of the steps; the gap is of single steps' losses.
"""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np

from dit.data.batches import ImageDataset, load_images
from dit.design.config import DATASETS, OptimConfig, RunConfig, model_config
from dit.train.loop import train
from dit.train.step import build

CELLS = (("adaln_zero", "S", 4), ("adaln_zero", "B", 4), ("adaln_zero", "S", 2))


def losses(run: RunConfig) -> np.ndarray:
    """Loss of every step."""
    program, rows = build(run), []
    dataset = ImageDataset(*load_images("digits"), run.batch_size, run.seed)
    train(program, program.init(), dataset, run.steps, 1, rows.append)
    assert not any(row["spikes"] or row["skipped"] for row in rows)
    return np.array([row["loss"] for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--cell", type=int, choices=range(len(CELLS)), help="only this one")
    args = parser.parse_args()
    steps = args.steps
    print("| cell | float32 | bfloat16 | difference | float32, another seed | difference | largest gap of one step |")
    print("|---|---|---|---|---|---|---|")
    for block, size, patch_size in CELLS if args.cell is None else CELLS[args.cell : args.cell + 1]:
        data = DATASETS["digits"]
        model = model_config(block, size, patch_size, data, "nano")
        optim = OptimConfig(learning_rate=1e-3, b2=0.99, ema_decay=0.99)
        exact = RunConfig(model, data, steps, 32, optim=optim)
        curves = [
            losses(dataclasses.replace(exact, **change)) for change in ({}, {"precision": "bfloat16"}, {"seed": 1})
        ]
        ours, half, other = (float(curve[-steps // 5 :].mean()) for curve in curves)
        gap = float(np.abs(curves[0] - curves[1]).max())
        print(
            f"| {block} {size}/{patch_size} | {ours:.4f} | {half:.4f} | {100 * (half / ours - 1):+.2f} % "
            f"| {other:.4f} | {100 * (other / ours - 1):+.2f} % | {gap:.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
