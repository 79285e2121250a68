"""Where a model's arrays come from: a folder, a GGUF file, the Hub, any URL; one interface, a module per kind of source.

- `source`: the interface, and what every kind of source shares. `opening`: what a word means. `plan`: what is to be read.
- `ranges`: parts of files, on this machine or over HTTP, checked. `places`: reading together what lies together.
- `safetensors_header`: the names, types and places of the arrays in a safetensors file, from the file's first bytes.
- `checkpoint`: a checkpoint's folder, wherever it is. `folder`: on this machine. `url`, `web`: at any URL. `hub`, `cache`: a
  repository of the Hugging Face Hub, and what is kept of it.
- `gguf`: the container of llama.cpp. `mmproj`, `gguf_config`: its vision towers as a source.
- `seeded`: random weights.
"""

from functools import partial
from pathlib import Path

from npembed.records.config import FamilyConfig
from npembed.records.model import Model
from npembed.support import arguments
from npembed.weights.opening import Say, open_source, to_stderr
from npembed.weights.plan import plan, read_source_config
from npembed.weights.seeded import random_model
from npembed.weights.source import WHO, Progress, check_entries, finite

__all__ = ["load_model", "random_model", "read_config"]


def read_config(source: str | Path) -> FamilyConfig:
    """The sizes that a source of weights states, as its family reads them.

    Parameters
    ----------
    source : str or path
        As for `load_model`. Its config.json and preprocessor_config.json are read, whose values win;
        before it counts the `image_processor` of processor_config.json, as in transformers. What neither gives is the default
        of the family's own code; that both files are missing is refused, except for MiniCPM-V up to 4.5 and o.

    Returns
    -------
    Config, or another family's

    Raises
    ------
    ValueError
        No config.json, no preprocessor_config.json; a file that is not a JSON object; a family that is not supported; a key
        that is not known and may change the numbers; a size that is not a size. Each is named with its source.

    Notes
    -----
    Source: SPEC 1 and 13.1.

    Examples
    --------
    >>> read_config("no/such/folder")
    Traceback (most recent call last):
    ...
    ValueError: read_config: no/such/folder is not a folder, nor a file that exists, a URL or owner/name of the Hub
    """
    who = "read_config"
    arguments.as_path(source, "source", who)
    try:
        return read_source_config(open_source(source), who)
    except ValueError as error:
        raise ValueError(f"{who}: {str(error).removeprefix(f'{who}: ').removeprefix(f'{WHO}: ')}") from None


def load_model(
    source: str | Path, until: str | None = None, *, say: Say = to_stderr, progress: Progress | None = None
) -> Model:
    """The model in a checkpoint, wherever it is; only the arrays that are needed are read.

    Parameters
    ----------
    source : str or path
        The first that fits: a folder with config.json, and model.safetensors or shards with model.safetensors.index.json; a
        .safetensors file with config.json beside it; an mmproj file of llama.cpp (GGUF, whatever its name); `hf://owner/name`
        or `owner/name` of the Hugging Face Hub, either with `@revision`; `hf://owner/name/FILE.gguf`; the URL of a folder, a
        .safetensors or a .gguf file. What exists here wins over a repository of that name.
    until : str, optional
        The last stage that is wanted. Without it: every stage that the checkpoint holds.
    say : callable, optional
        Called with a line for the user: what is downloaded and where to, that nothing is, what an mmproj file contradicts or
        leaves open, what sentence-transformers computes after the model. By default it goes to the error stream.
    progress : callable, optional
        Called during a download with the bytes that are there, and the bytes that there will be.

    Returns
    -------
    Model

    Raises
    ------
    ValueError
        What `read_config` refuses; no such source, no weights; a shard that is missing, truncated or no safetensors file; an
        index that is not JSON or that points outside the folder; an array that is missing, of a dtype other than F16, BF16,
        F32, F64 or, in GGUF, a quantised one, of a shape that the config does not give, or with a number that is not finite;
        an array of the vision tower or the connector that no stage reads; an adapter beside the model, which is not applied; a
        config that names other weights; a server that answers wrongly.
    ImportError
        Without the extra `gguf`, `hub` or `url`, where the source needs it.

    Notes
    -----
    Source: SPEC 10 and 13. What a stage needs of a repository of the Hub is kept under NPEMBED_CACHE, or npembed in the user's
    cache folder, so that the next call needs no network. What is read from another URL is not kept.

    Examples
    --------
    >>> load_model("no/such/folder")
    Traceback (most recent call last):
    ...
    ValueError: load_model: no/such/folder is not a folder, nor a file that exists, a URL or owner/name of the Hub
    """
    arguments.as_path(source, "source", "load_model")
    return load(source, until, say, progress)[0]


def load(source: str | Path, until: str | None, say: Say, progress: Progress | None) -> tuple[Model, str]:
    """`load_model`, and the source in words: without credentials, with the commit of a repository of the Hub."""
    planner = partial(plan, until=until)
    opened = open_source(source, planner, say, progress)
    planned = planner(opened)
    check_entries(opened, planned.shapes)
    if far := opened.far(planned.shapes):
        say(f"{opened.where}: {planned.stage} needs {far / 1e6:,.1f} MB of {opened.size() / 1e6:,.1f} MB; they are not kept")
    opened.prefetch(planned.shapes, progress)
    weights = {name: finite(opened.read(name), f"{name} in {opened.file_of(name)}") for name in planned.shapes}
    return Model(planned.config, weights), opened.where
