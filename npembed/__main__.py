"""`npembed` and `python -m npembed`: the command line, or a line that says how to get it."""

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        from npembed.cli import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        print(f"npembed: the command line needs {error.name}: pip install 'npembed[cli]'", file=sys.stderr)
        sys.exit(2)
    sys.exit(run())


if __name__ == "__main__":
    main()
