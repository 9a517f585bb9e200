"""Nothing that changed since it was written is read as if it had not: records, rows, and what verifying and mending make of them."""

import json
import os
import random
import re
import shutil
import socket
from pathlib import Path

import pytest
from synthetic_study import cells, write_study

from dit.cli import main
from dit.design.config import digest
from dit.errors import UserError
from dit.store.files import parse_record, read_json, read_record, record_bytes, remove, write_json
from dit.store.metrics import MetricsWriter, read_metrics
from dit.store.study import RunStore, load_study
from dit.store.verify import DAMAGED, FOREIGN, LEFTOVER, MISSING, OLD, verify

ROOT = Path(__file__).parents[2]

RECORD = {
    "schema_version": 1,
    "row": {"fid": 330.70, "steps": 8, "none": None},
    "text": "sha256:é",
    "list": [0.1, -0.0],
}


def test_there_is_one_writer():
    """Every other rename only moves aside or takes away what is there."""
    found = {
        str(path.relative_to(ROOT)): len(
            re.findall(r"os\.(?:replace|rename)\(|\.replace\((?:path|target)\)", path.read_text())
        )
        for room in ("dit", "sweeps", "analysis", "experiments")
        for path in (ROOT / room).rglob("*.py")
    }
    assert {name: count for name, count in found.items() if count} == {
        "dit/store/files.py": 1,
        "dit/store/verify.py": 1,
        "dit/train/checkpoint.py": 2,
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished study of two runs; tests take copies."""
    runs = cells(blocks=("adaln",), sizes=("S", "B"), patches=(4,), sampling=(), steps=100)
    return write_study(tmp_path_factory.mktemp("made") / "out", runs)


@pytest.fixture
def study(made, tmp_path):
    return shutil.copytree(made, tmp_path / "out")


def record_of(study, place=0):
    return RunStore(study, load_study(study).runs[place])


def flips(data, count=None):
    """The bytes with one bit flipped: every one of them, or so many at random places."""
    places = range(8 * len(data)) if count is None else random.Random(0).sample(range(8 * len(data)), count)
    for place in places:
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        yield bytes(changed)


def outcome(data, wanted):
    """Whether the bytes are refused, naming the file, or read as what was written."""
    try:
        value, _ = parse_record(data, "a.json")
    except UserError as error:
        assert "a.json" in str(error)
        return "refused"
    assert value == wanted, data
    return "equal"


def test_every_single_bit_of_a_record_counts():
    data = record_bytes(RECORD)
    assert parse_record(data, "a.json") == (RECORD, True)
    outcomes = [outcome(one, RECORD) for one in flips(data)]
    assert outcomes.count("refused") > 0.9 * len(outcomes)


def test_the_digest_is_the_sha256_of_the_rest_as_canonical_json():
    value = json.loads(record_bytes({"b": 1.0, "a": [1, 2.5]}))
    assert value["digest"] == "sha256:" + digest({"a": [1, 2.5], "b": 1.0}, 64)
    edited = {**value, "b": 2.0}
    with pytest.raises(UserError, match="has changed since it was written"):
        parse_record(json.dumps(edited).encode(), "a.json")
    del edited["digest"]
    assert parse_record(json.dumps(edited).encode(), "a.json") == ({"a": [1, 2.5], "b": 2.0}, False)


def test_flipped_bits_of_every_kind_of_file_in_a_study(study):
    for path in sorted(study.rglob("*.json")):
        data, wanted = path.read_bytes(), read_json(path)
        for one in flips(data, 100):
            outcome(one, wanted)


def test_every_single_bit_of_a_finished_runs_rows_counts(tmp_path):
    writer = MetricsWriter(tmp_path, 1)
    for step in (10, 20):
        writer.write({"step": step, "loss": 1.0 / step})
    writer.close()
    (path,) = (tmp_path / "metrics").iterdir()
    data, end = path.read_bytes(), writer.end
    rows = read_metrics(tmp_path, end)
    assert rows == [{"step": step, "loss": 1.0 / step} for step in (10, 20)]
    refused = 0
    for one in flips(data):
        path.write_bytes(one)
        try:
            assert read_metrics(tmp_path, end) == rows, one
        except UserError as error:
            refused += 1
            assert "0001.jsonl" in str(error)
    assert refused >= 8 * len(data) - 8  # the last line's end does not change what it says


def two_attempts(folder):
    for attempt in (1, 2):
        writer = MetricsWriter(folder, attempt)
        for step in (10, 20, 30):
            writer.write({"step": step + 20 * (attempt - 1), "loss": 0.5})
        writer.close()
    return writer.end


@pytest.mark.parametrize("attempt", [1, 2])
@pytest.mark.parametrize("damage", ["halved", "emptied", "deleted", "a line less", "first line less"])
def test_rows_that_are_missing_are_missed(tmp_path, attempt, damage):
    end = two_attempts(tmp_path)
    assert [row["step"] for row in read_metrics(tmp_path, end)] == [10, 20, 30, 40, 50]
    path = tmp_path / "metrics" / f"{attempt:04d}.jsonl"
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    if damage == "deleted":
        path.unlink()
    else:
        left = {"halved": data[: len(data) // 2], "emptied": b"", "a line less": b"".join(lines[:-1])}
        path.write_bytes(left.get(damage, b"".join(lines[1:])))
    with pytest.raises(UserError, match=r"metrics/000\d\.jsonl"):
        read_metrics(tmp_path, end)
    with pytest.raises(UserError, match=r"metrics/000\d\.jsonl"):
        MetricsWriter(tmp_path, 3, end=end)


def test_rows_of_earlier_versions_are_read_and_vouched_for_by_the_next(tmp_path):
    (tmp_path / "metrics").mkdir()
    path = tmp_path / "metrics" / "0001.jsonl"
    path.write_text('{"step": 10, "loss": 1.5}\n{"step": 20, "loss": 1.25}\n')
    writer = MetricsWriter(tmp_path, 2)
    writer.write({"step": 30, "loss": 1.0})
    writer.close()
    assert [row["loss"] for row in read_metrics(tmp_path, writer.end)] == [1.5, 1.25, 1.0]
    path.write_text(path.read_text().replace("1.25", "1.35"))
    with pytest.raises(UserError, match=r"0002\.jsonl line 1 has changed"):
        read_metrics(tmp_path, writer.end)


def test_a_late_row_of_a_lost_worker_is_no_damage(tmp_path):
    first = MetricsWriter(tmp_path, 1)
    first.write({"step": 10, "loss": 1.0})
    second = MetricsWriter(tmp_path, 2)
    first.write({"step": 20, "loss": 2.0})
    second.write({"step": 20, "loss": 2.0})
    first.close()
    second.close()
    assert [row["step"] for row in read_metrics(tmp_path, second.end)] == [10, 20]


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"a": ' * 200_000, '{"a": NaN}', '{"a": [Infinity]}', '{"a": -1e999}', '{"a": 1' + "0" * 400 + "}",
     '{"a":' + "[" * 70 + "]" * 70 + "}", "", "{", '{"schema_version": "1"}', '{"schema_version": true}'],
)  # fmt: skip
def test_what_no_record_holds_is_refused_in_a_line(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"a\.json") as refused:
        read_json(path)
    assert len(str(refused.value)) < 400


def test_what_is_no_plain_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "large").write_bytes(b"")
    os.truncate(tmp_path / "large", 2**26 + 1)
    for name, said in (
        ("pipe", "no regular file"),
        ("zero", "no regular file"),
        ("large", "more than 67,108,864 bytes"),
    ):
        with pytest.raises(UserError, match=said):
            read_json(tmp_path / name)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError, match="No such device"):
            read_json(tmp_path / "socket")


@pytest.mark.parametrize("value", [True, "1", [1], None, {}])
def test_fields_are_of_their_kinds(tmp_path, value):
    write_json(tmp_path / "a.json", {"step": value})
    with pytest.raises(UserError, match=r"has step .*, expected a int"):
        read_record(tmp_path / "a.json", step=int)


HOSTILE = [
    "NaN",
    "Infinity",
    "1e999",
    "1" + "0" * 400,
    '"text"',
    "[]",
    "[" * 100_000,
    "{}",
    "null",
    "true",
    "-1",
    '"\\u001b[2J"',
]


@pytest.mark.parametrize(
    "name", ["status.json", "config.json", "evals/*.json", "metrics/*.jsonl", "attempts/*.json", "environment-*.json"]
)
def test_hostile_values_reach_no_verb_as_a_traceback(study, capsys, name):
    record = record_of(study)
    (record.path / "attempts").mkdir()
    (record.path / "attempts" / "0001.json").write_text(
        '{"owner": {}, "beat": 1, "lease_s": 60.0, "held_s": 1.5, "ended": "", "progress": {"step": 3, "loss": 0.5}}'
    )
    (record.path / "environment-0001.json").write_text(
        '{"python": "3.11", "packages": {"jax": "0.10"}, "devices": ["cpu"], "git": "x", "cpus": 2}'
    )
    path = next(record.path.glob(name))
    text = re.sub(r',\s*"(digest|chain)": "sha256:\w+"', "", path.read_text())
    places = [found.span(1) for found in re.finditer(r'": ("[^"]*"|-?[\d.]+|\[[^]]*\]|\{[^{}]*\})', text)]
    choice = random.Random(0)
    for number, (start, stop) in enumerate(places[:: max(1, len(places) // 4)]):
        path.write_text(text[:start] + choice.choice(HOSTILE) + text[stop:])
        report = ["report", "--out", str(study / "x.html")]
        for verb in (["status"], ["results", "--json"], ["verify"], *[report] * (number == 1)):
            code = main([verb[0], str(study), *verb[1:]])
            _, err = capsys.readouterr()
            assert code in (0, 1, 2), (verb, text[start - 20 : start])
            assert "\x1b" not in err and (code != 2 or err.count("\n") <= 3)


def kinds(folder):
    return {(one.kind, one.path.name) for one in verify(folder)}


def test_a_sound_study_has_nothing_to_say(study, capsys):
    assert verify(study) == []
    assert main(["verify", str(study)]) == 0
    assert capsys.readouterr().out == "2 of 2 runs may be trusted\n"


def test_everything_that_is_wrong_is_named(study, capsys):
    record = record_of(study)
    scores = sorted((record.path / "evals").iterdir())
    scores[0].write_text(scores[0].read_text().replace('"step": ', '"step": 1'))
    scores[1].unlink()
    (record.path / "stray.txt").write_text("")
    (record.path / f".status.json.{'0' * 32}").write_text("half")
    value = read_json(record.path / "status.json")
    (record.path / "status.json").write_text(json.dumps(value))
    (study / "runs" / "other").mkdir()
    samples = next((record.path / "samples").iterdir())
    samples.write_bytes(samples.read_bytes()[:-40])
    assert kinds(study) == {
        (DAMAGED, scores[0].name),
        (MISSING, scores[1].name),
        (FOREIGN, "stray.txt"),
        (LEFTOVER, f".status.json.{'0' * 32}"),
        (OLD, "status.json"),
        (FOREIGN, "other"),
        (DAMAGED, samples.name),
    }
    assert main(["verify", str(study), "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["findings"]) == 7
    assert main(["verify", str(study), "--repair"]) == 0
    assert "2 of 2 runs may be trusted" in capsys.readouterr().out
    assert [e.step for e in record.missing_evaluations()] == [20, 40]
    assert (record.path / "stray.txt").exists()
    assert {kind for kind, _ in kinds(study)} == {FOREIGN, MISSING, OLD}


def test_a_run_whose_rows_are_damaged_goes_back_to_its_last_sound_state(study):
    record, other = record_of(study), record_of(study, 1)
    path = record.path / "metrics" / "0001.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:4]))
    assert kinds(study) == {(DAMAGED, "0001.jsonl")}
    assert main(["verify", str(study), "--repair"]) == 0
    assert kinds(study) == set()
    assert (record.status()["state"], record.status()["step"]) == ("retryable", 0)
    assert record.metrics() == []
    assert not record.is_done()
    assert other.is_done()


def test_results_say_what_they_leave_out(study, capsys):
    record = record_of(study)
    scores = sorted((record.path / "evals").iterdir())
    assert main(["results", str(study), "--json"]) == 0
    out, err = capsys.readouterr()
    whole = json.loads(out)
    assert err.count("left out") == 0
    text = scores[2].read_text()
    score = re.search(r'"fd_digits": \d', text).end()
    scores[2].write_text(text[: score - 1] + str((int(text[score - 1]) + 1) % 10) + text[score:])
    scores[3].write_text(json.dumps(read_json(scores[3])))
    assert main(["results", str(study), "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == len(whole) - 1
    assert f"1 rows left out, damaged or unreadable ({scores[2]}" in err
    assert "1 rows have no digest: written by an earlier version" in err


def test_finished_runs_are_not_hidden_without_a_word(study, tmp_path, capsys):
    value = read_json(study / "study.json")
    write_json(study / "study.json", {**value, "runs": value["runs"][:1]})
    for verb in ("results", "status"):
        assert main([verb, str(study)]) == 0
        assert "1 finished runs in the folder are not in study.json" in capsys.readouterr().err


def test_a_study_that_would_hide_finished_runs_is_refused(tmp_path, capsys):
    runs = cells(blocks=("adaln",), sizes=("S",), patches=(4,), sampling=(), steps=100, seeds=(0, 1))
    out = write_study(tmp_path / "out", runs, name="small")
    module = tmp_path / "small.py"
    module.write_text(
        '"""Fewer."""\nfrom synthetic_study import cells\ndef runs():\n'
        '    return cells(blocks=("adaln",), sizes=("S",), patches=(4,), sampling=(), steps=100)\n'
    )
    sweep = ["sweep", str(module), "--out", str(out), "--declare"]
    assert main(sweep) == 2
    assert "1 finished run(s) that this study does not ask for" in capsys.readouterr().err
    assert len(load_study(out).runs) == 2
    assert main([*sweep, "--allow-shrink"]) == 0
    assert len(load_study(out).runs) == 1
    assert main(sweep) == 0


def test_a_writer_whose_half_written_file_was_cleared_writes_it_again(tmp_path):
    """A worker that claims a run clears what killed writers left, and may meet one that lives, such as `dit retry`."""
    cleared = []

    def claim():
        cleared.append([remove(path) for path in tmp_path.glob(".*")])

    write_json(tmp_path / "a.json", {"a": 1}, lambda: None if cleared else claim())
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert len(cleared) == 1
