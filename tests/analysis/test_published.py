"""The published numbers: counts against the paper's, rows in the table's columns, protocols that never mix."""

import pytest

from analysis import published
from dit.design import flops, rows
from dit.design.config import DATASETS, digest, model_config


def counted(cell):
    return model_config(cell.block, cell.size, cell.patch_size, DATASETS[f"imagenet{cell.image_size}"])


@pytest.mark.parametrize("cell", published.CELLS, ids=lambda cell: cell.name)
def test_parameters_round_to_the_printed_millions(cell):
    assert round(flops.params(counted(cell)) / 1e6) == cell.params_millions


@pytest.mark.parametrize("cell", published.CELLS, ids=lambda cell: cell.name)
def test_paper_mode_is_within_a_hundredth_of_the_printed_gflops(cell):
    assert abs(flops.gflops(counted(cell), paper=True) - cell.gflops) < 0.01


def test_paper_mode_equals_the_printed_decimals_for_fifteen_of_sixteen():
    assert len(published.CELLS) == 16
    assert sum(round(flops.gflops(counted(cell), paper=True), 2) == cell.gflops for cell in published.CELLS) >= 15


def test_tokens_are_those_of_the_model():
    assert all(counted(cell).tokens == cell.tokens for cell in published.CELLS)


def test_rows_have_exactly_the_tables_columns():
    expected = rows.columns(list(published.METRICS))
    for row in published.rows():
        assert list(row) == expected
    for row in published.baselines():
        assert set(row) <= set(expected)


def test_scores_are_those_of_the_tables():
    found = {
        (row["run"], row["step"], row["citation"].split()[-1], row["cfg_scale"]): row["fid"] for row in published.rows()
    }
    assert found["DiT-S/8", 400_000, "4", 1.0] == 153.60
    assert found["DiT-XL/2", 400_000, "4", 1.0] == 19.47
    assert found["DiT-XL/2-in_context", 400_000, "4", 1.0] == 35.24
    assert found["DiT-XL/2-512", 3_000_000, "4", 1.0] == 11.93
    assert found["DiT-XL/2-512", 3_000_000, "3", 1.5] == 3.04
    assert found["DiT-XL/2", 7_000_000, "2", 1.5] == 2.27


def test_compute_is_the_papers():
    by_source = {(row["run"], row["step"], row["num_samples"]): row for row in published.rows()}
    assert by_source["DiT-XL/2", 400_000, 50_000]["train_gflops"] == pytest.approx(3.645e10, rel=1e-3)
    assert by_source["DiT-L/2", 400_000, 10_000]["sampling_gflops"] == pytest.approx(80.7e3, rel=1e-3)
    assert by_source["DiT-XL/2", 400_000, 10_000]["sampling_gflops"] == pytest.approx(15.2e3, rel=1e-3)


def test_every_row_has_its_protocol_and_decoders_guidance_and_counts_differ():
    protocols = published.protocols()
    for key, protocol in protocols.items():
        assert key == digest(protocol)
    table = published.rows()
    assert {row["protocol"] for row in table} <= protocols.keys()
    final = [row for row in table if row["run"] == "DiT-XL/2" and row["step"] == 7_000_000]
    kinds = {(protocols[row["protocol"]]["decoder"], row["cfg_scale"]) for row in final}
    assert len(kinds) == len({row["protocol"] for row in final}) == 6
    assert (
        len({row["protocol"] for row in table if row["step"] == 400_000}) == 3
    )  # FID-50K, and FID-10K at two step counts


def test_comparison_holds_the_four_baselines_and_the_best_model():
    found = {row["run"]: (row["gflops"], row["fid"]) for row in published.comparison()}
    assert found == {
        "ADM-G": (1120.0, 4.59),
        "ADM-G, ADM-U": (742.0, 3.94),
        "LDM-8-G": (57.0, 7.76),
        "LDM-4-G (cfg=1.50)": (104.0, 3.60),
        "DiT-XL/2": (118.64, 2.27),
    }
