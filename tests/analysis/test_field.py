"""The field's rows: what is printed where, what is unknown, protocols that never mix, and the band between implementations."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from synthetic_study import cells, write_study

from analysis import field, published
from analysis.compare import IMPLEMENTATIONS, Noise, compare
from analysis.forecast import freeze
from analysis.results import PUBLISHED, collect
from dit.cli import main
from dit.design.config import digest
from dit.errors import UserError

TABLE = collect("field").table
LINES = list(csv.DictReader((Path(field.__file__).parent / "field.csv").read_text("utf8").splitlines()))


def one(**wanted):
    found = TABLE
    for name, value in wanted.items():
        found = found[found[name] == value]
    assert len(found) == 1
    return found.iloc[0]


def test_there_are_many_rows_and_each_says_who_published_it_where_and_how_it_was_read():
    assert len(TABLE) == len(LINES) + len(published.rows()) + len(published.baselines()) > 200
    for name in ("source", "citation", "reading", "sampler", "guidance", "ema", "decoder", "data", "protocol", "run"):
        assert TABLE[name].notna().all() and (TABLE[name] != "").all()
    assert (TABLE["status"] == "published").all()
    assert TABLE[list(field._SCORES)].notna().any(axis=1).all()
    by_eye = TABLE[TABLE["source"] == "muP-DiT"]
    assert len(by_eye) == 25 and by_eye["reading"].str.startswith("digitised").all()


def test_a_line_has_its_number_or_says_unknown():
    scores = {"fid", "sfid", "inception_score", "precision", "recall", "fd_dinov2", "training_loss"}
    for line in LINES:
        assert all(line[name] for name in line if name not in scores)
    assert sum(line["decoder"] == "unknown" for line in LINES) > 50


@pytest.mark.parametrize(
    ("wanted", "score", "value"),
    [
        ({"run": "SiT-XL/2 ODE", "step": 400_000}, "sfid", 5.17),
        ({"run": "SiT-B/2 SDE", "step": 400_000}, "inception_score", 43.71),
        ({"run": "SiT-XL/2 SDE", "step": 7_000_000, "cfg_scale": 1.5}, "recall", 0.59),
        ({"run": "LightningDiT-XL/2 + RoPE"}, "fid", 7.13),
        ({"run": "DiCo-XL", "step": 400_000, "sampler": "ddpm"}, "fid", 11.67),
        ({"run": "DiCo-B", "step": 50_000}, "training_loss", 0.15520),
        ({"run": "DiT-XL/2 muP", "step": 2_400_000}, "fid", 9.43),
        ({"run": "DiT-S/4 (U-DiT's)"}, "fid", 97.85),
        ({"run": "EDM2-XXL", "guidance": "autoguidance", "ema": "post-hoc"}, "fid", 1.25),
        ({"run": "Mei et al. 5B"}, "fid", 20.14),
        ({"run": "ADM-U", "image_size": 512}, "fid", 9.96),
        ({"run": "DiT-XL/2", "step": 400_000, "num_samples": 50_000}, "fid", 19.47),
    ],
)
def test_scores_are_those_printed(wanted, score, value):
    assert one(**wanted)[score] == value


def test_what_is_counted_follows_from_what_is_printed():
    sit = one(run="SiT-XL/2 ODE", step=400_000)
    assert (sit["nfe"], sit["sampling_steps"], sit["tokens"]) == (250, 125, 256)
    assert sit["train_gflops"] == pytest.approx(118.64 * 256 * 400_000 * 3)
    guided = one(run="SiT-XL/2 SDE", step=7_000_000, cfg_scale=1.5)
    assert guided["sampling_gflops"] == pytest.approx(118.64 * 250 * 2)
    interval = one(guidance="cfg in sigma (0.34, 1.02]")
    assert np.isnan(interval["sampling_gflops"])  # a guided call costs two, but only some are


def test_no_protocol_is_shared_by_sources_that_leave_a_part_of_it_unsaid():
    protocols = field.protocols()
    assert all(key == digest(value) for key, value in protocols.items())
    assert set(TABLE["protocol"]) == protocols.keys()
    for key, rows in TABLE.groupby("protocol"):
        if rows["source"].nunique() > 1:
            parts = ("reference", "sampler", "sampling_steps", "cfg_scale", "ema", "decoder")
            assert None not in [protocols[key][name] for name in parts], key
    own = published.protocols()
    pytorch = one(run="DiT-XL/2 (PyTorch, seed 42)")
    assert own[pytorch["protocol"]]["decoder"] == "ft-mse"  # said in full, and the same as the paper's


def test_published_values_of_one_cell_are_the_band_between_implementations():
    again = TABLE[(TABLE["variant"] == "DiT") & (TABLE["size"] == "XL") & (TABLE["step"] == 400_000)]
    again = again[(again["patch_size"] == 2) & (again["block"] == "adaln_zero") & (again["num_samples"] == 50_000)]
    fids = again[again["source"] != "LightningDiT"]["fid"]  # which may quote the paper
    assert sorted(fids) == [18.1, 19.47, 20.05, 20.42]
    assert fids.std() / fids.mean() == pytest.approx(IMPLEMENTATIONS, abs=0.003)


def test_against_the_field_each_implementation_stands_beside_a_cell_under_the_band_between_them():
    found = compare(collect("paper"), collect("field"), noise=Noise(IMPLEMENTATIONS, between=True))
    rows = [row for row in found.rows if row["size"] == "XL" and row["score"] == 19.47]
    near = {row["against"]: row for row in rows if row["verdict"] != "not comparable"}
    assert near.keys() == {19.5, 18.1, 20.05}  # muP-DiT shares a later step too
    assert all(row["band_from"] == "5 % between implementations" for row in near.values())
    assert near[20.05]["band_percent"] == pytest.approx(1.96 * 5 * math.hypot(1, 19.47 / 20.05), rel=1e-4)
    assert all(row["verdict"] == "not significant" for row in near.values())
    assert not any(row["against_source"].startswith("arXiv:2212.09748") for row in found.rows)
    sit = [row for row in found.rows if row["size"] == "L" and row["score"] == 23.33]
    assert [(row["verdict"], row["training"]) for row in sit] == [("not comparable", "the other is SiT")]


def test_the_commands_take_the_field(tmp_path, capsys):
    assert main(["results", "field", "--where", "source == 'SiT' and nfe == 250", "--sort", "fid", "--json"]) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 35 and "do not rank" in captured.err
    assert main(["results", "field", "--over-seeds", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) > 220  # the paper prints some scores twice
    assert main(["compare", "paper", "--with", "field", "--json"]) == 0
    assert {row["band_from"] for row in json.loads(capsys.readouterr().out)} == {None, "5 % between implementations"}
    assert main(["sql", "field", "select count(*) n from results where sampler = 'unknown'", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["n"] > 10
    assert main(["compare", "paper", "paper", "--with", "field"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert set(PUBLISHED) == {"paper", "baselines", "field"}


def test_a_study_of_other_cells_says_so(tmp_path):
    runs = cells(blocks=("adaln_zero",), sizes=("S", "B"), patches=(1,), steps=100)
    study = collect(write_study(tmp_path / "nano", runs))
    with pytest.raises(UserError, match="no cell of 'demo' is in 'field'"):
        compare(study, collect("field"), noise=Noise(IMPLEMENTATIONS, between=True))


@pytest.mark.parametrize(
    ("where", "truth", "within"),
    [
        ("source == 'DiCo' and step == 400000 and training_loss > 0", 0.14570, 0.005),
        ("source == 'DiCo' and step == 400000 and fid > 0", 11.67, 0.05),
        ("source == 'SiT' and variant == 'SiT' and sampler == 'heun' and step == 400000", 18.04, 0.05),
    ],
)
def test_xl_is_forecast_from_smaller_sizes(where, truth, within):
    # power laws through three cells, by hand: log-log least squares of the same numbers
    study = collect("field").where(where)
    [cell] = freeze(study, "XL", retrospective=True, form="power").cells
    small = study.table[study.table["size"] != "XL"]
    metric = "fid" if "fid" in where or "SiT" in where else "training_loss"
    x, y = np.log(small["train_gflops"].to_numpy(float)), np.log(small[metric].to_numpy(float))
    by_hand = np.exp(np.polyval(np.polyfit(x, y, 1), np.log(cell.train_gflops)))
    assert cell.score == pytest.approx(truth, rel=within)
    assert cell.score == pytest.approx(by_hand, rel=0.04)  # Huber's law is near least squares
