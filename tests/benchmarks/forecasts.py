"""Forecasts of XL from S, B and L on the field's published numbers, scored: error, 95 % interval, and whether it held the truth.

    python tests/benchmarks/forecasts.py [--markdown]

Each is what `dit forecast field --for XL --retrospective --where ...` freezes without XL's scores. The form is the one that forward
validation chooses (S and B forecast L) where it can choose one, as with three patch sizes; else `power`, the only form that three cells at
one step determine. No case is left out; under "error" a positive one is too high.
"""

from __future__ import annotations

import argparse
import statistics

from analysis.forecast import freeze
from analysis.results import StudyResults, collect
from analysis.tables import render
from dit.errors import UserError

STEPS = (5_000, 10_000, 25_000, 50_000, 100_000, 200_000, 300_000, 400_000)
PLAIN = "block == 'adaln_zero' and image_size == 256 and cfg_scale == 1 and num_samples == 50000 and step == 400000"
CASES = (
    *((f"DiCo, loss at {step:,}", f"source == 'DiCo' and step == {step} and training_loss > 0") for step in STEPS),
    ("DiCo, FID", "source == 'DiCo' and step == 400000 and fid > 0"),
    ("SiT, ODE, FID", f"source == 'SiT' and variant == 'SiT' and sampler == 'heun' and {PLAIN}"),
    ("SiT, SDE, FID", f"source == 'SiT' and variant == 'SiT' and sampler == 'euler_maruyama' and {PLAIN}"),
    ("DiT, FID", f"source == 'paper' and {PLAIN}"),
)


def scored(field: StudyResults, name: str, where: str) -> list[dict]:
    """A row for each XL cell of one case."""
    study = field.where(where)
    try:
        made = freeze(study, "XL", retrospective=True)
    except UserError:
        made = freeze(study, "XL", retrospective=True, form="power")
    truth = study.table.set_index(["run", "step"])[made.metric]
    rows = []
    for cell in made.cells:
        measured = float(truth[cell.run, cell.step])
        rows.append(
            {
                "numbers": name,
                "cell": cell.cell,
                "form": made.laws[0].form,
                "forecast": cell.score,
                "low": cell.prediction.low,
                "high": cell.prediction.high,
                "published": measured,
                "error": f"{cell.score / measured - 1:+.2%}",
                "held": "yes" if measured in cell.prediction else "no",
            }
        )
    return rows


def summary(rows: list[dict]) -> str:
    """Median error and how many intervals held the truth, of all and of each kind."""
    words = []
    for kind, chosen in (
        ("all", rows),
        ("losses", [row for row in rows if "loss" in row["numbers"]]),
        ("FIDs", [row for row in rows if "FID" in row["numbers"]]),
    ):
        median = statistics.median(abs(row["forecast"] / row["published"] - 1) for row in chosen)
        held = sum(row["held"] == "yes" for row in chosen)
        words.append(f"{kind}: median error {median:.2%}, {held} of {len(chosen)} intervals held the published value")
    return "\n".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true")
    field = collect("field")
    rows = [row for name, where in CASES for row in scored(field, name, where)]
    print(render(rows, list(rows[0]), "markdown" if parser.parse_args().markdown else "table"))
    print(summary(rows))


if __name__ == "__main__":
    main()
