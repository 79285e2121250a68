"""The command line: `npembed`, a module per command."""

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import npembed
from npembed.cli import check, corpus, embed, explain, families, golden, rules, weights
from npembed.cli.common import refuse, say
from npembed.support import stops

app: typer.Typer = typer.Typer(
    name="npembed",
    help="The reference, in NumPy, for how a picture becomes embeddings in MiniCPM-V 2.6 and its relatives.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


INTERRUPTED = 130
"""What Typer makes of a KeyboardInterrupt."""


def run(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 the port or its data differ, 2 wrong use or input."""
    words = list(sys.argv[1:] if args is None else args) or ["--help"]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a name or a × that the terminal cannot show is no reason to stop
    try:
        with warnings.catch_warnings():  # this process is a command's alone: the filters are its own
            warnings.filterwarnings("ignore", module=r"PIL\.")  # remarks on odd metadata and large sizes
            code = typer.main.get_command(app)(words, prog_name="npembed", standalone_mode=False)
    except (ValueError, TypeError, ImportError, OSError) as error:
        return refuse(str(error))
    except MemoryError as error:
        return refuse(f"there is not enough memory: {error}" if str(error) else "there is not enough memory")
    except (KeyboardInterrupt, typer.Abort):
        return refuse("stopped", stops.code())
    except Exception as error:
        if not hasattr(error, "format_message"):  # not one of Typer's own complaints about the words of the call
            raise
        return refuse(f"{_complaint(error)} (npembed --help lists the commands)")
    if code == INTERRUPTED:
        return refuse("stopped", stops.code())
    return code if isinstance(code, int) else 0


def _complaint(error: Any) -> str:
    """Typer's own words; of an option that is not known, with the one that may be meant."""
    meant = getattr(error, "possibilities", None)
    return f"{error.message}; did you mean {meant[0]!r}?" if meant else str(error.format_message())


def _version(wanted: bool) -> None:
    if wanted:
        say(f"npembed {npembed.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


app.command()(embed.embed)
app.add_typer(corpus.corpus, name="corpus")
corpus.corpus.command("page")(explain.corpus_page)
app.command()(explain.explain)
app.command()(families.families)
app.command()(rules.rules)
app.add_typer(golden.app, name="golden")
app.command()(check.check)
app.add_typer(weights.app, name="weights")
