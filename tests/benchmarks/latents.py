"""Records per second that one process reads for training, beside what DiT-XL/2 at 256 px would use up on one host.

    python tests/benchmarks/latents.py [--records 8192] [--folder DIR] [--seconds 5]

The reading rate is measured here: random records of ImageNet's size, in the page cache, posterior sampled, batches of 256. The needs are
arithmetic: XL/2 costs 0.7117 TFLOP an image to train (3 x 118.64 G multiply-adds x 2), at half of the data sheet's peak.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dit.data.latents import LatentDataset
from dit.data.shards import MANIFEST, Manifest, Record, Settings, ShardWriter, shard_name, to_json
from dit.store.files import write_text
from dit.weights.vae import LATENT_SCALE

TFLOP_PER_IMAGE = 3 * 2 * 118.64e-3
# Host: chips, peak bfloat16 TFLOP/s of one.
HOSTS = {
    "TPU v3 pod (4 chips a host)": (4, 123),
    "TPU v4 pod (4 chips a host)": (4, 275),
    "TPU v5p pod (4 chips a host)": (4, 459),
    "TPU v6e pod (8 chips a host)": (8, 918),
    "one H200": (1, 989),
    "8 H200": (8, 989),
}


def write_records(folder: Path, count: int, shard_size: int = 1024) -> None:
    """A folder of random moments as `dit encode --image-size 256` would write."""
    settings = Settings("random", 256, 32, 4, LATENT_SCALE, "float32", count, "random", shard_size, ("a", "b"))
    rng = np.random.default_rng(0)
    moments = rng.standard_normal((64, *settings.moments_shape)).astype(np.float16)
    shards = []
    for i in range(settings.num_shards):
        writer = ShardWriter(folder, shard_name(i))
        for j in range(min(shard_size, count - i * shard_size)):
            writer.write(Record(moments[j % 64], j % 2, f"a/{i}-{j}.jpg"))
        shards.append(writer.finish([]))
    write_text(folder / MANIFEST, to_json(Manifest(settings, tuple(shards))))


def rate(folder: Path, seconds: float, threads: int) -> tuple[float, float]:
    """Records per second of batches of 256 that nothing waits for, and processor time per record in microseconds."""
    dataset = LatentDataset(folder, 256, seed=0, verify=False)
    dataset._threads, dataset._pool = threads, ThreadPoolExecutor(threads)
    dataset.batch(0)
    start, cpu, step = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        step += 1
        dataset.batch(step)
    elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
    dataset.close()
    return step * 256 / elapsed, cpu / (step * 256) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=8192)
    parser.add_argument("--folder", type=Path, help="where to write them (default: a temporary folder)")
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        start = time.perf_counter()
        write_records(folder, args.records)
        size = sum(path.stat().st_size for path in folder.iterdir())
        elapsed = time.perf_counter() - start
        print(f"wrote {args.records:,} records, {size / 1e6:.0f} MB: {args.records / elapsed:,.0f} records/s")
        start = time.perf_counter()
        default = LatentDataset(folder, 256, seed=0)
        elapsed = time.perf_counter() - start
        print(f"opened and checked every sha256: {size / 1e9 / elapsed:.2f} GB/s")
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {default._threads} reading threads by default")
        rates = {
            threads: rate(folder, args.seconds, threads) for threads in (1, 2, 4) if threads <= (os.cpu_count() or 1)
        }
    for threads, (measured, cpu) in rates.items():
        print(
            f"{threads} threads: {measured:,.0f} records/s, {measured * 32768 / 1e6:,.0f} MB/s, {cpu:.0f} us of a core each"
        )
    best = max(measured for measured, _ in rates.values())
    print(f"\n{'host':<30} {'XL/2 images/s':>14} {'one process':>12}")
    for host, (chips, peak) in HOSTS.items():
        needed = chips * peak * 0.5 / TFLOP_PER_IMAGE
        print(f"{host:<30} {needed:>14,.0f} {best / needed:>11.1f}x")


if __name__ == "__main__":
    main()
