"""Seconds to collect a large study and ask it a question: through the cache, and by a plain pandas read of the same files.

    python tests/benchmarks/results.py [--runs 10000] [--rows 400] [--scores 4] [--folder DIR] [--plain-runs 1000]

Writes a made-up study (some 600 MB at the default size), then collects its results and losses thrice: with no cache, with the cache, and
after one run has gone on. The question is the best mean score over seeds of each cell, and the mean loss of its last tenth of steps.
Plain pandas reads the first --plain-runs runs, `read_json` on each file of logged rows; its times are scaled up to all runs and marked so.
Processor seconds stand beside the clock's, because a busy machine stretches only those.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.results import collect, losses
from dit.design.config import BLOCKS, DATASETS, SIZES, Evaluation, RunConfig, digest, model_config
from dit.design.rows import score_row
from dit.store.study import RunStore, Study, save_study

DIGITS = DATASETS["digits"]
CELL = ["block", "size", "patch_size"]


def study_of(count: int, steps: int, scores: int) -> tuple[RunConfig, ...]:
    """The 48 cells of the nano ladder on digits under as many seeds as make `count` runs."""
    evaluations = tuple(
        Evaluation(steps * part // scores, "digits", 512, 32, cfg_channels=1) for part in range(1, scores + 1)
    )
    models = [model_config(b, s, p, DIGITS, ladder="nano") for b in BLOCKS for s in SIZES for p in (4, 2, 1)]
    return tuple(
        RunConfig(models[i % 48], DIGITS, steps, 64, seed=i // 48, evaluations=evaluations) for i in range(count)
    )


def write_runs(folder: Path, runs: tuple[RunConfig, ...], rows: int) -> int:
    """Every file that a finished run of the study has, less images and checkpoints; returns their bytes."""
    save_study(folder, Study("large", "", runs))
    rng, size = random.Random(0), 0
    for run in runs:
        store = RunStore(folder, run)
        for part in ("metrics", "evals"):
            (store.path / part).mkdir(parents=True)
        files = {"metrics/0001.jsonl": "".join(lines(run, rows, rng))}
        protocol = {"features": "digits", "num_samples": 512, "sampling_steps": 32, "extractor_sha256": "e" * 64}
        for evaluation in run.evaluations:
            row = score_row(run, "large", evaluation, {evaluation.metric: rng.uniform(20, 200)}, digest(protocol))
            value = {"schema_version": 1, "row": row, "protocol": protocol, "floor": 1.25}
            files[f"evals/{evaluation.step:08d}-{evaluation.key}.json"] = json.dumps(value, indent=1)
        files["status.json"] = json.dumps({"schema_version": 1, "state": "done", "step": run.steps, "attempt": 1})
        for name, text in files.items():
            (store.path / name).write_text(text)
            size += len(text)
    return size


def lines(run: RunConfig, rows: int, rng: random.Random) -> list[str]:
    """Logged rows as the trainer writes them."""
    every = run.steps // rows
    return [
        f'{{"step": {i * every}, "loss": {rng.random()}, "mse": {rng.random()}, "vb": {rng.random()}, '
        f'"grad_norm": {rng.random()}, "images_per_s": {rng.random()}, "train_gflops": {i * 1234.5}}}\n'
        for i in range(1, rows + 1)
    ]


def question(table: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Best mean score over seeds of each cell, beside its late loss."""
    means = table.groupby([*CELL, "step"], observed=True)["fd_digits"].mean().groupby(CELL, observed=True).min()
    late = curves[curves["step"] > 0.9 * curves["step"].max()].groupby(CELL, observed=True)["loss"].mean()
    return pd.DataFrame({"fd_digits": means, "late_loss": late}).sort_values("fd_digits")


def plain(folder: Path, runs: tuple[RunConfig, ...]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Results and losses of the runs as one would read them by hand."""
    scores, curves = [], []
    for run in runs:
        path = folder / "runs" / run.run
        scores += [json.loads(file.read_text())["row"] for file in sorted((path / "evals").glob("*.json"))]
        parts = [pd.read_json(file, lines=True) for file in sorted((path / "metrics").glob("*.jsonl"))]
        logged = pd.concat(parts).drop_duplicates("step", keep="last").sort_values("step")
        model = run.model
        curves.append(logged.assign(run=run.run, block=model.block, size=model.size, patch_size=model.patch_size))
    return pd.DataFrame(scores), pd.concat(curves)


def timed(call: Callable[[], Any]) -> tuple[Any, np.ndarray]:
    """What the call returns, with its seconds by the clock and of the processor."""
    start = np.array([time.perf_counter(), time.process_time()])
    return call(), np.array([time.perf_counter(), time.process_time()]) - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=400, help="logged rows of each run")
    parser.add_argument("--scores", type=int, default=4, help="scores of each run")
    parser.add_argument("--folder", type=Path, help="where to write the study (default: a temporary folder)")
    parser.add_argument("--plain-runs", type=int, default=1000, help="how many of the runs plain pandas reads")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        measure(Path(name) / "large", args)


def measure(folder: Path, args: argparse.Namespace) -> None:
    """Write, read and print."""
    runs = study_of(args.runs, args.rows * 10, args.scores)
    size, elapsed = timed(lambda: write_runs(folder, runs, args.rows))
    logged, scored = args.runs * args.rows, args.runs * args.scores
    print(
        f"{args.runs:,} runs, {logged:,} logged rows, {scored:,} scores, {size / 1e6:,.0f} MB (written in {elapsed[0]:.0f} s)"
    )
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; pandas {pd.__version__}\n")
    time.sleep(3)  # files of the last seconds are read again, see analysis.cache
    print(f"{'':<34}{'results s':>10}{'losses s':>10}{'query s':>10}{'all s':>10}{'processor s':>14}")
    answers = {}

    def show(
        title: str, read: Callable[[], tuple[tuple[Any, np.ndarray], tuple[Any, np.ndarray]]], scale: float = 1.0
    ) -> None:
        (table, first), (curves, second) = read()
        answers[title], third = timed(lambda: question(table, curves))
        total = first + second + third
        cells = [f"{part[0] * scale:>10.2f}" for part in (first, second, third, total)]
        print(f"{title:<34}{''.join(cells)}{total[1] * scale:>14.1f}", flush=True)

    def cached() -> tuple[tuple[Any, np.ndarray], tuple[Any, np.ndarray]]:
        return timed(lambda: collect(folder).table), timed(lambda: losses(folder))

    def by_hand() -> tuple[tuple[Any, np.ndarray], tuple[Any, np.ndarray]]:
        part = runs[: args.plain_runs]
        (table, curves), elapsed = timed(lambda: plain(folder, part))
        return (table, np.zeros(2)), (curves, elapsed)

    show("no cache yet", cached)
    show("cache", cached)
    with open(next((folder / "runs" / runs[0].run / "metrics").iterdir()), "a") as file:
        file.write(f'{{"step": {args.rows * 10 + 10}, "loss": 0.5}}\n')
    show("cache, one run has gone on", cached)
    part = min(args.plain_runs, args.runs)
    show(f"plain pandas (x{args.runs / part:g} from {part:,})", by_hand, args.runs / part)
    if part == args.runs:
        ours, theirs = answers["cache, one run has gone on"], answers[f"plain pandas (x1 from {part:,})"]
        pd.testing.assert_frame_equal(ours, theirs, check_index_type=False)
        print("\nthe answers are equal")


if __name__ == "__main__":
    main()
