"""A Slurm of the test's own: munge, a controller and two virtual nodes on this machine, on free ports and in a folder of their own.

Nodes are named after addresses of this machine, so that processes on them find each other by their names.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
NODES = ("127.0.0.1", "127.0.0.2")
CONFIGURATION = """ClusterName=dit
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=10
MinJobAge=300
ReturnToService=2
MailProg=/bin/true
NodeName=127.0.0.1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs=2 RealMemory=2000 State=UNKNOWN
NodeName=127.0.0.2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=all Nodes=127.0.0.[1-2] Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """What keeps Slurm, or a sweep on it, from being started here; empty if nothing does."""
    if importlib.util.find_spec("submitit") is None:
        return 'submitit is not installed: pip install "dit-scaling[slurm]"'
    lacking = [name for name in DAEMONS if shutil.which(name, path=search_path()) is None]
    return f"{', '.join(lacking)} not installed: apt-get install --no-install-recommends slurm-wlm munge" * bool(
        lacking
    )


def search_path() -> str:
    """Where daemons are, which ordinary users do not search."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def slurm(**environment: str) -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands talk to a new cluster; its daemons pass it on to jobs."""
    root = Path(tempfile.mkdtemp(prefix="dit-slurm-"))
    for name in ("state", *(f"spool-{node}" for node in NODES), "munge"):
        (root / name).mkdir(mode=0o755)
    (root / "key").write_bytes(os.urandom(128))
    (root / "key").chmod(0o400)
    ports = {"port": free_port(), "port1": free_port(), "port2": free_port()}
    host = socket.gethostname().partition(".")[0]
    (root / "slurm.conf").write_text(CONFIGURATION.format(host=host, user=getpass.getuser(), root=root, **ports))
    settings = {**os.environ, **environment, "SLURM_CONF": str(root / "slurm.conf"), "PATH": search_path()}
    munge = ["--foreground", "--force", f"--socket={root}/munge/socket", f"--key-file={root}/key"]
    munge += [f"--{name}-file={root}/munge/{name}" for name in ("pid", "log", "seed")]
    daemons: list[subprocess.Popen[bytes]] = []
    with open(root / "daemons.log", "wb") as log:
        try:
            for line in (
                ["munged", *munge],
                ["slurmctld", "-D"],
                *(["slurmd", "-D", "-N", node] for node in NODES),
            ):
                daemons.append(
                    subprocess.Popen(line, env=settings, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=root)
                )
                if line[0] == "munged":
                    _wait((root / "munge" / "socket").exists, root)
            _wait(lambda: "idle 2" in _ask(["sinfo", "--noheader", "--format=%t %D"], settings), root)
            yield settings
        finally:
            _ask(["scancel", "--full", "--signal=KILL", f"--user={getpass.getuser()}"], settings)
            for daemon in reversed(daemons):
                daemon.terminate()
            for daemon in daemons:
                try:
                    daemon.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
            shutil.rmtree(root, ignore_errors=True)


def _ask(command: list[str], settings: dict[str, str]) -> str:
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60).stdout


def _wait(condition, root: Path) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, (root / "daemons.log").read_text()
        time.sleep(0.1)
