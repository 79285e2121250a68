"""`python -m benchmarks.ports`."""

import sys

from benchmarks.ports.command import main

sys.exit(main())
