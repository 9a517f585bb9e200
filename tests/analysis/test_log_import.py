"""Text logs of DiT's trainer: what a study's folder holds of them, resumed, diverged, cut off, coloured; one line for what cannot be."""

import json
import math
import re

import pytest

from analysis.log_import import read_logs
from analysis.results import collect, losses
from dit.cli import main
from dit.design.config import DATASETS, model_config
from dit.design.flops import gflops
from dit.store.study import RunStore, load_study

LOSS = {step: round(0.2 * (step / 100) ** -0.05, 4) for step in range(100, 4100, 100)}


def lines(steps, losses=LOSS, rate=5.67):
    return [
        f"[2023-01-01 12:00:00] (step={step:07d}) Train Loss: {losses[step]:.4f}, Train Steps/Sec: {rate:.2f}"
        for step in steps
    ]


def log(path, *parts, end="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = ["[2023-01-01 11:59:00] Experiment directory created at results/000-DiT-B-4", "DiT Parameters: 130,426,496"]
    text = end.join([*head, *(line for part in parts for line in part)]) + end
    path.write_bytes(text.encode())
    return path


def imported(capsys, source, out, *arguments):
    assert main(["import-log", str(source), "--out", str(out), *arguments]) == 0
    return losses(out), capsys.readouterr().err


def test_a_log_becomes_a_study_with_its_losses_and_scores(tmp_path, capsys):
    source = log(tmp_path / "000-DiT-B-4" / "log.txt", lines(LOSS))
    logged, err = imported(capsys, source, tmp_path / "out")
    assert dict(zip(logged["step"], logged["loss"])) == LOSS
    assert logged["images_per_s"].to_numpy() == pytest.approx(5.67 * 256) and err == ""
    [run] = load_study(tmp_path / "out").runs
    assert (run.model.block, run.model.size, run.model.patch_size) == ("adaln_zero", "B", 4)
    assert (run.steps, run.batch_size, run.seed, run.optim.learning_rate) == (4000, 256, 0, 1e-4)
    table = collect(tmp_path / "out").table.set_index("step")
    assert list(table.index) == [4000]  # no step has five values in its last tenth, so the last one is taken
    assert table.loc[4000, "training_loss"] == pytest.approx(sum(LOSS[step] for step in (3700, 3800, 3900, 4000)) / 4)
    assert main(["import-log", str(source), "--out", str(tmp_path / "out")]) == 2


def test_a_score_is_the_mean_of_the_last_tenth_of_the_steps_at_steps_that_runs_share(tmp_path, capsys):
    far = {step: 0.3 - step / 1e6 for step in range(100, 20_100, 100)}
    imported(capsys, log(tmp_path / "DiT-S-2.txt", lines(far, far)), tmp_path / "out")
    table = collect(tmp_path / "out").table.set_index("step")
    assert list(table.index) == [10_000, 20_000]
    within = [round(loss, 4) for step, loss in far.items() if 18_000 < step <= 20_000]
    assert table.loc[20_000, "training_loss"] == pytest.approx(sum(within) / len(within))
    count = gflops(model_config("adaln_zero", "S", 2, DATASETS["imagenet256"]))
    assert table.loc[20_000, "train_gflops"] == pytest.approx(count * 256 * 20_000 * 3)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_colours_and_line_ends_do_not_matter(tmp_path, capsys, end):
    coloured = [line.replace("[", "[\x1b[34m", 1).replace("]", "\x1b[0m]", 1) for line in lines(LOSS)]
    coloured = [re.sub(r"Loss: (\S+),", "Loss: \x1b[1;32m\\1\x1b[0m,", line) for line in coloured]
    logged, err = imported(capsys, log(tmp_path / "DiT-B-4.txt", coloured, end=end), tmp_path / "out")
    assert dict(zip(logged["step"], logged["loss"])) == LOSS and err == ""


def test_where_training_was_resumed_the_later_value_stays(tmp_path, capsys):
    again = {step: loss + 0.01 for step, loss in LOSS.items()}
    early, late = range(100, 2100, 100), range(1500, 4100, 100)
    expected = {**{step: LOSS[step] for step in early}, **{step: round(again[step], 4) for step in late}}
    one = log(tmp_path / "DiT-B-4.txt", lines(early), lines(late, again))
    logged, err = imported(capsys, one, tmp_path / "one")
    assert dict(zip(logged["step"], logged["loss"])) == expected
    assert "from step 2000 back to 1500: 6 step(s) were logged more than once, the later value stays" in err
    log(tmp_path / "two" / "000-DiT-B-4" / "log.txt", lines(early))
    log(tmp_path / "two" / "001-DiT-B-4" / "log.txt", lines(late, again))
    logged, err = imported(capsys, tmp_path / "two", tmp_path / "out")
    assert dict(zip(logged["step"], logged["loss"])) == expected
    assert "000-DiT-B-4/log.txt, 001-DiT-B-4/log.txt are one run, resumed" in err


def test_what_was_cut_off_is_counted_and_left_out(tmp_path, capsys):
    whole = lines(LOSS)
    cut = [
        *whole[:10],
        whole[10].split("71")[0][:-1],
        whole[11][:-20],
        *whole[12:-1],
        re.sub(r", Train.*", "", whole[-1])[:-3],
    ]
    joined = [cut[0][:50] + cut[1], *cut[2:]]  # two processes wrote at once
    logged, err = imported(capsys, log(tmp_path / "DiT-B-4.txt", joined), tmp_path / "out")
    kept = dict(zip(logged["step"], logged["loss"]))
    assert kept.items() <= LOSS.items()
    assert 36 <= len(kept) < 40 and 4000 not in kept and 100 not in kept
    assert f"{40 - len(kept)} line(s) cut off: left out" in err


def test_a_log_without_rates_is_read_and_its_cut_value_is_not(tmp_path, capsys):
    plain = [line.partition(", Train Steps")[0] for line in lines(LOSS)]
    logged, err = imported(capsys, log(tmp_path / "DiT-B-4.txt", [*plain[:-1], plain[-1][:-2]]), tmp_path / "out")
    assert dict(zip(logged["step"], logged["loss"])) == {step: loss for step, loss in LOSS.items() if step < 4000}
    assert "images_per_s" not in logged and "1 line(s) cut off" in err


def test_a_loss_that_stops_being_finite_is_a_failure_with_its_step(tmp_path, capsys):
    nan = {**LOSS, **dict.fromkeys(range(3000, 4100, 100), math.nan), 500: math.nan}
    logged, err = imported(capsys, log(tmp_path / "DiT-B-4.txt", lines(nan, nan)), tmp_path / "out")
    logged = logged.dropna(subset=["loss"])
    assert logged["step"].max() == 2900 and 500 not in set(logged["step"])
    [run] = load_study(tmp_path / "out").runs
    status = RunStore(tmp_path / "out", run).status()
    assert status["state"] == "failed" and "not finite at step 3000: loss nan" in status["reason"]
    assert "not finite at 1 step(s), the first 500" in err


def test_a_folder_is_mapped_by_a_pattern_and_flags_go_first(tmp_path, capsys):
    for size, seed in (("xl", 0), ("b", 0), ("b", 1)):
        log(tmp_path / "logs" / f"log-mine-{size}-seed{seed}.txt", lines(LOSS))
    (tmp_path / "logs" / "notes.txt").write_text("nothing of a run")
    (tmp_path / "logs" / "curve.png").write_bytes(b"\x89PNG")
    pattern = ["--pattern", r"mine-(?P<size>[a-z]+)-seed(?P<seed>\d)", "--patch-size", "2", "--batch-size", "64"]
    _, err = imported(
        capsys, tmp_path / "logs", tmp_path / "out", *pattern, "--block", "adaln", "--learning-rate", "3e-4"
    )
    runs = load_study(tmp_path / "out").runs
    assert sorted((run.model.size, run.seed) for run in runs) == [("B", 0), ("B", 1), ("XL", 0)]
    assert {(run.model.block, run.batch_size, run.optim.learning_rate) for run in runs} == {("adaln", 64, 3e-4)}
    assert "no training step in notes.txt: left out" in err
    assert main(["results", str(tmp_path / "out"), "--over-seeds", "--json"]) == 0
    assert sorted(row["n"] for row in json.loads(capsys.readouterr().out)) == [1, 2]


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("none.txt", [], "no file"),
        ("empty", [], "no log in"),
        ("words.txt", ["--size", "B", "--patch-size", "4"], "no training step"),
        ("run.txt", [], "give --size and --patch-size, or --pattern"),
        ("run.txt", ["--pattern", "("], "no regular expression"),
        ("run.txt", ["--pattern", "run"], "no named group"),
        ("run.txt", ["--pattern", "(?P<colour>run)"], "the group colour"),
        ("run.txt", ["--pattern", "(?P<size>XL)"], "is not found in"),
        ("run.txt", ["--pattern", "(?P<patch_size>run)", "--size", "B"], "patch_size is 'run', expected a number"),
        ("run.txt", ["--size", "B", "--patch-size", "4", "--block", "wide"], "wide"),
        ("run.txt", ["--size", "H", "--patch-size", "4"], "unknown size"),
        ("run.txt", ["--size", "B", "--patch-size", "5"], "5"),
        ("run.txt", ["--size", "B", "--patch-size", "4", "--dataset", "faces"], "unknown dataset"),
        ("run.txt", ["--size", "B", "--patch-size", "4", "--learning-rate", "nan"], "learning_rate is nan"),
        ("twice", ["--size", "B", "--patch-size", "4"], "tell them apart with a group in --pattern"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, name, arguments, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.txt").write_bytes(b"\xff\xfe\x00 words \r step=5 Train Loss")
    log(tmp_path / "run.txt", lines(LOSS))
    for which in ("a", "b"):
        log(tmp_path / "twice" / f"{which}.log", lines(LOSS))
    assert main(["import-log", str(tmp_path / name), "--out", str(tmp_path / "out"), *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and said in err
    assert not (tmp_path / "out").exists()


def test_names_like_the_trainers_own_tell_a_cell(tmp_path):
    for name in ("000-DiT-XL-2/log.txt", "SiT-XL/2.log", "012-sit_xl_2/log.txt"):
        source = log(tmp_path / name, lines(LOSS))
        [run] = read_logs(source, None, {})
        assert (run.config["size"], int(run.config["patch_size"])) == ("XL", 2)
