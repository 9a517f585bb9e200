"""Ray clusters of the test's own: a head with its job server, or a pod of pretended TPU slices, on free ports and in short folders.

Everything that a cluster starts carries a mark in its environment, by which it is found and ended; nothing else is touched.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cluster_study import ends_of
from slurm_cluster import free_port

MARK = "DIT_TEST_CLUSTER"


def missing() -> str:
    """What keeps Ray from being started here; empty if nothing does."""
    return "" if importlib.util.find_spec("ray") else 'Ray is not installed: pip install "dit-scaling[ray]"'


@dataclass
class Cluster:
    """A running cluster. `settings` is the environment in which its commands are run, `url` its job server."""

    mark: str
    folder: Path
    settings: dict[str, str]
    url: str = ""
    address: str = ""
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, line: list[str], log: str) -> None:
        """Start a server of the cluster's."""
        with open(self.folder / log, "ab") as file:
            self.started.append(
                subprocess.Popen(
                    line, env=self.settings, stdin=subprocess.PIPE, stdout=file, stderr=file, cwd=self.folder
                )
            )

    def processes(self) -> dict[int, str]:
        """Every process that the cluster started, and its command line."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{MARK}={self.mark}".encode() in (path / "environ").read_bytes().split(b"\0"):
                    state = (path / "stat").read_text().rpartition(")")[2].split()[0]
                    if state not in "ZX" and int(path.name) != os.getpid():
                        found[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ")
        return found

    def workers(self) -> dict[int, str]:
        """The processes that work on cells."""
        return {pid: line for pid, line in self.processes().items() if " dit worker " in line}

    def kill(self) -> None:
        """Kill all of Ray at once, and leave its orphans to themselves."""
        workers = self.workers()
        for pid in self.processes().keys() - workers.keys():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_host(self, raylet: int) -> list[str]:
        """Take a host away as a power cut does: its raylet, Ray's workers on it and their commands; the command lines of all."""
        ended: dict[int, str] = {}
        found = {raylet}
        while found := found - ended.keys():  # stopped first, so that none sees another end and nothing new is started
            for pid in found:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGSTOP)
                    ended[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            found = {pid for pid in self.processes() if _parent(pid) in ended}
        for pid in ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return list(ended.values())

    def story(self) -> str:
        """What a failed wait should show: the cluster's processes and the ends of its logs."""
        logs = sorted(
            (path for kind in ("log", "out", "err") for path in self.folder.rglob(f"*.{kind}") if path.is_file()),
            key=lambda path: path.stat().st_mtime,
        )
        lines = [f"{pid} {line[:150]}" for pid, line in self.processes().items()]
        return "\n".join([*lines, ends_of(logs[-12:])])

    def end(self) -> None:
        """Kill everything, until nothing is left."""
        deadline = time.monotonic() + 30
        while (left := self.processes()) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)
        for process in self.started:
            process.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)


def _parent(pid: int) -> int:
    """The process that started it; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def new(**environment: str) -> Cluster:
    """A cluster's mark, folder (short: sockets have short names) and environment; nothing runs yet."""
    folder = Path(tempfile.mkdtemp(prefix="dit-ray-", dir="/tmp"))
    mark = uuid.uuid4().hex
    quiet = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "180",
        "RAY_TMPDIR": str(folder),
        MARK: mark,
    }
    return Cluster(mark, folder, {**os.environ, **environment, **quiet})


def start_head(cluster: Cluster, cpus: int = 2) -> None:
    """Start Ray's head with its job server, and wait until it answers."""
    port, dashboard = free_port(), free_port()
    cluster.url, cluster.address = f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}"
    line = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    line += [f"--num-cpus={cpus}", f"--temp-dir={cluster.folder}", "--disable-usage-stats"]
    line += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"]
    line += [f"--ray-client-server-port={free_port()}", "--object-store-memory=80000000"]
    cluster.start(line, "head.log")
    deadline = time.monotonic() + 180
    while not _answers(f"{cluster.url}/api/jobs/"):
        assert time.monotonic() < deadline and cluster.started[-1].poll() is None, cluster.story()
        time.sleep(0.3)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def head(**environment: str) -> Iterator[Cluster]:
    """A cluster of one machine with two processors."""
    cluster = new(**environment)
    try:
        start_head(cluster)
        yield cluster
    finally:
        cluster.end()


@contextlib.contextmanager
def pod(
    hosts: int = 2, slices: int = 2, tpu: bool = True, **environment: str
) -> Iterator[tuple[Cluster, dict[str, int]]]:
    """Hosts on this machine that Ray takes for TPU slices of v4, four chips each; the process of each host's raylet by `slice-host`."""
    cluster = new(**environment)
    line = [sys.executable, str(Path(__file__).with_name("ray_pod.py")), str(hosts), str(slices), str(int(tpu))]
    said, deadline = cluster.folder / "pod.log", time.monotonic() + 180
    try:
        cluster.start(line, "pod.log")
        while not (found := [text for text in said.read_text().splitlines() if text.startswith("{")]):
            assert time.monotonic() < deadline and cluster.started[-1].poll() is None, cluster.story()
            time.sleep(0.3)
        known = json.loads(found[0])
        cluster.address = known["address"]
        cluster.settings["RAY_ADDRESS"] = cluster.address
        yield cluster, known["raylets"]
    finally:
        cluster.end()
