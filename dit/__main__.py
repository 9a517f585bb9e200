"""`python -m dit` is the `dit` command. No folder named `sweeps` or the like where it is called is taken for the package's."""

import sys
from pathlib import Path

if not sys.flags.safe_path and Path(sys.path[0]).resolve() != Path(__file__).resolve().parents[1]:
    del sys.path[0]

from dit.cli import main

sys.exit(main())
