"""Made-up scores that follow a known law: the paper's sizes and patches, noise of runs and of scores, without a study on disk."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from analysis.fits.observations import Observations
from analysis.frames import frame
from dit.design.rows import Row

PARAMS = {"S": 33e6, "B": 130e6, "L": 458e6, "XL": 675e6}
PATCHES = (8, 4, 2)
COMMON_STEP = 400_000
STEPS = (50_000, 100_000, 200_000, COMMON_STEP)
Truth = Callable[[Row], float]


def _surface(row: Row) -> float:
    n, t = np.log(row["params"] / 1e8), np.log(row["tokens"] / 64)
    return float(np.exp(4.3 - 0.27 * n - 0.4 * t - 0.11 * n * t))


TRUTHS: dict[str, Truth] = {
    "power": lambda row: 5 * (row["train_gflops"] / 1e9) ** -0.35,
    "power+E": lambda row: 6 + 30 * (row["train_gflops"] / 1e9) ** -0.5,
    "params+tokens": lambda row: 5 + 20 * (row["params"] / 1e8) ** -0.6 + 30 * (row["tokens"] / 64) ** -0.7,
    "surface": _surface,
    "params+images": lambda row: 5 + 20 * (row["params"] / 1e8) ** -0.6 + 30 * (row["images_seen"] / 5e7) ** -0.7,
    "params+tokens+images": lambda row: (
        5
        + 20 * (row["params"] / 1e8) ** -0.6
        + 20 * (row["tokens"] / 64) ** -0.7
        + 10 * (row["images_seen"] / 5e7) ** -0.5
    ),
    "surface+images": lambda row: _surface(row) * (row["images_seen"] / 5e7) ** -0.3,
}
"""A law of each form by the form's name."""


def cell(size: str, patch: int, step: int, block: str = "adaln_zero", seed: int = 0) -> Row:
    """The columns of a cell after a training step; Gflops (one multiply-add is one flop) as 0.68 x parameters x tokens."""
    tokens = (32 // patch) ** 2
    gflops = PARAMS[size] * 0.68 * tokens / 1e9
    return {
        "run": f"{block}-{size}-{patch}-s{seed}",
        "block": block,
        "size": size,
        "patch_size": patch,
        "image_size": 256,
        "seed": seed,
        "tokens": tokens,
        "params": int(PARAMS[size]),
        "gflops": gflops,
        "batch_size": 256,
        "step": step,
        "images_seen": 256 * step,
        "train_gflops": gflops * 256 * 3 * step,
        "sampling_steps": 250,
        "sampling_gflops": gflops * 250,
    }


def observed(rows: list[Row], label: str = "FID-50K", features: str = "inception") -> Observations:
    """Rows with a `fid` as observations under one protocol."""
    return Observations("simulated", frame(rows), "fid", label, {"features": features, "num_samples": 50_000})


def scores(
    truth: Truth,
    sd: float = 0.0,
    seeds: int = 1,
    steps: tuple[int, ...] = (COMMON_STEP,),
    sizes: tuple[str, ...] = tuple(PARAMS),
    rng: np.random.Generator | None = None,
    blocks: tuple[str, ...] = ("adaln_zero",),
    cell_sd: float = 0.0,
) -> Observations:
    """Scores of every cell: `sd` between two runs of one cell, a tenth of its variance drawn anew at each step; `cell_sd` of the cell."""
    rng = rng or np.random.default_rng(0)
    rows = []
    for size in sizes:
        for patch in PATCHES:
            missed = cell_sd * rng.standard_normal()
            for block in blocks:
                for seed in range(seeds):
                    run = rng.standard_normal()
                    for step in steps:
                        row = cell(size, patch, step, block, seed)
                        noise = np.sqrt(0.9) * run + np.sqrt(0.1) * rng.standard_normal() if len(steps) > 1 else run
                        rows.append({**row, "fid": truth(row) * np.exp(sd * noise + missed)})
    return observed(rows)
