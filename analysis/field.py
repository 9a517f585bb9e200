"""The numbers of the field, as rows of the results table: what others published of DiTs and of their rivals, beside the paper's own.

`field.csv` holds them as printed, a row for each set of scores, with who published it (`source`), where (`citation`) and how it was read
(`reading`: digitised values say so). What a source leaves unsaid is "unknown" there; as rows, a gap in columns of numbers. A row's protocol
names its source wherever a part of it is unknown: what nobody said is not known to agree, so such rows share no axis with others.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import Any

from analysis import published
from analysis.protocols import TRAINING_LOSS
from dit.design.config import digest
from dit.design.flops import BACKWARD_FACTOR
from dit.design.rows import VARIANT, Row

UNKNOWN = "unknown"
COLUMNS = ("sampler", "guidance", "ema", "learning_rate", "decoder", "data", "reading")
"""Columns that these rows have beside those of every results table."""
DIT = "DiT"
"""The variant of what is trained as the paper trains."""
_SCORES = (*published.METRICS, "fd_dinov2", TRAINING_LOSS)
_WHOLE = ("patch_size", "image_size", "params", "batch_size", "step", "nfe", "num_samples")
_REAL = ("gflops", "learning_rate", "cfg_scale", *_SCORES)
_CALLS = {"heun": 2}
"""Model calls of a sampling step, where more than one."""


def rows() -> list[Row]:
    """The published scores of the paper, of its rivals and of the field; one multiply-add is one flop."""
    return [row for row, _ in _all()]


def protocols() -> dict[str, dict[str, Any]]:
    """Their protocols by the hash in column `protocol`."""
    return {row["protocol"]: protocol for row, protocol in _all()}


@cache
def _all() -> list[tuple[Row, dict[str, Any]]]:
    known = published.protocols()
    papers = [(_of_the_paper(row, known[row["protocol"]]), known[row["protocol"]]) for row in published.rows()]
    papers += [(_of_the_paper(row, known[row["protocol"]]), known[row["protocol"]]) for row in published.baselines()]
    with Path(__file__).with_name("field.csv").open(encoding="utf8", newline="") as lines:
        return [*papers, *(_row(line) for line in csv.DictReader(lines))]


def _of_the_paper(row: Row, protocol: dict[str, Any]) -> Row:
    """A row of the paper's own tables under the field's columns; the paper trains at one rate, with one average."""
    is_dit = row["study"] == published.SOURCE
    guidance = protocol.get("guidance") or {None: UNKNOWN, 1.0: "none"}.get(protocol["cfg_scale"], "cfg")
    return {
        **row,
        VARIANT: DIT if is_dit else row["run"],
        "sampler": protocol["sampler"] or UNKNOWN,
        "nfe": protocol["sampling_steps"],
        "guidance": guidance,
        "ema": "0.9999" if is_dit else UNKNOWN,
        "learning_rate": 1e-4 if is_dit else None,
        "decoder": protocol["decoder"] or UNKNOWN,
        "data": f"imagenet{row['image_size']}",
        "reading": "printed",
    }


def _row(line: dict[str, str]) -> tuple[Row, dict[str, Any]]:
    """A line of the file with what follows from it, and its protocol."""
    text = {name: value for name, value in line.items() if value != ""}
    one: Row = {name: value for name, value in text.items() if name not in (*_WHOLE, *_REAL)}
    for names, kind in ((_WHOLE, int), (_REAL, float)):
        one |= {name: None if text[name] == UNKNOWN else kind(text[name]) for name in names if name in text}
    protocol = _protocol(one)
    images = one["step"] * one["batch_size"] if one["step"] and one["batch_size"] else None
    calls = one["nfe"] and one["nfe"] * {"none": 1, "cfg": 2}.get(one["guidance"], 0)
    latent = one["patch_size"] and one["image_size"] and one["decoder"] in (UNKNOWN, "ft-ema", "ft-mse")
    row = {
        **{name: value for name, value in one.items() if name != "reference"},
        "study": "field",
        "tokens": (one["image_size"] // 8 // one["patch_size"]) ** 2 if latent else None,
        "images_seen": images,
        "train_gflops": one["gflops"] * images * BACKWARD_FACTOR if one["gflops"] and images else None,
        "sampling_steps": protocol.get("sampling_steps"),
        "sampling_gflops": one["gflops"] * calls if one["gflops"] and calls else None,
        "protocol": digest(protocol),
        "status": "published",
    }
    return row, protocol


def _protocol(one: Row) -> dict[str, Any]:
    """The protocol of a line's scores, in the keys of the paper's; with its source where a part of it is unknown."""
    if TRAINING_LOSS in one:
        return {"features": TRAINING_LOSS, "window_steps": None, "by": one["source"]}
    guidance = one["guidance"]
    of_adm = one["reference"] == "adm"
    protocol = {
        "features": "inception" if "fid" in one else "dinov2",
        "reference": f"ImageNet {one['image_size']} training set, statistics of the ADM suite" if of_adm else None,
        "extractor_sha256": None,
        "reference_sha256": None,
        "num_samples": one["num_samples"],
        "sampler": None if one["sampler"] == UNKNOWN else one["sampler"],
        "sampling_steps": one["nfe"] and one["nfe"] // _CALLS.get(one["sampler"], 1),
        "cfg_scale": one["cfg_scale"],
        "cfg_channels": 3 if guidance == "cfg" and one["sampler"] == "ddpm" else None,
        "ema": None if one["ema"] == UNKNOWN else one["ema"] != "none",
        "decoder": None if one["decoder"] == UNKNOWN else one["decoder"],
        "sample_seed": None,
    }
    if guidance not in ("none", "cfg"):
        protocol["guidance"] = None if guidance == UNKNOWN else guidance
    if None in (protocol[name] for name in ("reference", "sampler", "sampling_steps", "cfg_scale", "ema", "decoder")):
        protocol["by"] = one["source"]
    return protocol
