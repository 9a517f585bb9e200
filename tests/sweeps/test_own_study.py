"""One study in which every part is the user's own, `own/own.py`: through every verb, on several devices, and what is refused of it."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dit.design import flops
from dit.design.metrics import canonical
from dit.errors import UserError
from dit.store.files import write_json
from dit.store.study import DONE, RunStore, load_study, save_study
from sweeps.study import declared, run_kept

HERE = Path(__file__).parent / "own"
TEXTS = {name: (HERE / name).read_text() for name in ("own.py", "shapes.py")}


def write(folder, *changes):
    """The study with some of its text changed, wherever that stands."""
    folder.mkdir(exist_ok=True)
    texts = dict(TEXTS)
    for old, new in changes:
        assert any(old in text for text in texts.values()), old
        texts = {name: text.replace(old, new) for name, text in texts.items()}
    for name, text in texts.items():
        (folder / name).write_text(text)
    return str(folder / "own.py")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The study, and a folder in which each of its cells has scores."""
    folder = tmp_path_factory.mktemp("own") / "out"
    study = declared(str(HERE / "own.py"), check=True)
    save_study(folder, study)
    for number, run in enumerate(study.runs):
        store = RunStore(folder, run)
        store.create()
        for evaluation in run.evaluations:
            columns = {evaluation.column(one): 1.0 + number + evaluation.step for one in evaluation.metrics}
            protocol = {**evaluation.declared, "metric": evaluation.metric, "reference": "spots"}
            value = {
                "evaluation": dataclasses.asdict(evaluation),
                "scores": columns,
                "protocol": protocol,
                "floor": 0.5,
            }
            write_json(store.evaluation_path(evaluation), {"schema_version": 2, **value})
        store.set_status(DONE, step=run.steps, attempt=0, loss=1.0)
    return study, folder


def test_every_part_is_in_the_record_as_data(own):
    _, folder = own
    told = json.loads((folder / "study.json").read_text())
    kinds = ["Block", "Data", "Features", "Features", "Metric", "Objective", "Sampler"]
    assert sorted(part["kind"] for part in told["parts"]) == kinds
    assert list(told["files"]) == ["study.py", "study/shapes.py"]
    labels = {part["name"]: part["label"] for part in told["parts"] if "label" in part}
    assert labels == {
        "gated": "Gates alone", "gap": "Gap of means", "colours": "colours", "spots_net": "spots classifier"
    }  # fmt: skip


def test_calls_of_a_sampler_are_counted_per_step(own):
    study, _ = own
    run = study.runs[0]
    assert flops.model_calls(run, run.evaluations[0]) == (4, 0)  # two steps of two calls
    assert flops.drawing_gflops(run, run.evaluations[0]) == 4 * flops.gflops(run.model)


READING = """
import contextlib, io, json, sys
from dit.cli import main
said = {}
for verb in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(verb)
    said[verb[0]] = [code, out.getvalue(), err.getvalue()]
print(json.dumps([said, "jax" in sys.modules]))
"""


def read(verbs):
    command = [sys.executable, "-c", READING, json.dumps(verbs)]
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    said, has_jax = json.loads(done.stdout.splitlines()[-1])
    assert {verb: code for verb, (code, _, _) in said.items()} == dict.fromkeys(said, 0), said
    return said, has_jax


def trap(folder, copy):
    """A copy of the folder whose study.py leaves a mark when it is run."""
    shutil.copytree(folder, copy)
    mark = copy.with_suffix(".mark")
    (copy / "study.py").write_text(f"open({str(mark)!r}, 'w')\n")
    return str(copy), mark


def test_reading_runs_nothing_of_the_folder_and_knows_what_is_in_it(own, tmp_path):
    study, folder = own
    copy, mark = trap(folder, tmp_path / "copy")
    verbs = [["results", copy, "--json"], ["status", copy, "--json"], ["plan", copy, "--json"], ["compare", copy, copy],
             ["fit", copy], ["sql", copy, "select block, min(gap_colours) as gap from results group by 1 order by 1"]]  # fmt: skip
    said, has_jax = read(verbs)
    assert not mark.exists() and not has_jax
    rows = json.loads(said["results"][1])
    assert {row["nfe"] for row in rows} == {4} and {"gap_spots_net", "gap_colours", "fd_colours"} <= set(rows[0])
    planned = json.loads(said["plan"][1])
    assert [row["gflops"] for row in planned] == [flops.gflops(run.model) for run in study.runs]
    assert "gap_spots_net" in said["compare"][1] and "adaln_zero" in said["sql"][1]
    assert "@" not in "".join(said[verb][1] for verb in ("compare", "fit", "sql"))
    assert not any("@" in name for row in (*rows, *planned) for name in row)
    with pytest.raises(UserError, match=r"study.py is missing or not the file that was swept"):
        run_kept(Path(copy))


CHANGED = {
    "Block": ("x = x + gate1", "x = x - gate1"),
    "Data": ("SIDE - 2, 2)", "SIDE - 3, 2)"),
    "Sampler": ("return x + (grid.points", "return x - (grid.points"),
    "calls of a Sampler": ("(times[1:] + times[:-1]) / 2]", "(times[1:] + 2 * times[:-1]) / 3]"),
    "target of an Objective": ("noise: noise - image", "noise: noise - 2 * image"),
    "weight of an Objective": ("1 / (1 + level.sigma)", "1 / (2 + level.sigma)"),
    "Features": ("pixels.std((1, 2))", "pixels.max((1, 2))"),
    "Metric": (".max())", ".sum())"),
}


@pytest.mark.parametrize("what", CHANGED)
def test_changed_code_of_any_part_never_passes_for_old_rows(own, tmp_path, what):
    study, folder = own
    other = declared(write(tmp_path / "changed", CHANGED[what]))
    pairs = list(zip(study.runs, other.runs))
    kind = what.split()[-1]
    same_run = {run.run == now.run for run, now in pairs}
    assert same_run == {"Block": {False, True}, "Data": {False}, "Objective": {False}}.get(kind, {True})
    keys = [(old.key, new.key) for run, now in pairs for old, new in zip(run.evaluations, now.evaluations)]
    if kind == "Sampler":
        assert not any(old == new for old, new in keys)
    if kind == "Features":  # one of the two
        assert {run.evaluations[2].key == now.evaluations[2].key for run, now in pairs} == {False}
    if kind == "Metric":
        assert all(old == new for old, new in keys)
        for _, now in pairs:
            assert RunStore(folder, now).missing_metrics(now.evaluations[0]) == canonical(["gap"])[1:]
    assert all(run.own_parts - now.own_parts for run, now in pairs) == (kind not in ("Block",))
    kept = shutil.copytree(folder, tmp_path / "kept")  # the file as it was changed, vouched for
    for name, text in (("study.py", Path(other_file(tmp_path)).read_text()), ("study/shapes.py", shapes(tmp_path))):
        (kept / name).write_text(text)
    record = json.loads((kept / "study.json").read_text())
    record["files"] = {name: hashlib.sha256((kept / name).read_bytes()).hexdigest() for name in record["files"]}
    del record["digest"]
    write_json(kept / "study.json", record)
    word = {"Data": "data set", "Features": "features"}.get(kind, kind.lower())
    with pytest.raises(UserError, match=f"{word} '.*' of .* is not what its study.py makes here"):
        run_kept(kept)


def other_file(folder):
    return folder / "changed/own.py"


def shapes(folder):
    return (folder / "changed/shapes.py").read_text()


def test_scores_of_a_changed_metric_are_not_shown_until_they_are_taken_again(own, tmp_path):
    from analysis.results import collect

    _, folder = own
    copy = shutil.copytree(folder, tmp_path / "copy")
    before = collect(copy).table
    assert before["gap_colours"].notna().any() and before["fd_colours"].notna().any()
    save_study(copy, declared(write(tmp_path / "changed", CHANGED["Metric"])))
    after = collect(copy).table
    assert after["gap_colours"].isna().all() and after["fd_colours"].equals(before["fd_colours"])


BAD = [
    ('Block("gated"', 'Block("adaln"', "block 'adaln' is one of the package's own"),
    ('Sampler("midpoint"', 'Sampler("heun"', "sampler 'heun' is one of the package's own"),
    ('Metric("gap"', 'Metric("precision"', "metric 'precision' is one of the package's own"),
    ('Data("spots"', 'Data("digits"', "data set 'digits' is one of the package's own"),
    ('Objective(\n    "towards_noise"', 'Objective(\n    "flow"', "objective 'flow' is one of the package's own"),
    ('Features("colours"', 'Features("mnist"', "features 'mnist' is one of the package's own"),
    ("attention_and_mlp(modulation=2)", "attention_and_mlp(modulation=3)", "counts 30,144 multiply-adds .* the traced model has 29,568"),
    ("        return x + gate2", "        return x[..., :8] #", "gives back .* for tokens of"),
    ("attention_and_mlp(modulation=2)", "lambda model, tokens: 1 / 0", "failed at line [0-9]+: ZeroDivisionError"),
    ("return images, labels", "return images, labels + 1", "label 2 of image 1 is none of its classes, 0 to 1"),
    ('features="colours", metrics=("gap",)', 'features="colours", metrics=("gip",)', "unknown metric 'gip': .*did you mean 'gap'"),
    ("calls=2, processes", "calls=3, processes", "sampler 'midpoint' has 3 calls a step"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), BAD, ids=[f"{old[:12]}-{new[:12]}" for old, new, _ in BAD])
def test_bad_input_is_a_line(tmp_path, old, new, message):
    path = write(tmp_path / "bad", (old, new))
    with pytest.raises(UserError, match=message) as refused:
        declared(path, check=True)
    assert "\n" not in str(refused.value)


def dit(*verb, code=0, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "dit", *map(str, verb)],
        text=True,
        capture_output=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == code, (verb, done.stdout, done.stderr)
    return done


@pytest.mark.long
def test_the_study_goes_through_every_verb(tmp_path):
    path, out = write(tmp_path / "study"), str(tmp_path / "out")
    assert "gated" in dit("plan", path).stdout
    assert "analytic" in dit("plan", path, "--hardware", "cpu").stdout
    few = ("--where", "block == 'gated' and size == 'S'")
    assert "compiled" in dit("plan", path, "--hardware", "cpu", "--memory", "compiled", *few).stdout
    dit("sweep", path, "--out", out, "--workers", "2")
    shutil.rmtree(tmp_path / "study")  # what is kept is enough
    dit("verify", out)
    copy, mark = trap(Path(out), tmp_path / "copy")
    verbs = [["results", copy], ["status", copy], ["plan", copy], ["compare", copy, copy], ["fit", copy], ["advise", copy],
             ["sql", copy, "select block, gap_spots_net from results"], ["figures", copy, "--out", str(tmp_path / "figures")],
             ["report", copy, "--out", str(tmp_path / "report.html")], ["forecast", copy, "--for", "XL", "--form", "power"]]  # fmt: skip
    said, _ = read(verbs)
    assert not mark.exists()
    assert (tmp_path / "figures/fig12.png").exists() and "RuntimeWarning" not in said["figures"][2]
    assert "Gates alone" in (tmp_path / "report.html").read_text()
    assert "@" not in "".join(said[verb][1] for verb in said if verb not in ("plan",))

    run = sorted(Path(out, "runs").glob("gated-S-4-*"))[0]
    drawn = ("--sampler", "midpoint", "--steps", "2")
    dit("sample", run, "--out", tmp_path / "s.npz", "--num", "4", *drawn)
    dit("sample", "--grid", out, "--out", tmp_path / "grid.png", *drawn)
    assert np.load(tmp_path / "s.npz")["arr_0"].shape == (4, 8, 8, 3)
    scored = ("--num-samples", "16", "--sampling-steps", "2", "--sampler", "midpoint", "--json")
    told = dit("evaluate", run, "--reference", "spots", "--extractor", "colours", "--metrics", "gap", "fid", *scored,
               "--out", tmp_path / "row.json").stdout  # fmt: skip
    (row,) = json.loads(told)
    evaluation = next(one for one in Path(run, "evals").glob("00000008-*") if "gap_colours" in one.read_text())
    swept = json.loads(evaluation.read_text())
    assert row["gap_colours"] == pytest.approx(swept["scores"]["gap_colours"], rel=1e-5)
    assert row["sampler_source"] == swept["protocol"]["sampler_source"]
    assert row["metrics"] == [one for one in swept["evaluation"]["metrics"] if "@" in one]

    from dit.store.archives import pack

    archive = pack(Path(out), tmp_path / "own.tar.xz")
    assert "gap_spots_net" in read([["results", str(archive), "--columns", "block,gap_spots_net"]])[0]["results"][1]
    (run / "status.json").unlink()
    assert dit("cancel", out, "--cell", run.name).stdout.strip() == run.name
    assert "1 to be taken up" in dit("retry", out, "--cell", run.name).stderr
    dit("sweep", out, "--out", out, "--workers", "1")

    grown = write(tmp_path / "changed", CHANGED["Metric"])  # kept weights are scored again, nothing is trained
    before = {one: one.stat().st_mtime_ns for one in Path(out, "runs").glob("*/checkpoints/*")}
    dit("sweep", grown, "--out", out, "--workers", "2")
    assert {one: one.stat().st_mtime_ns for one in Path(out, "runs").glob("*/checkpoints/*")} == before
    now = json.loads(evaluation.read_text())["scores"]
    assert now["gap_colours"] != swept["scores"]["gap_colours"] and now["fd_colours"] == swept["scores"]["fd_colours"]


@pytest.mark.long
def test_features_that_are_not_finite_and_metrics_that_raise_fail_cells_in_a_line(tmp_path):
    for name, change, said in (
        ("features", ("images.astype(np.float32) / 255", "images.astype(np.float32) * np.nan"), "features of image 0 are not finite"),
        ("metric", ("    return float(np.abs", "    return 1 / 0 #"), "metric 'gap' raised ZeroDivisionError"),
    ):  # fmt: skip
        few = ("--where", "block == 'gated' and size == 'S' and patch_size == 4")
        done = dit("sweep", write(tmp_path / name, change), "--out", tmp_path / f"{name}-out", *few, code=3)
        assert said in done.stderr and "Traceback" not in done.stderr


TRAINED = """
import sys; from sweeps.study import declared; from dit.model.mesh import make_mesh; from dit.train.step import build
from dit.data.batches import ImageDataset, load_images
run = declared(sys.argv[1]).runs[0]; program = build(run, make_mesh(sys.argv[2]))
data = ImageDataset(*load_images(run.data.name, run.data.source), run.batch_size, run.seed)
state, losses = program.init(), []
for step in range(3):
    state, metrics = program.step(state, *program.put(data.batch(step))); losses.append(float(metrics.loss))
print(losses)
"""


@pytest.mark.long
def test_it_trains_on_eight_devices_as_on_one():
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"}
    found = []
    for mesh in ("data=1", "data=2,fsdp=2,tensor=2"):
        command = [sys.executable, "-c", TRAINED, str(HERE / "own.py"), mesh]
        found.append(json.loads(subprocess.run(command, check=True, text=True, capture_output=True, env=env).stdout))
    np.testing.assert_allclose(found[0], found[1], rtol=2e-5)


def test_a_study_of_own_parts_comes_back_from_its_record(own):
    study, folder = own
    before = (folder / "study.json").read_text()
    assert load_study(folder).runs == study.runs
    save_study(folder, load_study(folder))
    assert (folder / "study.json").read_text() == before
