"""One pass over images gives the same statistics on one device, on several, and over several processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_extractor import some_images, tiny_extractor

from dit.data.image_sets import ArrayImages
from dit.score.evaluation import gather

PROCESS = """
import sys
import jax
import numpy as np
port, index, processes, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", processes, index)
from tiny_extractor import some_images, tiny_extractor
from dit.score.evaluation import gather
from dit.data.image_sets import ArrayImages
statistics = gather(tiny_extractor(batch_size=7), ArrayImages("x", some_images(101, 0)), 7, keep=60)
gaussian = statistics.pooled.gaussian()
np.savez(
    f"{out}/{index}.npz", mean=gaussian.mean, covariance=gaussian.covariance, features=statistics.features,
    score=statistics.inception.scores(), devices=len(jax.local_devices()),
)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(1, 2), (2, 1), (2, 2)])
def test_devices_and_processes_change_nothing(processes: int, devices: int, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    started = [
        subprocess.Popen([sys.executable, "-c", PROCESS, port, str(i), str(processes), str(tmp_path)], env=environment)
        for i in range(processes)
    ]
    assert [process.wait(timeout=240) for process in started] == [0] * processes
    alone = gather(tiny_extractor(), ArrayImages("x", some_images(101, 0)), 16, keep=60)
    gaussian = alone.pooled.gaussian()
    for index in range(processes):
        with np.load(tmp_path / f"{index}.npz") as found:
            assert found["devices"] == devices
            np.testing.assert_allclose(found["mean"], gaussian.mean, rtol=1e-6)
            np.testing.assert_allclose(found["covariance"], gaussian.covariance, rtol=1e-5, atol=1e-9)
            np.testing.assert_allclose(found["features"], alone.features, rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(found["score"], alone.inception.scores(), rtol=1e-6)


def test_kept_features_are_the_first(tmp_path: Path) -> None:
    images = ArrayImages("x", some_images(50, 0))
    features = tiny_extractor().extract(images.images).pooled
    for partial in (None, tmp_path):
        kept = gather(tiny_extractor(), images, 16, count=40, keep=20, partial=partial)
        np.testing.assert_array_equal(kept.features, features[:20])
        assert kept.count == 40
