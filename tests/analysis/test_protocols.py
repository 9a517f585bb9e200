"""Scores under different protocols never share a comparison."""

import pandas as pd
import pytest

from analysis import protocols
from dit.errors import UserError

BASE = {
    "features": "digits", "num_samples": 512, "sampler": "ddpm", "sampling_steps": 32, "cfg_scale": 1.0,
    "cfg_channels": 1, "ema": True, "decoder": "none", "sample_seed": 0, "reference_sha256": "f",
}  # fmt: skip
KNOWN = {
    "aaa": BASE,
    "bbb": {**BASE, "sampling_steps": 64},
    "ccc": {**BASE, "cfg_scale": 1.5},
    "ddd": {**BASE, "features": "inception", "num_samples": 50_000},
}


def table(*rows):
    return pd.DataFrame(rows, columns=["run", "step", "seed", "protocol"])


def test_one_protocol_passes_over_steps_and_seeds():
    rows = table(("a", 1, 0, "aaa"), ("a", 2, 0, "aaa"), ("b", 2, 1, "aaa"), ("failed", 1, 0, None))
    assert protocols.require_one_protocol(rows, KNOWN) == BASE


def test_two_protocols_are_an_error_that_names_both_what_differs_and_the_remedy():
    with pytest.raises(UserError) as error:
        protocols.require_one_protocol(table(("a", 1, 0, "aaa"), ("a", 1, 0, "ccc")), KNOWN)
    for part in ("aaa", "ccc", "cfg_scale 1.0 and 1.5", "--where \"protocol == 'aaa'\""):
        assert part in str(error.value)


def test_a_part_that_is_varied_on_purpose_may_differ_and_nothing_else():
    rows = table(("a", 1, 0, "aaa"), ("a", 1, 0, "bbb"))
    assert "sampling_steps" not in protocols.require_one_protocol(rows, KNOWN, ("sampling_steps",))
    with pytest.raises(UserError, match="sampling_steps 32 and 64"):
        protocols.require_one_protocol(rows, KNOWN)
    with pytest.raises(UserError, match="cfg_scale"):
        protocols.require_one_protocol(table(("a", 1, 0, "aaa"), ("a", 1, 0, "ccc")), KNOWN, ("sampling_steps",))


def test_the_order_of_the_parts_does_not_matter():
    reordered = {"aaa": BASE, "eee": dict(reversed(BASE.items()))}
    rows = table(("a", 1, 0, "aaa"), ("b", 1, 0, "eee"), ("c", 1, 0, "eee"))
    assert protocols.require_one_protocol(rows, reordered) == BASE
    assert len(protocols.main_protocol(rows, reordered)) == 3


def test_no_score_is_an_error():
    with pytest.raises(UserError, match="no score"):
        protocols.require_one_protocol(table(("a", 1, 0, None)), KNOWN)


def test_the_main_protocol_scores_the_most_runs():
    rows = table(("a", 1, 0, "aaa"), ("b", 1, 0, "aaa"), ("b", 1, 0, "ccc"), ("b", 2, 0, "ccc"), ("b", 3, 0, "ccc"))
    assert set(protocols.main_protocol(rows, KNOWN)["protocol"]) == {"aaa"}


def test_equal_claims_to_the_main_protocol_are_an_error():
    with pytest.raises(UserError, match="aaa and ccc differ"):
        protocols.main_protocol(table(("a", 1, 0, "aaa"), ("a", 1, 0, "ccc")), KNOWN)


def test_labels_tell_the_features_and_the_samples():
    assert protocols.metric(BASE) == "fd_digits"
    assert protocols.metric_label(BASE) == "FD (digits features, 512 samples)"
    assert protocols.metric(KNOWN["ddd"]) == "fid"
    assert protocols.metric_label(KNOWN["ddd"]) == "FID-50K"
    assert protocols.metric_label({**KNOWN["ddd"], "num_samples": 1234}) == "FID (1,234 samples)"
    assert "guidance 1.5" in protocols.describe(KNOWN["ccc"])
