"""`python -m benchmarks`, or a line that says how to get its peers."""

import sys

try:
    from benchmarks.command import main
except ModuleNotFoundError as error:
    print(f"benchmarks: {error.name} is not installed: pip install -e '.[bench]'", file=sys.stderr)
    sys.exit(2)

sys.exit(main())
