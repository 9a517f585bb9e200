"""A cell of several processes in small: JAX joins them, each step sums over all, the sum is kept, and a new start takes it up again.

`gang_program.py FOLDER NAME STEPS` counts 1 + 2 + ... over the processes' ranks plus one; process 0 writes FOLDER/NAME.done at the end.
"""

import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    """Join, count, end."""
    folder, name, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    number, count = int(os.environ["JAX_PROCESS_ID"]), int(os.environ["JAX_NUM_PROCESSES"])
    jax.distributed.initialize(os.environ["JAX_COORDINATOR_ADDRESS"], count, number)
    from jax.experimental.multihost_utils import process_allgather

    state, began = folder / f"{name}.json", folder / f"{name}-{number}.starts"
    with open(began, "a") as file:
        file.write(f"{os.environ.get('TPU_NAME', 'host')}\n")
    step, total = json.loads(state.read_text()) if state.exists() else (0, 0)
    while step < steps:
        total += int(process_allgather(jnp.asarray(number + 1)).sum())
        step += 1
        if number == 0:
            beside = state.with_suffix(".beside")
            beside.write_text(json.dumps([step, total]))
            beside.replace(state)
        process_allgather(jnp.asarray(step))  # nobody runs ahead of what is saved
        time.sleep(0.2)
    if number == 0:
        (folder / f"{name}.done").write_text(str(total))


if __name__ == "__main__":
    main()
