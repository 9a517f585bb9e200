"""A made-up study written through `dit.store.study`: scores follow a known law, samples and losses are cheap."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from dit.design import flops
from dit.design.config import BLOCKS, DATASETS, Evaluation, RunConfig, digest, model_config
from dit.design.rows import score_row
from dit.store.study import DONE, FAILED, RunStore, Study, save_study, write_json

BLOCK_PENALTY = {"in_context": 1.6, "cross_attention": 1.3, "adaln": 1.25, "adaln_zero": 1.0}
FLOOR = 1.25


def protocol_of(evaluation: Evaluation) -> dict:
    """The protocol that an evaluation file keeps: the declared parts and what they resolved to."""
    declared = {name: value for name, value in asdict(evaluation).items() if name not in ("step", "metrics")}
    return {**declared, "extractor_sha256": "e" * 64, "reference_sha256": "f" * 64}


def score_of(run: RunConfig, evaluation: Evaluation) -> float:
    """Falls with Gflops and training, rises with few sampling steps; a little apart for each seed."""
    gflops = flops.gflops(run.model) * 1e4
    trained = (evaluation.step / run.steps) ** -0.7
    few = 1 + 4 / evaluation.sampling_steps
    seeds = 1 + 0.04 * math.sin(7 * run.seed + gflops)
    return FLOOR + 30 * gflops**-0.35 * trained * few * BLOCK_PENALTY[run.model.block] * seeds


def evaluations(steps: int, sampling: tuple[int, ...] = ()) -> tuple[Evaluation, ...]:
    """Five scores on the way under one protocol, and one at the end for each further number of sampling steps."""
    base = Evaluation(step=steps, features="digits", num_samples=512, sampling_steps=32, cfg_channels=1)
    over_training = tuple(replace(base, step=steps * part // 5) for part in range(1, 6))
    return over_training + tuple(replace(base, sampling_steps=count) for count in sampling)


def cells(
    blocks: tuple[str, ...] = BLOCKS,
    sizes: tuple[str, ...] = ("S", "B", "L", "XL"),
    patches: tuple[int, ...] = (4, 2, 1),
    seeds: tuple[int, ...] = (0,),
    steps: int = 1000,
    sampling: tuple[int, ...] = (4, 8, 16, 64),
) -> tuple[RunConfig, ...]:
    """Cells of the nano ladder on digits; adaLN-Zero cells at the smallest patch are also scored at other sampling steps."""
    data = DATASETS["digits"]
    runs = []
    for block in blocks:
        for size in sizes:
            for patch in patches:
                more = sampling if block == "adaln_zero" and patch == min(patches) else ()
                for seed in seeds:
                    model = model_config(block, size, patch, data, ladder="nano")
                    runs.append(RunConfig(model, data, steps, 64, seed, evaluations=evaluations(steps, more)))
    return tuple(runs)


def write_run(folder: Path, study: str, run: RunConfig, failed: str | None = None, images: bool = True) -> None:
    """A finished run, or one that failed halfway with its reason."""
    store = RunStore(folder, run)
    store.create()
    last = run.steps // 2 if failed else run.steps
    writer = store.metrics_writer(1)
    rng = np.random.default_rng(run.seed)
    for step in range(10, last + 1, 10):
        loss = 0.12 + 1.5 * (flops.gflops(run.model) * 1e4) ** -0.2 * step**-0.6 + 0.004 * rng.normal()
        writer.write({"step": step, "loss": loss, "mse": loss, "vb": 0.001, "grad_norm": 1.0, "images_per_s": 100.0})
    writer.close()
    for evaluation in run.evaluations:
        if evaluation.step > last:
            continue
        protocol = protocol_of(evaluation)
        row = score_row(run, study, evaluation, {evaluation.metric: score_of(run, evaluation)}, digest(protocol))
        write_json(
            store.evaluation_path(evaluation), {"schema_version": 1, "row": row, "protocol": protocol, "floor": FLOOR}
        )
        if images and evaluation.step == run.steps:
            path = store.samples_path(evaluation)
            path.parent.mkdir(exist_ok=True)
            np.savez(path, images=_images(score_of(run, evaluation)), labels=np.arange(20) % 10)
    store.set_status(
        FAILED if failed else DONE, writer.end, step=last, attempt=1, **({"reason": failed} if failed else {})
    )


def write_study(
    folder: Path,
    runs: tuple[RunConfig, ...],
    name: str = "demo",
    failed: dict[int, str] | None = None,
    run_now: tuple[RunConfig, ...] | None = None,
    images: bool = True,
) -> Path:
    """A whole study, or one of which `run_now` were run so far; `failed` gives a reason to the runs at those places."""
    save_study(folder, Study(name, "A made-up study.", runs))
    for place, run in enumerate(runs):
        if run_now is None or run in run_now:
            write_run(folder, name, run, (failed or {}).get(place), images)
    return folder


def _images(score: float) -> np.ndarray:
    """Twenty 8×8 grey pictures, noisier for a worse score."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:8, 0:8]
    clean = np.stack([255 * (np.hypot(rows - 3.5, columns - 3.5) < 1 + label % 10 * 0.35) for label in range(20)])
    noisy = clean + rng.normal(size=clean.shape) * min(120.0, 3 * score)
    return np.clip(noisy, 0, 255).astype(np.uint8)[..., None]
