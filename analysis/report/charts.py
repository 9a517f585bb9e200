"""The page's charts as plain data: series of named points, drawn by `assets/report.js` with Chart.js.

A point is [x, y, run, words], or [x, y] of the series' own `run`; a mean is [x, mean, sd, n]. Series of one group (a block) are
shown together; the page lets the reader choose the group, hide series, and change an axis between linear and logarithmic.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.comparable import MAIN_BLOCK, at_common_step
from analysis.figures.compute import GFLOPS_LABEL, with_several_sampling_steps
from analysis.figures.drawing import Scores, Skipped, over_seeds, scores
from analysis.frames import Frame
from analysis.results import StudyResults
from analysis.seeds import require_one_variant
from analysis.style import Look, Looks
from analysis.tables import plain
from dit.design.blocks import block_label, in_order

Chart = dict[str, Any]
_POINTS = {"o": "circle", "s": "rect", "^": "triangle", "v": "triangle", "D": "rectRot", "P": "cross", "": "circle"}
_LOSS_POINTS = 120


def charts(study: StudyResults, shown: Scores | None, logged: Frame) -> list[Chart]:
    """Every chart that the study carries."""
    require_one_variant(study.table)
    looks = Looks(study.sizes, study.patches)
    found: list[Chart] = []
    if shown is not None:
        found.append(_by_cell("compute", "Training compute against score", shown, "train_gflops", _TRAINING, looks))
        found[0]["note"] = "Every training step that was scored. Training compute = Gflops · batch · steps · 3."
        last = shown.of(at_common_step(shown.rows))
        step = int(last.rows["step"].iloc[0])
        found.append(_by_cell("gflops", "Model Gflops against score", last, "gflops", GFLOPS_LABEL, looks))
        found[1]["note"] = f"After {step:,} training steps."
        more = (_by_block(shown, looks), _sampling(study, looks))
        found += [chart for chart in more if chart is not None]
    if not logged.empty and logged["loss"].notna().sum() > 1:
        found.append(_losses(logged, looks))
    return found


_TRAINING = "Training compute (Gflops, multiply-adds)"


def _axis(label: str, log: bool) -> dict[str, Any]:
    return {"label": label, "log": log}


def _chart(name: str, title: str, x: dict[str, Any], y: dict[str, Any], series: list[dict[str, Any]]) -> Chart:
    groups = list(dict.fromkeys(one["group"] for one in series))
    main = block_label(MAIN_BLOCK)
    first = main if main in groups else groups[0]
    return {
        "id": name,
        "title": title,
        "note": "",
        "small": False,
        "x": x,
        "y": y,
        "series": series,
        "groups": groups,
        "group": first,
        "zero": True,
    }


def _series(look: Look, group: str, points: list[list[Any]], means: list[list[Any]]) -> dict[str, Any]:
    return {
        "label": look.label,
        "group": group,
        "colour": look.colour,
        "mark": _POINTS.get(look.marker, "circle"),
        "dash": [] if look.dash == "-" else [4 * part for part in look.dash[1]],  # type: ignore[index]
        "points": points,
        "means": means,
    }


def _by_cell(name: str, title: str, shown: Scores, x: str, label: str, looks: Looks) -> Chart:
    series = []
    for block in in_order(shown.rows["block"]):
        rows = shown.rows[shown.rows["block"] == block]
        for size in (one for one in looks.sizes if one in set(rows["size"])):
            for patch in looks.patches:
                one = rows[(rows["size"] == size) & (rows["patch_size"] == patch)]
                if not one.empty:
                    series.append(_series(looks.cell(size, patch), block_label(block), *_points(one, x, shown.metric)))
    return _chart(name, title, _axis(label, True), _axis(shown.label, shown.spans_decades), series)


def _points(rows: Frame, x: str, metric: str) -> tuple[list[list[Any]], list[list[Any]]]:
    """Every score by its run, and the means over seeds where there are several."""
    ordered = rows.sort_values([x, "run"])
    points = [
        [
            float(at),
            float(value),
            str(run),
            f"step {int(step):,}" + (f", {int(steps)} sampling steps" if pd.notna(steps) else ""),
        ]
        for at, value, run, step, steps in zip(
            ordered[x], ordered[metric], ordered["run"], ordered["step"], ordered["sampling_steps"]
        )
    ]
    means = over_seeds(rows, [x], metric)
    if not (means["n"] > 1).any():
        return points, []
    return points, [[float(m[x]), m["mean"], plain(m["sd"]), int(m["n"])] for m in means.to_dict("records")]


def _by_block(shown: Scores, looks: Looks) -> Chart | None:
    """Blocks over training steps: a group for each cell that has several."""
    rows = shown.rows
    several = rows.groupby(["size", "patch_size"])["block"].transform("nunique") > 1
    series = []
    for size in reversed(looks.sizes):
        for patch in reversed(looks.patches):
            cell = rows[several & (rows["size"] == size) & (rows["patch_size"] == patch)]
            for block in in_order(cell["block"]):
                points = _points(cell[cell["block"] == block], "step", shown.metric)
                series.append(_series(looks.block(block), f"{size}/{patch}", *points))
    if not series:
        return None
    return _chart(
        "blocks", "Block designs over training steps", _axis("Training steps", False), _axis(shown.label, False), series
    )


def _sampling(study: StudyResults, looks: Looks) -> Chart | None:
    try:
        shown = scores(with_several_sampling_steps(study), apart_from=("sampling_steps",))
    except Skipped:
        return None
    shown = shown.of(at_common_step(shown.rows))
    label = "Sampling compute per image (Gflops, multiply-adds)"
    return {
        **_by_cell("sampling", "Sampling compute against score", shown, "sampling_gflops", label, looks),
        "note": f"After {int(shown.rows['step'].iloc[0]):,} training steps; sampling steps differ along each line.",
    }


def _losses(logged: Frame, looks: Looks) -> Chart:
    """Mean training loss of each cell over its seeds, in at most `_LOSS_POINTS` blocks of steps; a point names the runs it is a mean of."""
    series = []
    for block in in_order(logged["block"]):
        of_block = logged[(logged["block"] == block) & logged["loss"].notna()]
        for size in looks.sizes:
            for patch in looks.patches:
                one = of_block[(of_block["size"] == size) & (of_block["patch_size"] == patch)]
                if not one.empty:
                    runs = list(dict.fromkeys(one["run"].astype(str)))
                    name = runs[0] if len(runs) == 1 else f"mean of {len(runs)} runs: {', '.join(runs)}"
                    series.append(
                        {**_series(looks.cell(size, patch), block_label(block), _thinned(one), []), "run": name}
                    )
    chart = _chart("loss", "Training loss", _axis("Training steps", False), _axis("Training loss", False), series)
    settled = np.concatenate([[point[1] for point in one["points"][len(one["points"]) // 20 :]] for one in series])
    low, high = float(settled.min()), float(settled.max())
    chart["y"].update(min=low - 0.05 * (high - low), max=high + 0.05 * (high - low))
    return {
        **chart,
        "note": "Means over blocks of steps and over seeds; the axis is cut above what curves reach early.",
        "small": True,
        "zero": False,
    }


def _thinned(rows: Frame) -> list[list[Any]]:
    steps = rows["step"].astype(float)
    width = max(1.0, (steps.max() - steps.min() + 1) / _LOSS_POINTS)
    blocks = rows.groupby(((steps - steps.min()) // width).astype(int))
    means = zip(blocks["step"].max().tolist(), blocks["loss"].mean().tolist())
    return [[int(step), float(f"{loss:.5g}")] for step, loss in means]
