"""Design-space ablations and scaling-law studies of diffusion transformers (DiT, arXiv:2212.09748), in JAX.

    dit.results("paper")                        # a study's scores, or the published ones, as a pandas frame
    dit.flops("adaln_zero", "XL", 2)["gflops"]  # one model, counted in closed form
    dit.figures("runs/demo")                    # the paper's figures from logged runs

These three are the public interface, beside `dit.config`, from which a study's file declares its runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__version__ = "0.1.0"
__all__ = ["figures", "flops", "results"]


def results(source: str | Path, where: str | None = None) -> pd.DataFrame:
    """One row for each score of a study's folder or archive, or of "paper" or "baselines"; columns as in `dit.design.rows`.

    Raises:
        UserError: if there is no study or it has no scores, or `where` is no expression over the columns.
    """
    from analysis.results import collect

    return collect(source).where(where).table


def flops(block: str, size: str, patch_size: int, dataset: str = "imagenet256", ladder: str = "dit") -> dict[str, Any]:
    """Parameters and Gflops of one model; one multiply-add is one flop, for one image and one forward pass, the VAE excluded.

    Returns:
        `params`, `gflops`, `paper_gflops` (with the paper's count of element-wise work, see docs/choices.md), and `components`: for each
        part of the model its parameters and multiply-adds.

    Raises:
        UserError: for an unknown block, size, data set or ladder, or a patch size that does not divide the input.
    """
    from dit.design import flops as count
    from dit.design.checks import require_choice
    from dit.design.config import DATASETS, model_config

    require_choice(dataset, list(DATASETS), "dataset")
    model = model_config(block, size, patch_size, DATASETS[dataset], ladder)
    components = {name: {"params": part.params, "macs": part.macs} for name, part in count.components(model).items()}
    totals = {"params": count.params(model), "gflops": count.gflops(model)}
    return {**totals, "paper_gflops": count.gflops(model, paper=True), "components": components}


def figures(
    source: str | Path,
    out: str | Path | None = None,
    only: list[str] | None = None,
    where: str | None = None,
    by: str | None = None,
) -> list[Path]:
    """Draw the figures that a study's rows allow, all or those named, `by` a field of its runs, and return their files.

    Raises:
        UserError: if there is no study, for an unknown figure, or if `out` is a file.
    """
    from analysis.figures.registry import draw_all
    from analysis.results import collect, output_folder

    study = collect(source)
    folder = Path(out) if out else output_folder(source, study) / "figures"
    return [Path(file) for outcome in draw_all(study, folder, only, where=where, by=by) for file in outcome.files]
