"""Start a Ray cluster of pretended hosts, say where it is, and stay until standard input closes: `ray_pod.py HOSTS SLICES TPU`."""

import json
import sys

from ray.cluster_utils import Cluster

TOPOLOGIES = {1: ("v4-8", "2x2x1"), 2: ("v4-16", "2x2x2")}


def main() -> None:
    """Serve."""
    hosts, slices, tpu = map(int, sys.argv[1:])
    small = {"object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
    nodes = {}
    for number in range(slices):
        for host in range(hosts):
            described = slice_host(f"slice{number}", host, *TOPOLOGIES[hosts]) if tpu else {}
            nodes[f"slice{number}-{host}"] = cluster.add_node(num_cpus=1, wait=False, **small, **described)
    cluster.wait_for_nodes(timeout=150)
    raylets = {
        name: next(p.process.pid for many in node.all_processes.values() for p in many) for name, node in nodes.items()
    }
    print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
    sys.stdin.read()


def slice_host(name: str, host: int, pod_type: str, topology: str) -> dict:
    """What makes Ray take a node for one host of a slice."""
    head = {f"TPU-{pod_type}-head": 1} if host == 0 else {}
    return {
        "env_vars": {
            "TPU_NAME": name,
            "TPU_WORKER_ID": str(host),
            "TPU_ACCELERATOR_TYPE": pod_type,
            "TPU_TOPOLOGY": topology,
        },
        "resources": {"TPU": 4, "accelerator_type:TPU-V4": 1, **head},
        "labels": {
            "ray.io/tpu-slice-name": name,
            "ray.io/tpu-worker-id": str(host),
            "ray.io/tpu-pod-type": pod_type,
            "ray.io/tpu-topology": topology,
            "ray.io/accelerator-type": "TPU-V4",
        },
    }


if __name__ == "__main__":
    main()
