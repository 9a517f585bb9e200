"""Step times against arithmetic by hand, probes before guesses, sums, and budgets against every possible choice."""

import dataclasses
import itertools

import pytest
from synthetic_study import cells

from dit.design import flops
from dit.design.config import DATASETS, Evaluation, RunConfig, model_config
from dit.design.topology import MeshShape
from dit.errors import UserError
from experiments import paper
from sweeps import compiled
from sweeps.bill import BAND_COLUMNS, Budget, Settings, bill, choose, compile_missing, total
from sweeps.hardware import Band, hardware
from sweeps.memory import step_bytes
from sweeps.prices import load_prices
from sweeps.probes import SAME_TIME, Probe, key_of

DATA = DATASETS["imagenet256"]
V5E = hardware("v5e-8")
PRICE = load_prices()["v5e"]
SEEN = {
    "bytes": {"arguments": 2**30, "outputs": 0, "temporaries": 2**31, "code": 0},
    "collectives": {"all-reduce": 3, "all-gather": 1},
    "host_callbacks": [],
    "attention": {"products": {"bf16": 6}, "softmax": {"f32": 1}},
    "compile_s": 70.0,
}
PAPER = tuple(dataclasses.replace(run, precision="bfloat16") for run in paper.runs())


def cell(size="B", patch=4, **changes):
    return RunConfig(model_config("adaln_zero", size, patch, DATA), DATA, 1000, precision="bfloat16", **changes)


def settings(**changes):
    return Settings(**({"hardware": V5E, "memory": "analytic", "price": PRICE} | changes))


def probe_of(run, low, expected, high):
    model = {name: getattr(run.model, name) for name in SAME_TIME}
    return Probe("v5e-8", model, run.batch_size, run.precision, Band(low, expected, high), 9, run.run)


def test_a_step_is_its_flops_at_the_stated_utilisation_and_the_update_of_the_state():
    run = cell()
    (row,) = bill("mine", (run,), settings(remat="none"))
    flop = 2 * 3 * flops.macs(run.model) * 256
    update = 40 * flops.params(run.model) / 0.819e12
    for column, share in (("step_ms", 0.30), ("step_ms_low", 0.55), ("step_ms_high", 0.15)):
        assert row[column] == pytest.approx(1e3 * (flop / (8 * 197e12 * share) + update), rel=1e-12)
    assert row["time_from"] == "stated"
    assert row["hours"] == pytest.approx(row["step_ms"] / 3600, rel=1e-12)
    assert row["chip_hours"] == pytest.approx(8 * row["hours"], rel=1e-12)
    assert row["usd"] == pytest.approx(1.2 * row["chip_hours"], rel=1e-12)


def test_recomputing_whole_blocks_is_a_fourth_forward_pass_and_sharding_shares_the_update():
    run = cell()
    kept, again = (bill("mine", (run,), settings(remat=remat))[0]["step_ms"] for remat in ("none", "full"))
    (row,) = bill("mine", (run,), settings(remat="none", mesh="fsdp=8"))
    update = 1e3 * 40 * flops.params(run.model) / 0.819e12
    assert again - update == pytest.approx(4 / 3 * (kept - update), rel=1e-12)
    assert kept - row["step_ms"] == pytest.approx(7 / 8 * update, rel=1e-12)


def test_float32_takes_six_passes_on_a_tpu():
    run = cell()
    half, full = (
        bill("mine", (dataclasses.replace(run, precision=precision),), settings(remat="none"))[0]["step_ms"]
        for precision in ("bfloat16", "float32")
    )
    update = 1e3 * 40 * flops.params(run.model) / 0.819e12
    assert full - update == pytest.approx(6 * (half - update), rel=1e-12)


def test_scores_cost_their_sampling():
    score = Evaluation(1000, "inception", num_samples=50_000, cfg_scale=1.5, decoder="sd-vae-ft-mse")
    plain, scored = bill("mine", (cell(), cell(evaluations=(score,), seed=1)), settings())
    flop = 2 * flops.macs(cell().model) * 250 * 2 * 50_000
    assert scored["hours"] - plain["hours"] == pytest.approx(flop / (8 * 197e12 * 0.30) / 3600, rel=1e-9)


def test_columns_say_both_conventions():
    run = next(
        run for run in PAPER if run.model.block == "adaln_zero" and (run.model.size, run.model.patch_size) == ("XL", 2)
    )
    (row,) = bill("paper", (run,), settings())
    assert row["train_exaflops"] == pytest.approx(118.64e9 * 3 * 256 * 400_000 / 1e18, rel=1e-3)
    assert row["train_exaflops_two_per_mac"] == 2 * row["train_exaflops"]
    assert row["gflops"] == pytest.approx(118.64, abs=0.05)


def test_a_measured_cell_takes_what_was_measured_and_others_the_utilisation_that_was_reached():
    small, large = cell("S", 4), cell("L", 4)
    probes = [probe_of(small, 800.0, 1000.0, 1250.0), probe_of(large, 200.0, 250.0, 260.0)]
    given = {probe.key: probe for probe in probes}
    assert set(given) == {key_of(small), key_of(large)}
    first, other = bill("mine", (small, cell("B", 4)), settings(probes=given))
    assert (first["step_ms_low"], first["step_ms"], first["step_ms_high"]) == pytest.approx((204.8, 256.0, 320.0))
    assert first["time_from"] == "probe"
    rates = sorted(6 * flops.macs(run.model) * rate for run, rate in ((small, 1000.0), (large, 250.0)))
    flop = 6 * flops.macs(cell("B", 4).model) * 256
    assert (other["step_ms_low"], other["step_ms_high"]) == pytest.approx(
        (1e3 * flop / rates[1], 1e3 * flop / rates[0])
    )
    assert other["step_ms"] == pytest.approx(2e3 * flop / sum(rates))
    assert other["time_from"] == "other probes"


def test_sums_add_each_end_and_are_unknown_where_a_part_is():
    rows = bill("paper", PAPER, settings())
    sums = total(rows)
    assert sums["cells"] == sums["fit"] == 15
    for name in BAND_COLUMNS[1:]:
        assert sums[f"{name}_low"] < sums[name] < sums[f"{name}_high"]
        assert sums[name] == pytest.approx(sum(row[name] for row in rows), rel=1e-12)
    assert sums["train_exaflops"] == pytest.approx(sum(flops.train_gflops(r, r.steps) for r in PAPER) / 1e9, rel=1e-12)
    unpriced = total(bill("paper", PAPER, settings(price=None)))
    assert unpriced["usd"] is unpriced["usd_high"] is None
    assert unpriced["chip_hours"] == sums["chip_hours"]


@pytest.mark.parametrize("amount", [1, 40, 60, 100, 400, 10_000])
def test_a_budget_buys_as_many_cells_as_any_choice_would(amount):
    rows = bill("paper", PAPER[3:11], settings())
    rows[2]["fits"] = False
    chosen = choose(rows, Budget(amount, "usd"))
    spent = sum(row["usd"] for row, picked in zip(rows, chosen) if picked)
    assert spent <= amount
    assert not chosen[2]
    possible = [row["usd"] for row in rows if row["fits"]]
    affordable = [
        n for n in range(len(possible) + 1) for some in itertools.combinations(possible, n) if sum(some) <= amount
    ]
    assert sum(chosen) == max(affordable)


def test_equal_cells_are_bought_in_the_studys_order():
    rows = bill("mine", tuple(cell(seed=seed) for seed in range(4)), settings())
    assert choose(rows, Budget(2.5 * rows[0]["hours"], "hours")) == [True, True, False, False]


@pytest.mark.parametrize(
    ("text", "amount", "column"),
    [("500usd", 500, "usd"), ("300h", 300, "hours"), ("2400chip-h", 2400, "chip_hours"), ("0.5usd", 0.5, "usd")],
)
def test_budgets_say_what_they_are_in(text, amount, column):
    assert Budget.parse(text) == Budget(amount, column)


@pytest.mark.parametrize("text", ["500", "usd", "-1usd", "infusd", "nanh", "500 eur", "1e", "fiveh", "0h"])
def test_other_budgets_are_refused(text):
    with pytest.raises(UserError, match="such as 500usd, 300h or 2400chip-h"):
        Budget.parse(text)


def test_dollars_need_a_price():
    with pytest.raises(UserError, match="needs the chip's price"):
        choose(bill("mine", (cell(),), settings(price=None)), Budget(5, "usd"))


def test_a_mesh_takes_all_devices_and_parts_of_a_batch_are_whole():
    with pytest.raises(UserError, match="takes 4 devices, v5e-8 has 8"):
        bill("mine", (cell(),), settings(mesh="data=4"))
    fits, not_so = bill("mine", (cell(batch_size=16), cell(batch_size=12)), settings())
    assert (fits["fits"], not_so["fits"]) == (True, False)
    assert not_so["why_not"] == "batch 12 does not divide over 8 devices"
    assert not_so["memory_gib"] is None


def test_memory_is_the_compilers_where_it_was_compiled_and_the_smallest_model_is_compiled_first(monkeypatch):
    reports, asked = {}, []

    def compile_one(run, *arguments):
        asked.append(run.model.size)
        needed = 17 * 2**30 if run.model.size == "L" else 3 * 2**30
        reports[run.run] = {"remat": "full", "auto": "dots", "needed": needed, "fits": needed < 15.75 * 2**30, **SEEN}
        return reports[run.run]

    monkeypatch.setattr(compiled, "kept", lambda run, *arguments: reports.get(run.run))
    monkeypatch.setattr(compiled, "compiled", compile_one)
    monkeypatch.setattr(compiled, "require_compiler", lambda hardware: None)
    runs, heard = (cell("L"), cell("S"), cell("B", batch_size=12)), []
    before = bill("mine", runs, settings(memory="auto"))
    assert [row["memory_from"] for row in before] == ["analytic"] * 3
    compile_missing(runs, settings(memory="compiled"), heard.append)
    assert asked == ["S", "L"]
    assert heard[0].startswith(f"compiled 1 of 2: {runs[1].run}: 3.00 GiB with remat full")
    large, small, odd = bill("mine", runs, settings(memory="auto"))
    assert (large["memory_from"], large["fits"], large["why_not"]) == ("compiled", False, "needs 17.0 GiB of 15.75")
    assert (small["memory_gib"], small["remat"], small["remat_auto"]) == (3.0, "full", "dots")
    assert (small["arguments_gib"], small["temporaries_gib"], small["compile_s"]) == (1.0, 2.0, 70.0)
    assert (small["collectives"], small["host_callbacks"]) == ("3 all-reduce, 1 all-gather", 0)
    assert small["attention"] == "6 bf16; softmax f32"
    assert small["counted_gib"] == step_bytes(runs[1], MeshShape(data=8), "full") / 2**30
    assert before[1]["attention"] is before[1]["arguments_gib"] is before[1]["host_callbacks"] is None
    assert before[1]["counted_gib"] == before[1]["memory_gib"]
    assert (odd["memory_from"], odd["fits"]) == ("analytic", False)
    assert bill("mine", runs, settings(memory="analytic")) == [row | {} for row in before]
    compile_missing(runs, settings(memory="compiled"), heard.append)
    assert len(asked) == 2


def test_a_cpu_is_billed_by_its_cores_and_has_no_price():
    (row,) = bill(
        "mine", cells(blocks=("adaln",), sizes=("S",), patches=(4,)), settings(hardware=hardware("cpu"), price=None)
    )
    assert row["usd"] is None
    assert 0 < row["step_ms_low"] < row["step_ms"] < row["step_ms_high"]
    assert row["fits"]
