"""Drive the placement of gangs as a job on the cluster would: `ray_gang.py FOLDER START_WITHIN TASKS`; what happens, a JSON line each.

TASKS is a list of [cell, command, resources]. A cell whose command is gone without having left FOLDER/<cell>.done is placed again.
"""

import json
import sys
import time
from pathlib import Path

from sweeps.engine import GONE, CellTask, Resources
from sweeps.engines.ray_driver import Placement, connect


def say(event: dict) -> None:
    """One line."""
    print(json.dumps({"at": round(time.monotonic(), 1), **event}), flush=True)


def main() -> None:
    """Place until every cell is done."""
    folder, start_within, tasks = Path(sys.argv[1]), float(sys.argv[2]), json.loads(sys.argv[3])
    connect()
    say({"event": "connected"})
    left = {cell: CellTask(cell, tuple(line), Resources(**needs)) for cell, line, needs in tasks}
    placement = Placement(folder, start_within, say)
    placement.submit(list(left.values()))
    while left:
        for cell, state in placement.poll().items():
            if state == GONE and cell in left:
                if (folder / f"{cell}.done").exists():
                    del left[cell]
                    say({"event": "done", "cell": cell, "detail": placement.detail(cell)})
                else:
                    placement.submit([left[cell]])
                    say({"event": "again", "cell": cell, "detail": placement.detail(cell)})
    placement.close()


if __name__ == "__main__":
    main()
