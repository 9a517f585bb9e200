"""`python -m dit` is the `dit` command."""

import sys

from dit.cli import main

sys.exit(main())
