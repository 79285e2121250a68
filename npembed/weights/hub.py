"""A repository of the Hugging Face Hub: of its safetensors files only the byte ranges that a stage needs.

The client's own conventions hold: HF_TOKEN or the saved token, HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME. The config is
downloaded by the client, into the client's cache; ranges are asked for here, on the client's session, because none of its
functions checks what a server answers to one.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from npembed.support.reading import read_regular
from npembed.weights.cache import Kept, Planner, Shelf, cache_folder
from npembed.weights.checkpoint import Checkpoint
from npembed.weights.ranges import (
    BUSY,
    Answer,
    BrokenError,
    BusyError,
    HttpFile,
    LocalFile,
    MissingFileError,
    Patience,
    Ranged,
    Sleep,
)
from npembed.weights.source import INDEX, SINGLE, WHO, Progress, check_entries, most_bytes, public

T = TypeVar("T")

MAIN = "main"

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
REVISION = re.compile(r"[\w][\w./+-]*")


@dataclass(frozen=True)
class Repository:
    """A repository's name, and a branch, a tag or a commit of it."""

    name: str
    revision: str = MAIN

    @classmethod
    def parse(cls, text: str) -> "Repository":
        """`owner/name`, `owner/name@revision`, either with hf:// before it.

        Examples
        --------
        >>> Repository.parse("hf://openbmb/MiniCPM-V-2_6@v1")
        Repository(name='openbmb/MiniCPM-V-2_6', revision='v1')
        """
        name, at, revision = text.removeprefix("hf://").partition("@")
        if (
            not NAME.fullmatch(name)
            or (at and not REVISION.fullmatch(revision))
            or ".." in text
            or "--" in name
            or len(name) > 96
        ):
            raise ValueError(
                f"{WHO}: {public(text)!r} is no repository of the Hub; it must be owner/name or owner/name@revision"
            )
        return cls(name, revision or MAIN)

    def __str__(self) -> str:
        return self.name if self.revision == MAIN else f"{self.name}@{self.revision}"


class _Quiet:
    """The client tells of each retry, and shows a bar for each file; a user needs neither. All threads share its switches."""

    def __init__(self) -> None:
        self._lock, self._calls, self._put_back = threading.Lock(), 0, ExitStack()

    @contextmanager
    def while_asked(self, utils: Any) -> Iterator[None]:
        """Quiet until the last of the calls that overlap has its answer; then as it was before the first."""
        with self._lock:
            if not self._calls:
                self._put_back.callback(utils.logging.set_verbosity, utils.logging.get_verbosity())
                if not utils.are_progress_bars_disabled():
                    self._put_back.callback(utils.enable_progress_bars)
                utils.logging.set_verbosity_error()
                utils.disable_progress_bars()
            self._calls += 1
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                if not self._calls:
                    self._put_back.close()


_QUIET = _Quiet()


class Hub:
    """The client, and what it says in one line.

    Parameters
    ----------
    endpoint, token : str, optional
        The client's own by default.
    sleep : callable
        Waits that many seconds.

    Raises
    ------
    ImportError
        Without the extra `hub`.
    """

    def __init__(self, endpoint: str | None = None, token: str | None = None, sleep: Sleep = time.sleep) -> None:
        self._client = _client()
        self.endpoint = (endpoint or self._client.constants.ENDPOINT).rstrip("/")
        self._token, self._sleep = token, sleep
        self._api = self._client.HfApi(endpoint=self.endpoint, token=token)
        self._listed: dict[tuple[str, str], set[str]] = {}
        """Repository and commit -> its files, as the server listed them with the commit."""

    @property
    def offline(self) -> bool:
        """Whether HF_HUB_OFFLINE is set."""
        return bool(self._client.constants.is_offline_mode())

    @property
    def host(self) -> str:
        """Which server it is, without credentials."""
        return urlsplit(self.endpoint).netloc.rpartition("@")[2]

    def commit_of(self, repository: Repository) -> str:
        """The commit that the revision is now; when offline, that it was when the client last asked."""
        if self.offline:
            found = self._client.try_to_load_from_cache(repository.name, "config.json", revision=repository.revision)
            if isinstance(found, str):
                return Path(found).parent.name
        info = self._patiently(repository, None, lambda: self._api.model_info(repository.name, revision=repository.revision))
        if not isinstance(info.sha, str) or not re.fullmatch(r"[0-9a-f]{40}", info.sha):
            raise ValueError(f"{WHO}: {public(self.endpoint)} states no commit of {repository}")
        self._listed[repository.name, info.sha] = {file.rfilename for file in info.siblings or ()}
        return str(info.sha)

    def has(self, at: Repository, name: str) -> bool:
        """Whether the repository has the file; when offline, whether the client's cache has it."""
        if self.offline:
            return isinstance(self._client.try_to_load_from_cache(at.name, name, revision=at.revision), str)
        if listed := self._listed.get((at.name, at.revision)):
            return name in listed
        return self._patiently(at, name, lambda: bool(self._api.file_exists(at.name, name, revision=at.revision)))

    def whole(self, at: Repository, name: str) -> bytes | None:
        """A small file's bytes; None if the repository has no such file."""
        errors = self._client.errors

        def download() -> str | None:
            try:
                return str(
                    self._client.hf_hub_download(at.name, name, revision=at.revision, endpoint=self.endpoint, token=self._token)
                )
            except errors.RemoteEntryNotFoundError:
                return None
            except errors.LocalEntryNotFoundError:
                if self.offline and self._does_without(at, name):
                    return None
                raise

        path = self._patiently(at, name, download)
        return None if path is None else read_regular(path, most_bytes(name), WHO)

    def _does_without(self, at: Repository, name: str) -> bool:
        """Whether the client's cache tells enough without this file: a whole checkpoint has no index, say."""
        instead = {INDEX: SINGLE, SINGLE: INDEX, "processor_config.json": "preprocessor_config.json"}.get(name)
        found = instead and self._client.try_to_load_from_cache(at.name, instead, revision=at.revision)
        return isinstance(found, str)

    def file(self, at: Repository, name: str) -> Ranged | None:
        """A large file: the client's, if it has it whole; else its ranges. None if the repository has no such file."""
        found = self._client.try_to_load_from_cache(at.name, name, revision=at.revision)
        if isinstance(found, str):
            return LocalFile(found)
        if self.offline and self._does_without(at, name):
            return None
        url = self._client.hf_hub_url(at.name, name, revision=at.revision, endpoint=self.endpoint)

        @contextmanager
        def ask(begin: int, stop: int) -> Iterator[Answer]:
            with self._told(at, name), self._stream(url, begin, stop) as response:
                if response.status_code >= 400 and response.status_code not in BUSY:
                    response.read()
                    self._client.utils.hf_raise_for_status(response)
                commit = response.headers.get("X-Repo-Commit", at.revision)
                if commit != at.revision:
                    raise ValueError(f"{WHO}: {at.name}/{name} was asked for at {at.revision}, and came from {commit[:40]!r}")
                yield Answer(response.status_code, {k.lower(): v for k, v in response.headers.items()}, response.iter_raw())

        try:
            return HttpFile(f"{at.name}/{name}", ask, self._sleep)
        except MissingFileError:
            return None

    def _stream(self, url: str, begin: int, stop: int) -> Any:
        utils = self._client.utils
        headers = utils.build_hf_headers(token=self._token)
        headers |= {"Range": f"bytes={begin}-{stop - 1}", "Accept-Encoding": "identity"}
        timeout = self._client.constants.HF_HUB_DOWNLOAD_TIMEOUT
        return utils.get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=timeout)

    def _patiently(self, at: Repository, name: str | None, call: Callable[[], T]) -> T:
        """The call's result, asked for again while the server is busy or the connection breaks."""
        patience = Patience(str(at), self._sleep)
        while True:
            try:
                with self._told(at, name):
                    return call()
            except BrokenError as error:
                patience.after(error)

    @contextmanager
    def _told(self, at: Repository, name: str | None) -> Iterator[None]:
        """The client's errors, in one line that says what to do; or that it is worth asking again."""
        try:
            with _QUIET.while_asked(self._client.utils):
                yield
        except BrokenError:
            raise
        except Exception as error:
            if isinstance(error, ValueError) and str(error).startswith(WHO):
                raise
            raise self._words(error, at, name) from None

    def _words(self, error: Exception, at: Repository, name: str | None) -> Exception:
        client, server = self._client, public(self.endpoint)
        errors, where = client.errors, at.name if name is None else f"{at.name}/{name}"
        login = "`hf auth login` or HF_TOKEN"
        if self.offline:
            return ValueError(f"{WHO}: {where} is in no cache, and HF_HUB_OFFLINE is set; the first time needs the network")
        if isinstance(error, errors.GatedRepoError):
            return ValueError(f"{WHO}: {at.name} is gated: ask for access at {server}/{at.name}, then log in by {login}")
        if isinstance(error, errors.RepositoryNotFoundError):
            return ValueError(f"{WHO}: {at.name} is no repository at {server}, or a private one, which needs {login}")
        if isinstance(error, errors.RevisionNotFoundError):
            return ValueError(f"{WHO}: {at.name} has no revision {at.revision!r}")
        if isinstance(error, errors.RemoteEntryNotFoundError):
            return MissingFileError(f"{WHO}: {at.name} has no file {name}")
        return self._unreached(error, where)

    def _unreached(self, error: Exception, where: str) -> Exception:
        """An answer of another kind, or none."""
        chain = [error, *(cause for cause in (error.__cause__, error.__context__) if isinstance(cause, Exception))]
        for each in chain:  # the client hides some under an error of its own
            response = getattr(each, "response", None)
            if response is not None and response.status_code in BUSY:
                return BusyError(response.status_code, {k.lower(): v for k, v in response.headers.items()})
            if response is not None:
                return ValueError(f"{WHO}: the server of {where} answers with status {response.status_code}")
        kinds = {kind.__name__ for each in chain for kind in type(each).__mro__}
        if "TooManyRedirects" in kinds:
            return ValueError(f"{WHO}: the server of {where} redirects without end")
        if "ConnectError" in kinds or "TransportError" not in kinds:
            return ValueError(f"{WHO}: {where} cannot be read from {public(self.endpoint)}: {type(chain[-1]).__name__}")
        return BrokenError(f"the connection broke ({type(chain[-1]).__name__})")


class HubFiles:
    """The files of a repository at one commit."""

    def __init__(self, hub: Hub, at: Repository) -> None:
        self.hub, self.at = hub, at

    def address(self, name: str) -> str:
        """A file, for messages."""
        return f"{self.at.name}/{name}"

    def has(self, name: str) -> bool:
        """Whether there is such a file; nothing of it is read."""
        return self.hub.has(self.at, name)

    def whole(self, name: str) -> bytes | None:
        """A small file's bytes; None if there is none."""
        return self.hub.whole(self.at, name)

    def file(self, name: str) -> Ranged | None:
        """A large file; None if there is none."""
        return self.hub.file(self.at, name)


class HubSource(Checkpoint):
    """A repository at one commit, as a source; nothing is kept but what the client keeps.

    Parameters
    ----------
    repository : str
        owner/name, owner/name@revision, either with hf:// before it.
    hub : Hub, optional
    """

    def __init__(self, repository: str | Repository, hub: Hub | None = None) -> None:
        hub = hub or Hub()
        self.repository = Repository.parse(repository) if isinstance(repository, str) else repository
        self.commit = hub.commit_of(self.repository)
        at = Repository(self.repository.name, self.commit)
        super().__init__(str(at), HubFiles(hub, at))


def shelf_of(repository: Repository, hub: Hub, cache: Path | None = None) -> Shelf:
    """Where what is read of a repository is kept."""
    return Shelf(cache_folder() if cache is None else cache, hub.host, repository.name)


def fetch(
    repository: str | Repository,
    plan: Planner,
    *,
    cache: Path | None = None,
    hub: Hub | None = None,
    say: Callable[[str], object] | None = None,
    progress: Progress | None = None,
) -> Kept:
    """The arrays that are needed, as a checkpoint's folder: read from the Hub the first time, from the cache after it.

    Parameters
    ----------
    repository : str
        owner/name, owner/name@revision, either with hf:// before it.
    plan : callable
        A source -> what is to be read of it.
    cache : Path, optional
        `cache_folder()` by default.
    hub : Hub, optional
    say : callable, optional
        Called with one line: what is read and where to, or that nothing is.
    progress : callable, optional
        Called with the bytes that are there, and the bytes that there will be.

    Returns
    -------
    Kept
        Its folder holds config.json, what there is of preprocessor_config.json and processor_config.json, and
        model.safetensors.

    Raises
    ------
    ValueError
        No such repository, revision or file; gated; offline and not kept; a server that answers wrongly, see `HttpFile`;
        arrays of another type or shape than is needed; a cache that cannot be written. What has come is kept, and the
        next call goes on from there.
    ImportError
        Without the extra `hub`.

    Notes
    -----
    A branch's commit is asked for once; from then on the cache answers for that branch, without the network, until what is
    kept is removed. No digest of a part of a file exists, so bytes that were changed on the way are not noticed.
    """
    at = Repository.parse(repository) if isinstance(repository, str) else repository
    hub, say = hub or Hub(), say or (lambda line: None)
    shelf = shelf_of(at, hub, cache)
    commit = shelf.commit_of(at.revision)
    if commit and (found := shelf.find(commit, plan)):
        each, planned = found
        say(f"{at}: {planned.stage} is kept in {each.folder} (commit {each.commit[:12]}); nothing is downloaded")
        return each
    source = HubSource(at, hub)
    planned = plan(source)
    check_entries(source, planned.shapes)
    need = sum(source.entry(name).nbytes for name in planned.shapes)
    folder, of = shelf.folder / source.commit / planned.stage, max(need, source.size())
    say(f"{at}: {planned.stage} needs {need / 1e6:,.1f} MB of {of / 1e6:,.1f} MB (commit {source.commit[:12]}), to {folder}")
    kept = shelf.keep(source, list(planned.shapes), source.commit, planned.stage, progress)
    shelf.remember(at.revision, source.commit)
    return kept


def _client() -> Any:
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors, utils  # noqa: F401
    except ImportError:
        raise ImportError("reading from the Hub needs huggingface_hub: pip install 'npembed[hub]'") from None
    return huggingface_hub
