"""A study as Kubernetes objects: one JobSet per slice or GPU machine, admitted by Kueue, each working through the study's cells.

Every JobSet runs `dit worker` on all hosts of one slice until nothing is left to claim. One set per slice, and not one for all, lets
Kueue admit as many as there is room for and take back single ones. Nothing here talks to a cluster.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit.design.config import digest
from dit.errors import UserError
from sweeps.engine import SOME_FAILED, USAGE

GKE_TPUS = {
    "v3": "tpu-v3-slice",
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
GKE_GPUS = {"a100": "nvidia-a100-80gb", "h100": "nvidia-h100-80gb", "h200": "nvidia-h200-141gb"}
RESTARTS = 100
"""Times that a slice may be lost or taken back before its JobSet gives up."""
PORT = 8476
"""Where process 0 of a slice coordinates."""
MAX_NAME = 40
"""A pod's name adds some twenty characters to its JobSet's, and may have 63."""
COMPUTE = "compute"


@dataclass(frozen=True)
class Order:
    """What is asked for.

    Attributes:
        study: the study's name; `source` is the text of its file, empty for one that the image holds.
        hardware: platform, accelerator, hosts, chips_per_host and topology of a slice, as `sweeps.engines.needs.slice_of` gives them.
        slices: how many such slices may work at once.
        claim: a PersistentVolumeClaim that all pods may write; it is mounted at `mount`, and `folder` lies on it.
        options: run arguments, as options of `dit sweep`.
        queue: an existing LocalQueue; empty to make one, with quota for `slices`.
    """

    study: str
    source: str
    hardware: Mapping[str, Any]
    image: str
    slices: int
    claim: str
    mount: str
    folder: Path
    namespace: str
    options: Sequence[str] = ()
    queue: str = ""
    spot: bool = False


def dns_name(text: str, longest: int = MAX_NAME) -> str:
    """The text as a DNS-1123 label that begins with a letter; what is cut off or replaced is told apart by a hash."""
    label = re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")
    if not label or not label[0].isalpha():
        label = f"s-{label}".rstrip("-")
    if label == text and len(label) <= longest:
        return label
    return f"{label[: longest - 7].rstrip('-')}-{digest(text, 6)}"


def manifest(order: Order) -> list[dict[str, Any]]:
    """The objects, in the order in which they are to be applied.

    Raises:
        UserError: for a folder outside the volume, a namespace or queue that Kubernetes would refuse, or hardware that it cannot name.
    """
    for what, name in (("--namespace", order.namespace), ("--queue", order.queue), ("--claim", order.claim)):
        if name and not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name):
            raise UserError(f"{what} {name!r}: expected lower-case letters, digits and '-' (DNS-1123), 63 at most")
    if not order.folder.is_relative_to(order.mount) or ".." in order.folder.parts or not order.mount.startswith("/"):
        raise UserError(f"--out {order.folder}: expected a folder on the volume, which is mounted at {order.mount}")
    if not order.image or re.search(r"\s", order.image):
        raise UserError(f"--image {order.image!r}: expected an image's name, such as europe-docker.pkg.dev/me/dit:1")
    if order.slices < 1:
        raise UserError(f"--slices {order.slices}: expected a positive whole number")
    base = dns_name(f"dit-{order.study}")
    objects = [] if order.queue else _queues(order, base)
    if order.source:
        metadata = {"name": base, "namespace": order.namespace}
        objects.append(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {_file(order): order.source}}
        )
    return objects + [_job_set(order, base, number) for number in range(order.slices)]


def _file(order: Order) -> str:
    """The study's file in the cluster, by a name that a ConfigMap takes."""
    return re.sub("[^A-Za-z0-9_.-]", "-", order.study) + ".py"


def _resource(order: Order) -> tuple[str, int]:
    """The name of what Kubernetes counts, and how many a host has."""
    platform, chips = order.hardware["platform"], order.hardware["chips_per_host"]
    return {"tpu": ("google.com/tpu", chips), "gpu": ("nvidia.com/gpu", chips), "cpu": ("cpu", 1)}[platform]


def _labels(order: Order) -> dict[str, str]:
    """The labels of the nodes, by GKE's names."""
    kind, platform = order.hardware["accelerator"], order.hardware["platform"]
    labels = {}
    if platform == "tpu":
        labels["cloud.google.com/gke-tpu-accelerator"] = GKE_TPUS[kind]
        labels["cloud.google.com/gke-tpu-topology"] = order.hardware["topology"]
    elif platform == "gpu":
        labels["cloud.google.com/gke-accelerator"] = GKE_GPUS[kind]
    if order.spot:
        labels["cloud.google.com/gke-spot"] = "true"
    return labels


def _queues(order: Order, base: str) -> list[dict[str, Any]]:
    """A flavour of nodes, a quota of all the slices together, and the namespace's queue to it."""
    resource, per_host = _resource(order)
    quota = {"name": resource, "nominalQuota": order.slices * order.hardware["hosts"] * per_host}
    group = {"coveredResources": [resource], "flavors": [{"name": base, "resources": [quota]}]}
    version = "kueue.x-k8s.io/v1beta1"
    flavor: dict[str, Any] = {"apiVersion": version, "kind": "ResourceFlavor", "metadata": {"name": base}}
    if _labels(order):
        flavor["spec"] = {"nodeLabels": _labels(order)}
    return [
        flavor,
        {
            "apiVersion": version,
            "kind": "ClusterQueue",
            "metadata": {"name": base},
            "spec": {"namespaceSelector": {}, "resourceGroups": [group]},
        },
        {
            "apiVersion": version,
            "kind": "LocalQueue",
            "metadata": {"name": base, "namespace": order.namespace},
            "spec": {"clusterQueue": base},
        },
    ]


def _job_set(order: Order, base: str, number: int) -> dict[str, Any]:
    """One slice's JobSet. Its pods start, fail and start again together; what a user must mend ends it."""
    name, hosts = f"{base}-{number}", order.hardware["hosts"]
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "worker", "operator": "In", "values": [USAGE, SOME_FAILED]},
                }
            ]
        },
        "template": {"spec": _pod(order, base, name)},
    }
    annotations = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            "namespace": order.namespace,
            "labels": {"kueue.x-k8s.io/queue-name": order.queue or base},
            **({"annotations": annotations} if order.hardware["platform"] == "tpu" else {}),
        },
        "spec": {
            "suspend": True,
            "failurePolicy": {
                "maxRestarts": RESTARTS,
                "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [{"name": COMPUTE, "replicas": 1, "template": {"spec": job}}],
        },
    }


def _pod(order: Order, base: str, name: str) -> dict[str, Any]:
    """One host: it declares the study, which does nothing where that is done, then works on it."""
    resource, per_host = _resource(order)
    study = f"/etc/dit/{_file(order)}" if order.source else order.study
    declare = ["dit", "sweep", study, "--out", str(order.folder), "--declare", *order.options]
    mounts = [{"name": "study", "mountPath": order.mount}]
    volumes: list[dict[str, Any]] = [{"name": "study", "persistentVolumeClaim": {"claimName": order.claim}}]
    if order.source:
        mounts.append({"name": "declaration", "mountPath": "/etc/dit"})
        volumes.append({"name": "declaration", "configMap": {"name": base}})
    worker: dict[str, Any] = {
        "name": "worker",
        "image": order.image,
        "command": ["dit", "worker", "--study", str(order.folder)],
        "resources": {"requests": {resource: per_host}, "limits": {resource: per_host}},
        "volumeMounts": mounts[:1],
    }
    if order.hardware["hosts"] > 1:
        worker["command"].append("--distributed")
        index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        worker["env"] = [
            {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{name}-{COMPUTE}-0-0.{name}:{PORT}"},
            {"name": "JAX_NUM_PROCESSES", "value": str(order.hardware["hosts"])},
            {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}},
        ]
        worker["ports"] = [{"containerPort": PORT}]
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 120,
        "initContainers": [{"name": "declare", "image": order.image, "command": declare, "volumeMounts": mounts}],
        "containers": [worker],
        "volumes": volumes,
    }
    if _labels(order):
        pod["nodeSelector"] = _labels(order)
    if order.spot:
        pod["tolerations"] = [
            {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        ]
    return pod


def to_yaml(objects: Sequence[Mapping[str, Any]], command: Sequence[str]) -> str:
    """The objects as one YAML stream, which says what wrote it."""
    import yaml

    class Plain(yaml.SafeDumper):
        """Without anchors, and with texts of several lines as they are."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

        def represent_str(self, data: str) -> yaml.ScalarNode:
            style = "|" if "\n" in data else None
            return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    Plain.add_representer(str, Plain.represent_str)
    text = yaml.dump_all(objects, Dumper=Plain, sort_keys=False, width=120, explicit_start=True)
    return f"# Written by: {shlex.join(' '.join(word.split()) for word in command)}\n# Apply with: kubectl apply -f FILE\n{text}"
