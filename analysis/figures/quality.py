"""Fig. 12: every metric on record over training compute (left) and over model Gflops after training (right)."""

from __future__ import annotations

from matplotlib.axes import Axes

from analysis.comparable import at_common_step
from analysis.figures.compute import GFLOPS_LABEL, log_correlation
from analysis.figures.drawing import (
    Drawing,
    Scores,
    Skipped,
    bar,
    curve,
    fitted,
    foot,
    legend,
    looks_of,
    new_figure,
    over_seeds,
    scores,
    spread,
    title,
)
from analysis.figures.scaling import scaling_rows
from analysis.frames import Frame
from analysis.results import StudyResults
from analysis.style import INK, Looks
from dit.design.blocks import block_label
from dit.design.metrics import in_order, is_better_higher, label_of


def metrics_on_record(rows: Frame, study: StudyResults, metric: str) -> list[str]:
    """The study's metrics of which the rows hold at least three, the main one first."""
    held = [name for name in study.metrics if rows[name].notna().sum() >= 3]
    return sorted(in_order(held), key=lambda name: name != metric)


def metrics(study: StudyResults) -> Drawing:
    """A row for each metric: training compute against it, and model Gflops after the last common step, with their correlation (Fig. 12)."""
    shown = scores(study)
    block, rows = scaling_rows(shown)
    held = metrics_on_record(rows, study, shown.metric)
    if len(held) < 2:
        raise Skipped(f"{shown.metric} is the only metric on record under its protocol")
    looks = looks_of(study)
    last = at_common_step(rows)
    figure, panels = new_figure(0.7 + 1.35 * len(held), len(held), 2, sharey="row")
    found, drawn = {}, None
    for metric, (left, right) in zip(held, panels):
        drawn = _over_compute(left, rows, metric, looks)
        found[metric] = _over_gflops(right, last, metric, looks)
        left.set_ylabel(fitted(left, f"{name_of(metric, shown)} {'↑' if is_better_higher(metric) else '↓'}"))
        bottom = metric == held[-1]
        left.set_xlabel("Training compute (Gflops)" if bottom else "")
        right.set_xlabel(GFLOPS_LABEL if bottom else "")
        values = rows[metric].dropna()
        if 0 < 10 * values.min() < values.max():
            left.set_yscale("log")
        for axes in (left, right):
            axes.set_xscale("log")
            axes.tick_params(labelbottom=bottom)
    title(panels[0][0], "All training steps")
    title(panels[0][1], f"After {int(last['step'].iloc[0]):,} steps")
    sizes = [looks.size(size) for size in looks.sizes if size in set(rows["size"])]
    patches = [looks.patch(patch) for patch in looks.patches if patch in set(rows["patch_size"])]
    legend(figure, [*sizes, *patches], seeds="" if drawn is None else spread(drawn))
    foot(figure, f"{block_label(block)}. ↓ lower is better, ↑ higher is better. {shown.foot}")
    others = rows[["run", "step", "protocol", *held]].astype(object).where(lambda table: table.notna(), None)
    return Drawing(figure, rows, shown.metric, {"log_correlation": found, "metrics": others.to_dict("records")})


def name_of(metric: str, shown: Scores) -> str:
    """A metric's name on an axis."""
    return shown.label if metric == shown.metric else label_of(metric)


def _over_compute(axes: Axes, rows: Frame, metric: str, looks: Looks) -> Frame:
    points = over_seeds(rows[rows[metric].notna()], ["size", "patch_size", "train_gflops"], metric)
    for (size, patch), one in points.groupby(["size", "patch_size"]):
        curve(axes, one, "train_gflops", looks.cell(str(size), int(patch)))  # type: ignore[arg-type]
    return points


def _over_gflops(axes: Axes, rows: Frame, metric: str, looks: Looks) -> float | None:
    points = over_seeds(rows[rows[metric].notna()], ["size", "patch_size", "gflops"], metric)
    for point in points.itertuples():
        bar(axes, point.gflops, point.mean, point.sd, looks.cell(str(point.size), int(point.patch_size)))  # type: ignore[arg-type]
    if len(points) < 3 or points["mean"].nunique() < 2:
        return None
    correlation = log_correlation(points["gflops"], points["mean"])
    axes.set_title(f"r = {correlation:.2f}".replace("-", "−"), color=INK, loc="right")
    return correlation
