"""Names of hardware against vendors' counts, the paper's own speed against the band, and prices from their file."""

import math
import re

import pytest

from dit.design import flops
from dit.design.config import DATASETS, model_config
from dit.errors import UserError
from sweeps.hardware import CHIPS, CUBES, FLAT, V3, hardware
from sweeps.prices import load_prices

SLICES = [f"{kind}-{n}" for kind in ("v5e", "v6e") for n in FLAT] + [f"v3-{2 * n}" for n in V3]
SLICES += [f"{kind}-{2 * n}" for kind in ("v4", "v5p") for n in CUBES]


@pytest.mark.parametrize("name", SLICES)
def test_a_slices_shape_holds_its_chips_and_its_hosts_divide_it(name):
    machine = hardware(name)
    assert machine.topology is not None
    kind, shape = machine.topology.split(":")
    assert kind == name.split("-")[0]
    assert math.prod(map(int, shape.split("x"))) == machine.chips
    assert machine.hosts * math.prod(machine.host_bounds) == machine.chips
    cores = 1 if kind in ("v5e", "v6e") else 2
    assert int(name.split("-")[1]) == machine.chips * cores
    assert machine.devices == machine.chips * (2 if kind == "v3" else 1)


@pytest.mark.parametrize(
    ("name", "chips", "hosts"),
    [("v5e-8", 8, 1), ("v5e-16", 16, 4), ("v4-8", 4, 1), ("v5p-64", 32, 8), ("v3-256", 128, 32), ("h100x8", 8, 1), ("h200x16", 16, 2),
     ("a100x1", 1, 1), ("cpu", 1, 1)],
)  # fmt: skip
def test_what_the_vendor_calls_it(name, chips, hosts):
    assert (hardware(name).chips, hardware(name).hosts) == (chips, hosts)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e", "unknown hardware 'v5e': expected a slice such as v5e-8"),
        ("tpu-8", "unknown hardware"),
        ("v5e-12", "expected v5e- and one of 1, 4, 8, 16"),
        ("v4-4", "expected v4- and one of 8, 16"),
        ("h100x12", "whole hosts of 8"),
        ("h100x0", "whole hosts of 8"),
        ("v5e-8; rm", "unknown hardware"),
    ],
)
def test_other_names_are_refused(name, message):
    with pytest.raises(UserError, match=re.escape(message)):
        hardware(name)


def test_the_papers_own_speed_is_the_lowest_of_its_hardware():
    model = model_config("adaln_zero", "XL", 2, DATASETS["imagenet256"])
    reached = 2 * 3 * flops.macs(model) * 256 * 5.7
    band = hardware("v3-256").flops("bfloat16")
    assert band is not None
    assert reached == pytest.approx(band.low, rel=0.01)


@pytest.mark.parametrize("kind", CHIPS)
def test_every_chip_has_a_peak_in_both_precisions_and_float32_is_the_slower(kind):
    chip = CHIPS[kind]
    half, full = chip.peak("bfloat16"), chip.peak("float32")
    assert half is not None
    assert full is not None
    assert 4 < half / full < 20
    assert 0 < chip.utilisation.low < chip.utilisation.expected < chip.utilisation.high < 1


def test_a_run_is_known_by_its_devices():
    assert hardware("v5e-8").is_that_of(["TPU v5 lite"] * 8)
    assert not hardware("v5e-8").is_that_of(["TPU v5 lite"] * 4)
    assert not hardware("v5e-8").is_that_of(["TPU v5"] * 8)
    assert hardware("v5p-16").is_that_of(["TPU v5"] * 8)
    assert hardware("v3-8").is_that_of(["TPU v3"] * 8)
    assert hardware("cpu").is_that_of(["cpu"] * 8)
    assert not hardware("cpu").is_that_of([])


def test_every_chip_but_this_machines_has_a_dated_price():
    prices = load_prices()
    assert set(prices) == set(CHIPS)
    for price in prices.values():
        assert 0 < price.usd.low <= price.usd.expected <= price.usd.high < 20
        assert price.source
        assert price.as_of.year >= 2025


def test_prices_are_the_users_to_edit(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        "[v5e]\nusd = 0.5\nas_of = 2026-11-01\n[cpu]\nusd = 0.04\nlow = 0.02\nas_of = 2026-11-01\nsource = 'lab'\n"
    )
    prices = load_prices(path)
    assert set(prices) == {"v5e", "cpu"}
    assert (prices["v5e"].usd.low, prices["v5e"].usd.high) == (0.5, 0.5)
    assert (prices["cpu"].usd.low, prices["cpu"].usd.high, prices["cpu"].source) == (0.02, 0.04, "lab")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[v5e\n", "is not TOML"),
        ("v5e = 1.2\n", "expected a table with usd and as_of"),
        ("[v5e]\nas_of = 2026-11-01\n", "has usd None"),
        ("[v5e]\nusd = -1\nas_of = 2026-11-01\n", "has usd -1"),
        ("[v5e]\nusd = true\nas_of = 2026-11-01\n", "has usd True"),
        ("[v5e]\nusd = inf\nas_of = 2026-11-01\n", "has usd inf"),
        ("[v5e]\nusd = 1.2\n", "has as_of None"),
        ("[v5e]\nusd = 1.2\nas_of = '2026-11-01'\n", "expected the price's date"),
        ("[v5e]\nusd = 1.2\nhigh = 1.0\nas_of = 2026-11-01\n", "expected low <= usd <= high"),
        ("[v5e]\nusd = 1.2\neur = 1.1\nas_of = 2026-11-01\n", "has eur"),
    ],
)
def test_a_price_that_is_none_is_one_line(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_prices(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_price_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no prices at"):
        load_prices(tmp_path / "none.toml")
