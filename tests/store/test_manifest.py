"""Kubernetes objects of a study: equal to the files in tests/golden, valid names, and commands that hold together."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import yaml

from dit.cli import main
from dit.errors import UserError
from sweeps.manifest import Order, dns_name, manifest, to_yaml

GOLDEN = Path(__file__).parents[1] / "golden"
V5E_16 = {"platform": "tpu", "accelerator": "v5e", "hosts": 4, "chips_per_host": 4, "topology": "4x4"}
H200X8 = {"platform": "gpu", "accelerator": "h200", "hosts": 1, "chips_per_host": 8, "topology": ""}
PAPER = Order(
    "paper", "", V5E_16, "example.org/dit:1", 2, "dit-study", "/study", Path("/study/paper"), "research", spot=True
)
MINE = Order(
    "My_Study", '"""Mine."""\ndef runs(): ...\n', H200X8, "example.org/dit:1", 1, "dit-study", "/study",
    Path("/study/mine"), "default", ("--data", "/study/a b"), "team",
)  # fmt: skip


@pytest.mark.parametrize(("name", "order"), [("manifest_v5e16", PAPER), ("manifest_h200x8", MINE)])
def test_the_objects_are_those_on_file(name, order):
    written = to_yaml(manifest(order), ["dit", "manifest", order.study])
    assert written == (GOLDEN / f"{name}.yaml").read_text()
    assert list(yaml.safe_load_all(written)) == manifest(order)


def test_every_slice_is_a_set_of_its_own_and_all_fit_the_quota():
    objects = manifest(dataclasses.replace(PAPER, slices=3))
    assert [one["kind"] for one in objects] == ["ResourceFlavor", "ClusterQueue", "LocalQueue", *["JobSet"] * 3]
    quota = objects[1]["spec"]["resourceGroups"][0]["flavors"][0]["resources"][0]
    assert quota == {"name": "google.com/tpu", "nominalQuota": 3 * 16}
    asked = 0
    for one in objects[3:]:
        job = one["spec"]["replicatedJobs"][0]["template"]["spec"]
        pod = job["template"]["spec"]
        asked += job["parallelism"] * pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
        coordinator = pod["containers"][0]["env"][0]["value"]
        assert coordinator.startswith(f"{one['metadata']['name']}-compute-0-0.{one['metadata']['name']}:")
    assert asked == quota["nominalQuota"]


@pytest.mark.parametrize("text", ["paper", "Paper 512/px", "a" * 80, "0-9", "ünï", "---", "a_b", "a.b"])
def test_names_are_dns_labels_and_stay_apart(text):
    name = dns_name(f"dit-{text}")
    assert re.fullmatch("[a-z]([a-z0-9-]*[a-z0-9])?", name)
    assert len(name) <= 40
    assert name != dns_name(f"dit-{text}x")
    objects = manifest(dataclasses.replace(PAPER, study=text, folder=Path("/study/x")))
    for one in objects:
        label = one["metadata"]["name"]
        assert re.fullmatch("[a-z]([a-z0-9-]*[a-z0-9])?", label)
        assert len(f"{label}-compute-0-0-abcde") <= 63


def test_words_stay_words():
    """The commands are lists: nothing of a study's name or a path is read by a shell."""
    job = manifest(dataclasses.replace(MINE, study="x; rm -rf $HOME", source=""))[-1]["spec"]["replicatedJobs"][0]
    pod = job["template"]["spec"]["template"]["spec"]
    declare = pod["initContainers"][0]["command"]
    assert declare == ["dit", "sweep", "x; rm -rf $HOME", "--out", "/study/mine", "--declare", "--data", "/study/a b"]
    first = to_yaml([], ["dit", "manifest", "a\nb: c"]).splitlines()[0]
    assert first == "# Written by: " + shlex.join(["dit", "manifest", "a b: c"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folder": Path("/elsewhere/x")}, "--out /elsewhere/x"),
        ({"folder": Path("/study/../etc")}, "--out /study/../etc"),
        ({"namespace": "My Space"}, "--namespace 'My Space'"),
        ({"queue": "-q"}, "--queue '-q'"),
        ({"image": "a b"}, "--image 'a b'"),
        ({"slices": 0}, "--slices 0"),
    ],
)
def test_what_kubernetes_would_refuse_is_one_line(change, message):
    with pytest.raises(UserError, match=re.escape(message)):
        manifest(dataclasses.replace(PAPER, **change))


def test_the_command_line(tmp_path, capsys):
    study = tmp_path / "mine.py"
    study.write_text('"""Mine."""\nfrom experiments.demo import runs\n')
    line = ["manifest", str(study), "--hardware", "v5e-16", "--image", "dit:1", "--claim", "c", "--log-every", "7"]
    assert main(line) == 0
    objects = list(yaml.safe_load_all(capsys.readouterr().out))
    assert objects[3]["data"] == {"mine.py": study.read_text()}
    pod = objects[4]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["initContainers"][0]["command"][2:] == [
        "/etc/dit/mine.py", "--out", "/study/mine", "--declare", "--log-every", "7",
    ]  # fmt: skip
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    assert main([*line[:2], "--hardware", "v9-1", *line[4:]]) == 2
    assert "v9-1" in capsys.readouterr().err
