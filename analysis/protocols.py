"""Evaluation protocols: which scores may share an axis or a comparison.

A protocol is the dictionary kept beside every score (features, samples, sampler, guidance, EMA, reference, ...); column `protocol` of
the results table holds its hash. Scores under different protocols are never compared. A figure that varies one part of the protocol
on purpose (Fig. 10 varies the sampling steps) names that part in `apart_from`, and all the rest must agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.frames import Frame
from dit.design.metrics import column, label_of
from dit.errors import UserError

Protocol = dict[str, Any]
TRAINING_LOSS = "training_loss"
"""Features of the protocol, and column, under which the training loss stands as a score (`analysis.training_loss`)."""


def metric(protocol: Protocol) -> str:
    """Column of the protocol's main score, the Fréchet distance: `fid` only for Inception features."""
    return TRAINING_LOSS if protocol["features"] == TRAINING_LOSS else column("fid", protocol["features"])


def metric_label(protocol: Protocol) -> str:
    """The truthful axis label of the protocol's score: "FID-50K" only for Inception features."""
    if protocol["features"] == TRAINING_LOSS:
        return f"training loss ({describe(protocol)})"
    samples, label = protocol["num_samples"], label_of(metric(protocol))
    if metric(protocol) == "fid" and samples % 1000 == 0:
        return f"{label}-{samples // 1000}K"
    return (
        f"{label.removesuffix(')')}, {samples:,} samples)" if label.endswith(")") else f"{label} ({samples:,} samples)"
    )


def describe(protocol: Protocol) -> str:
    """The protocol in a few words, for the foot of a figure."""
    if protocol["features"] == TRAINING_LOSS:
        steps = protocol["window_steps"]
        return "mean over the last tenth of the steps" if steps is None else f"mean of {steps:,} steps"
    if protocol["features"] == "table":
        return "as the table has it"
    words = [f"{protocol['num_samples']:,} samples"]
    if protocol.get("sampling_steps") is not None:
        words.append(f"{str(protocol.get('sampler')).upper()} {protocol['sampling_steps']} steps")
    if protocol.get("cfg_scale") is not None:
        words.append("no guidance" if protocol["cfg_scale"] == 1.0 else f"guidance {protocol['cfg_scale']:g}")
    if protocol.get("ema") is not None:
        words.append("EMA" if protocol["ema"] else "no EMA")
    if protocol.get("decoder") not in (None, "none"):
        words.append(f"decoder {protocol['decoder']}")
    return ", ".join(words)


def without(protocol: Protocol, apart_from: tuple[str, ...]) -> Protocol:
    """The protocol less the parts that may differ."""
    return {key: value for key, value in protocol.items() if key not in apart_from}


def difference(first: Protocol, second: Protocol, apart_from: tuple[str, ...] = ()) -> list[str]:
    """The parts in which two protocols differ, as "cfg_scale 1.0 and 1.5"; empty if they agree."""
    keys = [key for key in {**first, **second} if key not in apart_from]
    apart = [(key, first.get(key), second.get(key)) for key in keys if first.get(key, ...) != second.get(key, ...)]
    return [f"{key} {' and '.join(_told(key, one, other))}" for key, one, other in apart]


def _told(key: str, *values: Any) -> list[str]:
    """Values as they are read; of features by their names, where those tell them apart."""
    names = [str(one).partition("@")[0] if key == "features" else str(one) for one in values]
    return names if len(set(names)) == len(values) else [str(one) for one in values]


def require_one_protocol(table: Frame, protocols: Mapping[str, Protocol], apart_from: tuple[str, ...] = ()) -> Protocol:
    """The one protocol of all scores in `table`, less what `apart_from` allows to differ.

    Raises:
        UserError: if two scores were taken under protocols that differ, naming both and how to pick one; or if there is no score.
    """
    present = list(dict.fromkeys(table["protocol"].dropna()))
    if not present:
        raise UserError("no score among the selected rows: expected at least one, widen --where")
    first = protocols[present[0]]
    for other in present[1:]:
        apart = difference(first, protocols[other], apart_from)
        if apart:
            raise UserError(
                f"protocols {present[0]} and {other} differ in {'; '.join(apart)}: scores under different protocols are not "
                f"compared; pick one, as in --where \"protocol == '{present[0]}'\""
            )
    return without(first, apart_from)


def families(table: Frame, protocols: Mapping[str, Protocol], apart_from: tuple[str, ...] = ()) -> Frame:
    """For each score, a key that is equal for protocols that agree in all but `apart_from`."""
    return table["protocol"].map(lambda key: repr(sorted(without(protocols[key], apart_from).items())))


def main_protocol(table: Frame, protocols: Mapping[str, Protocol], apart_from: tuple[str, ...] = ()) -> Frame:
    """The rows under the protocol that scores the most runs, then has the most rows.

    Raises:
        UserError: if two protocols have equal claims, or there is no score.
    """
    scored = table[table["protocol"].notna()]
    if scored.empty:
        require_one_protocol(scored, protocols)
    family = families(scored, protocols, apart_from)
    claims = scored.groupby(family)["run"].agg(["nunique", "size"]).sort_values(["nunique", "size"], ascending=False)
    best = claims.index[(claims == claims.iloc[0]).all(axis=1)]
    chosen = scored[family.isin(best)]
    require_one_protocol(chosen, protocols, apart_from)
    return chosen
