"""`npembed` and `python -m npembed`: the command line, or a line that says how to get it."""

import sys

from npembed.support import stops


def main() -> None:
    """Run the command line and exit with its code."""
    stops.leave_at_once()
    try:
        from npembed.cli import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        print(f"npembed: the command line needs {error.name}: pip install 'npembed[cli]'", file=sys.stderr)
        sys.exit(2)
    code = 0
    try:
        stops.unwind()
        code = run()
        stops.leave_with(code)
    except KeyboardInterrupt:  # as `run` began or had ended; while it runs, it sees to a stop itself
        code = stops.code()
        stops.leave_with(code)
        print("npembed: stopped", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
