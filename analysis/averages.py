"""What a study's record says of how its runs were trained: rates and averages, and which scores are of an average still too young.

A moving average of decay d holds the share d^n of its first weights after n steps: below 5 / (1 - d) steps that is more than
e^-5 = 0.7 %, which a score shows. An import that does not tell the decay tells nothing here.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from analysis.frames import Frame
from analysis.protocols import Protocol
from analysis.results import StudyResults
from dit.design.config import OptimConfig
from dit.store.study import load_study, read_json

GROWN = 5.0
"""Steps times (1 - decay) from which an average has forgotten its first weights."""
_PAPER = OptimConfig()  # Peebles & Xie 2022, Sec. 4, whose values are the defaults


def recipes(study: StudyResults) -> dict[str, OptimConfig]:
    """The optimizer of each run whose record tells it; those of the published runs are the paper's."""
    if study.folder is None:
        return dict.fromkeys(study.table["run"], _PAPER) if study.name == "paper" else {}
    found = {}
    for run in load_study(study.folder).runs:
        imported = study.folder / "runs" / run.run / "imported.json"
        whole = not imported.is_file() or isinstance(read_json(imported)["config"].get("model"), dict)
        if whole:
            found[run.run] = run.optim
    return found


def too_young(study: StudyResults, rows: Frame, protocol: Protocol) -> np.ndarray:
    """Mask (n,) of the rows whose score is of a moving average younger than `GROWN`; none where the record does not tell."""
    if not protocol.get("ema"):
        return np.zeros(len(rows), dtype=bool)
    decays = {run: optim.ema_decay for run, optim in recipes(study).items()}
    decay = np.array([decays.get(run, np.nan) for run in rows["run"]], dtype=float)
    return rows["step"].to_numpy(dtype=float) * (1 - decay) < GROWN * (1 - 1e-6)


def described(study: StudyResults, rows: Frame) -> str:
    """How the rows' runs were trained, as recorded; what varies is told as such, and what is not on record too."""
    known = recipes(study)
    runs = list(dict.fromkeys(rows["run"]))
    found = list(dict.fromkeys(known[run] for run in runs if run in known))
    if not found:
        return "not recorded"
    values = [
        f"{one.name} {' or '.join(dict.fromkeys(f'{getattr(optim, one.name)}' for optim in found))}"
        for one in dataclasses.fields(OptimConfig)
    ]
    lacking = sum(run not in known for run in runs)
    said = "as the paper states" if study.folder is None else "as recorded"
    return f"{said}: {', '.join(values)}" + (f"; not recorded for {lacking} of {len(runs)} runs" if lacking else "")
