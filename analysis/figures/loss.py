"""Fig. 13: the training loss over steps: a row for each block, a column for each patch size, a line for each size.

A filter of the results table selects curves too; runs without a score yet are drawn unless it leaves them out.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.drawing import Drawing, Skipped, foot, legend, looks_of, new_figure, score_label, step_axis, title
from analysis.results import StudyResults, losses
from analysis.seeds import require_one_variant
from analysis.style import Look, stroke
from dit.design.blocks import block_label, in_order
from dit.design.config import digest

_WINDOW = 0.04  # of a curve's logged rows: the span of the running mean


def training_loss(study: StudyResults) -> Drawing:
    """Logged training loss (Fig. 13), as a running mean over the raw values, drawn faintly; seeds are averaged."""
    if study.folder is None:
        raise Skipped("the published numbers hold no training losses")
    rows = losses(study.folder)
    if rows.empty or rows["loss"].notna().sum() < 2:
        raise Skipped("no training losses are logged yet")
    rows = rows[rows["loss"].notna() & rows["run"].isin(study.runs)]
    if rows.empty:
        raise Skipped("no training losses are logged for the selected runs")
    require_one_variant(study.table)
    blocks = in_order(rows["block"])
    patches = [patch for patch in study.patches if patch in set(rows["patch_size"])]
    sizes = [size for size in study.sizes if size in set(rows["size"])]
    looks = looks_of(study)
    figure, panels = new_figure(0.75 + 1.25 * len(blocks), len(blocks), len(patches), sharex=True, sharey=True)
    curves = {
        key: one
        for key, one in rows.groupby(["block", "patch_size", "size", "step"])["loss"].mean().groupby(level=[0, 1, 2])
    }
    for block, line in zip(blocks, panels):
        for patch, axes in zip(patches, line):
            for size in sizes:
                if (block, patch, size) in curves:
                    one = curves[block, patch, size]
                    steps = one.index.get_level_values("step").to_numpy(dtype=float)
                    _loss_curve(axes, steps, one.to_numpy(), looks.size(size))
            title(axes, f"{block_label(block)}, patch {patch}")
            step_axis(axes, float(rows["step"].max()), label=block == blocks[-1])
    _limits(panels[0][0], list(curves.values()))
    score_label(figure, "Training loss")
    legend(figure, [looks.size(size) for size in sizes])
    how = (
        f"Running mean over {100 * _WINDOW:g} % of the logged rows. "
        if any(_window(one) > 1 for one in curves.values())
        else ""
    )
    foot(figure, f"Study “{study.name}”. {how}Seeds averaged.")
    last = rows.groupby("run").tail(1).assign(protocol=None)
    logged = rows[["run", "step", "loss"]].to_dict("list")
    return Drawing(figure, last, "loss", {"logged_rows": len(rows), "losses_sha256": digest(logged, length=64)})


def _window(loss: np.ndarray | pd.Series) -> int:
    return max(1, round(len(loss) * _WINDOW))


def _loss_curve(axes: Axes, steps: np.ndarray, loss: np.ndarray, look: Look) -> None:
    window = _window(loss)
    smooth = pd.Series(loss).rolling(window, min_periods=1, center=True).mean()
    if window > 1:
        axes.plot(steps, loss, color=look.colour, linewidth=stroke(0.4), alpha=0.25, zorder=2)
    axes.plot(steps, smooth, color=look.colour, linewidth=stroke(1.0), zorder=3)


def _limits(axes: Axes, curves: list[pd.Series]) -> None:
    """Cut the axis at what the curves reach after their first twentieth: an untrained model's loss would dwarf the rest."""
    settled = np.concatenate([one.to_numpy()[max(len(one) // 20, len(one) > 3) :] for one in curves])
    low, high = float(settled.min()), float(settled.max())
    if high > low:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
