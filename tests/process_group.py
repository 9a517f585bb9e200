"""Real processes that make up one run: JAX's coordination service and gloo on this host, each with virtual devices."""

import os
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent

PREAMBLE = """
import sys
import jax
jax.config.update("jax_platforms", "cpu")
rank, count, address, devices = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
jax.config.update("jax_num_cpu_devices", devices)
if count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, count, rank, heartbeat_timeout_seconds=10, shutdown_timeout_seconds=10)
arguments = sys.argv[5:]
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(code: str, count: int, *arguments: object, devices: int = 1) -> list[subprocess.Popen]:
    """`count` processes that run the code with `rank`, `count` and `arguments` (strings) set; their output is one stream each."""
    address = f"127.0.0.1:{free_port()}"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent), *filter(None, sys.path)])}
    environment |= {"XLA_FLAGS": "--xla_backend_optimization_level=1"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + code, str(rank), str(count), address, str(devices), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in range(count)
    ]


def finish(processes: list[subprocess.Popen], timeout_s: float = 120) -> list[tuple[int, str]]:
    """Exit code and output of each; whoever is not done by then is killed."""
    try:
        outputs = [process.communicate(timeout=timeout_s)[0] for process in processes]
    finally:
        for process in processes:
            with process:  # waited for, also where another took too long
                process.kill()
    return [(process.returncode, output) for process, output in zip(processes, outputs)]
