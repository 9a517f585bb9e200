"""Fig. 6: what size and patch size do over training steps: sizes at each patch size above, patch sizes at each size below."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from analysis.comparable import MAIN_BLOCK
from analysis.figures.drawing import (
    Drawing,
    Scores,
    Skipped,
    bar,
    curve,
    empty_figure,
    floor_line,
    foot,
    grid_blocks,
    legend,
    looks_of,
    over_seeds,
    score_axis,
    score_label,
    scores,
    spread,
    step_axis,
    title,
)
from analysis.frames import Frame
from analysis.results import StudyResults
from analysis.style import FAINT, Look, pt, stroke
from dit.design.blocks import block_label


def scaling_rows(shown: Scores) -> tuple[str, Frame]:
    """The block that the scaling figures show, and its rows: adaLN-Zero where it has a grid, else the block with the most cells."""
    blocks = grid_blocks(shown.rows)
    if not blocks:
        raise Skipped("no block has scores of three cells: scaling needs several sizes or patch sizes")
    counts = shown.rows.drop_duplicates(["block", "size", "patch_size"])["block"].value_counts()
    block = MAIN_BLOCK if MAIN_BLOCK in blocks else max(blocks, key=lambda name: counts[name])
    return block, shown.rows[shown.rows["block"] == block]


def scaling(study: StudyResults) -> Drawing:
    """Scores over training steps; where all cells share one step only, over sizes (above) and patch sizes (below) at that step."""
    shown = scores(study)
    block, rows = scaling_rows(shown)
    cells = rows.drop_duplicates(["size", "patch_size", "step"]).groupby("step")["run"].transform("size")
    kept = cells.index[cells > 1]
    rows = rows[rows["step"].isin(rows.loc[kept, "step"])]
    if rows.empty:
        raise Skipped("no two cells were scored at one training step")
    shown = shown.of(rows)
    sizes = [size for size in study.sizes if size in set(rows["size"])]
    patches = [patch for patch in study.patches if patch in set(rows["patch_size"])]
    looks = looks_of(study)
    points = over_seeds(rows, ["size", "patch_size", "step"], shown.metric)

    figure = empty_figure(3.9)
    above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
    one_step = rows["step"].nunique() == 1
    by_patch = [(f"Patch size {patch}", [(size, patch) for size in sizes]) for patch in patches]
    by_size = [(f"Size {size}", [(size, patch) for patch in patches]) for size in sizes]
    for part, panels, along, places in (
        (above, by_patch, "Model size", sizes),
        (below, by_size, "Patch size", patches),
    ):
        line = part.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (name, cells) in zip(line, panels):
            series = [(looks.cell(*cell), _cell(points, *cell)) for cell in cells]
            if one_step:
                _at_one_step(axes, series, [str(place) for place in places])
                axes.set_xlabel(along)
            else:
                for look, one in series:
                    curve(axes, one, "step", look)
                step_axis(axes, rows["step"].max())
            floor_line(axes, shown)
            title(axes, name)
        score_axis(line[0], shown, label=False)
    score_label(figure, shown.label)
    size_looks, patch_looks = [looks.size(size) for size in sizes], [looks.patch(patch) for patch in patches]
    legend(figure, [*size_looks, *patch_looks], floor=shown.shows_floor, seeds=spread(points))
    steps = f" After {int(rows['step'].iloc[0]):,} steps." if one_step else ""
    foot(figure, f"{block_label(block)}.{steps} {shown.foot}")
    return Drawing(figure, rows, shown.metric)


def _cell(points: Frame, size: str, patch: int) -> Frame:
    return points[(points["size"] == size) & (points["patch_size"] == patch)]


def _at_one_step(axes: Axes, series: list[tuple[Look, Frame]], places: list[str]) -> None:
    at = [
        (place, look, one["mean"].iloc[0], one["sd"].iloc[0])
        for place, (look, one) in enumerate(series)
        if not one.empty
    ]
    axes.plot([place for place, *_ in at], [mean for _, _, mean, _ in at], color=FAINT, zorder=1)
    for place, look, mean, sd in at:
        bar(axes, place, mean, sd, look)
        axes.annotate(
            f"{mean:.4g}",
            (place, mean),
            (0, pt(5)),
            textcoords="offset points",
            ha="center",
            fontsize=pt(6),
            path_effects=[withStroke(linewidth=stroke(2), foreground="white")],
        )
    axes.set_xticks(range(len(places)), places)
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.grid(visible=False, axis="x")
