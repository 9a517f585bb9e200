"""How long planning takes: `dit plan FILE --hardware v5e-8` for studies of 48 to 2,000 cells, start of Python included.

python tests/benchmarks/planning.py [rounds]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STUDY = '''"""How long does planning take?"""
from dit.design.config import BLOCKS, DATASETS, SIZES, Evaluation, RunConfig, model_config
DATA = DATASETS["imagenet256"]
SCORES = tuple(Evaluation(step, "inception", num_samples=50_000, decoder="sd-vae-ft-mse") for step in (200_000, 400_000))
def runs():
    cells = [(block, size, patch) for block in BLOCKS for size in SIZES for patch in (8, 4, 2)]
    return [RunConfig(model_config(*cells[k % 48], DATA), DATA, 400_000, 256, k // 48, evaluations=SCORES) for k in range({})]
'''


def main() -> None:
    """Print a line for each number of cells: median, fastest and slowest of the rounds."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    print("| cells | median s | fastest | slowest |\n|---|---|---|---|")
    for count in (48, 500, 2000):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "many.py").write_text(STUDY.replace("{}", str(count)))
            command = [sys.executable, "-m", "dit", "plan", "many.py", "--hardware", "v5e-8"]
            seconds = []
            for _ in range(rounds):
                started = time.perf_counter()
                subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
                seconds.append(time.perf_counter() - started)
        print(f"| {count} | {statistics.median(seconds):.2f} | {min(seconds):.2f} | {max(seconds):.2f} |")


if __name__ == "__main__":
    main()
