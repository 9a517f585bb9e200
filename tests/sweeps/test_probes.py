"""Measured speed: read from runs' folders and probe files, matched by model, batch, precision and hardware."""

import dataclasses
import json

import pytest
from synthetic_study import cells

from dit.errors import UserError
from dit.store.study import MetricsWriter, RunStore, write_json
from sweeps.hardware import cores, hardware
from sweeps.probes import key_of, load_probes, save_probes

RUNS = cells(blocks=("adaln_zero",), sizes=("S", "B"), patches=(4,), sampling=(), steps=100)
V5E = hardware("v5e-8")


def write(folder, run, rates, devices=("TPU v5 lite",) * 8, cpus=2, attempt=1):
    """A run's folder with these images per second in its rows; the first row, which compiled, has none."""
    record = RunStore(folder, run)
    record.create()
    write_json(record.path / f"environment-{attempt:04d}.json", {"devices": list(devices), "cpus": cpus})
    writer = MetricsWriter(record.path, attempt)
    for step, rate in enumerate([None, *rates]):
        writer.write({"step": 10 * (step + 1), "loss": 1.0, "images_per_s": rate})
    writer.close()


def test_a_probe_is_the_median_with_its_tenths(tmp_path):
    write(tmp_path, RUNS[0], [100.0 + k for k in range(11)])
    (probe,) = load_probes([tmp_path], V5E).values()
    assert (probe.images_per_s.low, probe.images_per_s.expected, probe.images_per_s.high) == (101.0, 105.0, 109.0)
    assert (probe.rows, probe.source) == (11, RUNS[0].run)


def test_seed_and_steps_and_names_do_not_matter_but_model_batch_and_precision_do(tmp_path):
    run = RUNS[0]
    write(tmp_path, run, [50.0])
    found = load_probes([tmp_path], V5E)
    renamed = dataclasses.replace(run.model, size="custom", ladder="custom", class_dropout_prob=0.0)
    for same in ({"seed": 3}, {"steps": 7, "evaluations": ()}, {"model": renamed}):
        assert key_of(dataclasses.replace(run, **same)) in found
    for other in ({"batch_size": 32}, {"precision": "bfloat16"}, {"model": RUNS[1].model}):
        assert key_of(dataclasses.replace(run, **other)) not in found


def test_other_hardware_does_not_count(tmp_path):
    write(tmp_path, RUNS[0], [50.0], devices=("TPU v5 lite",) * 4)
    with pytest.raises(UserError, match="holds no throughput logged on v5e-8"):
        load_probes([tmp_path], V5E)
    write(tmp_path, RUNS[0], [60.0], attempt=2)  # resumed on more chips: rows of both, so neither is told
    with pytest.raises(UserError, match="holds no throughput"):
        load_probes([tmp_path], V5E)


def test_a_run_that_only_compiled_has_no_speed(tmp_path):
    write(tmp_path, RUNS[0], [])
    with pytest.raises(UserError, match="holds no throughput"):
        load_probes([tmp_path], V5E)


def test_on_a_cpu_a_run_counts_for_its_share_of_the_cores(tmp_path):
    write(tmp_path, RUNS[0], [50.0], devices=("cpu",), cpus=1)
    (probe,) = load_probes([tmp_path], hardware("cpu")).values()
    assert probe.images_per_s.expected == 50.0 * cores()


def test_of_two_probes_the_longer_one_is_taken(tmp_path):
    write(tmp_path / "a", RUNS[0], [10.0])
    write(tmp_path / "b", RUNS[0], [20.0, 20.0, 20.0])
    for order in (("a", "b"), ("b", "a")):
        (probe,) = load_probes([tmp_path / name for name in order], V5E).values()
        assert probe.images_per_s.expected == 20.0


def test_a_probe_file_gives_back_what_was_saved_for_its_hardware_alone(tmp_path):
    for run, rate in zip(RUNS, (10.0, 20.0)):
        write(tmp_path / "study", run, [rate])
    found = load_probes([tmp_path / "study"], V5E)
    save_probes(tmp_path / "probes.json", found)
    assert load_probes([tmp_path / "probes.json"], V5E) == found
    with pytest.raises(UserError, match="on h100x8"):
        load_probes([tmp_path / "probes.json"], hardware("h100x8"))


def test_bad_places_are_one_line(tmp_path):
    (tmp_path / "half.json").write_text("[{")
    (tmp_path / "other.json").write_text(json.dumps([{"speed": 3}]))
    for name, message in (
        ("none", "no probes at"),
        ("half.json", "not readable as JSON"),
        ("other.json", "not a probe file"),
    ):
        with pytest.raises(UserError, match=message):
            load_probes([tmp_path / name], V5E)
    with pytest.raises(UserError, match="cannot write probes"):
        save_probes(tmp_path / "half.json" / "probes.json", {})
