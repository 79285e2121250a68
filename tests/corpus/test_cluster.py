"""The run's own cluster: who reaches it, where it listens, and what it prints of its dashboard."""

import os
import socket
import ssl
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import pytest
from distributed import Security
from PIL import Image

from npembed.corpus import engine
from tests import corpus_driver
from tests.command_line import assert_refused, npembed

NOBODY = 65534


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Of a cluster as every run starts it."""
    with engine.cluster(2, None) as (client, dashboard):
        assert dashboard == ""
        yield client


def addresses(client: Any) -> list[str]:
    """Of the scheduler, the workers and what starts them."""
    cluster = client.cluster
    nannies = [nanny.address for nanny in cluster.workers.values()]
    return [cluster.scheduler_address, *cluster.scheduler.workers, *nannies]


def listening() -> list[tuple[str, int]]:
    """Where this process and those that it has started listen."""
    own = psutil.Process()
    found = [each for process in (own, *own.children(recursive=True)) for each in process.net_connections("inet")]
    return [(each.laddr.ip, each.laddr.port) for each in found if each.status == psutil.CONN_LISTEN]


def answers(addresses: list[str], security: Security, user: str, seconds: float) -> list[bool]:
    """Whether each of them answers a process that asks with those keys."""
    if user == "another" and (not hasattr(os, "getuid") or os.getuid() != 0):
        pytest.skip("only root can become another user")
    words, theirs = corpus_driver.CONTEXT.Pipe()
    asks = (theirs, addresses, security, NOBODY if user == "another" else None, seconds)
    process = corpus_driver.CONTEXT.Process(target=corpus_driver.knock, args=asks)
    process.start()
    theirs.close()
    try:
        found: list[bool] = words.recv()
    finally:
        process.join()
    return found


@pytest.mark.parametrize("user", ["the same", "another"])
def test_the_keys_alone_decide_who_is_answered(client: Any, user: str) -> None:
    """By the scheduler, by the workers, and by what starts them."""
    tls = addresses(client)
    tcp = [address.replace("tls://", "tcp://") for address in tls]
    assert answers(tls, client.security, user, seconds=60) == [True] * 5
    assert answers(tls, Security.temporary(), user, seconds=1) == [False] * 5
    assert answers(tcp, Security(), user, seconds=1) == [False] * 5


def test_no_socket_of_a_run_listens_beyond_loopback_or_answers_without_keys(client: Any) -> None:
    """Whatever it is for: servers of pages, too."""
    found = listening()
    assert {ip for ip, _ in found} == {"127.0.0.1"}
    assert {port for _, port in found} == {int(address.rpartition(":")[2]) for address in addresses(client)}
    for place in found:
        assert b"HTTP" not in replied(place, None)
        without = ssl.create_default_context()
        without.check_hostname, without.verify_mode = False, ssl.CERT_NONE
        assert replied(place, without) == b""


def replied(place: tuple[str, int], encryption: ssl.SSLContext | None) -> bytes:
    """What a request for a page is answered with."""
    try:
        with socket.create_connection(place) as plain, encryption.wrap_socket(plain) if encryption else plain as asked:
            asked.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            return asked.recv(1000)
    except (ConnectionError, ssl.SSLError):
        return b""


def test_a_worker_that_is_started_anew_is_closed_too(client: Any) -> None:
    before = listening()
    client.restart()
    assert len(listening()) == len(before)


def test_the_files_of_a_cluster_lie_where_no_other_user_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask puts its folder in front of where modules are imported from; and takes one that somebody else has made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    open_to_all = tmp_path / "dask-scratch-space"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with engine.cluster(1, None) as (client, _):
        [theirs] = client.run(lambda: sys.path).values()
        used = [Path(each) for each in (*theirs, *sys.path) if Path(each).is_relative_to(tmp_path)]
    assert used
    for each in used:
        assert not each.is_relative_to(open_to_all)
        own = tmp_path / each.relative_to(tmp_path).parts[0]
        assert stat.S_IMODE(own.stat().st_mode) == 0o700


def test_a_folder_that_others_may_write_to_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"npembed-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(ValueError, match="is not this user's alone; delete it, or set TMPDIR"):
        engine.cluster(1, None).__enter__()


# The dashboard


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "p").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "p/a.png")
    return tmp_path / "p"


def test_without_being_asked_there_is_no_dashboard(pictures: Path, weights: Path) -> None:
    done = npembed("corpus", pictures, pictures.with_name("out"), "--weights", weights, "--workers", 1)
    assert done.code == 0
    assert "\n1 pictures to compute\n" in done.out


def test_the_dashboard_is_where_the_line_says_and_on_loopback_alone(
    pictures: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bokeh")
    seen = []

    def look(self: Any, count: int, dashboard: str) -> None:
        with urlopen(dashboard) as page:
            seen.append((dashboard, page.read(), {ip for ip, _ in listening()}))

    monkeypatch.setattr("npembed.cli.corpus._Bar.begin", look)
    monkeypatch.setattr("npembed.cli.corpus._Bar.done", lambda *_: None)
    words = ("--weights", weights, "--workers", 1, "--dashboard")
    assert npembed("corpus", pictures, pictures.with_name("out"), *words).code == 0
    [(address, page, ips)] = seen
    assert address.startswith("http://127.0.0.1:")
    assert b"Dask" in page
    assert ips == {"127.0.0.1"}


def test_the_dashboard_of_another_scheduler_is_not_ours_to_show(pictures: Path, weights: Path) -> None:
    words = ("--weights", weights, "--dashboard", "--scheduler", "tcp://127.0.0.1:1")
    message = r"the scheduler tcp://127\.0\.0\.1:1 has a dashboard of its own, if any; leave out --dashboard"
    assert_refused(npembed("corpus", pictures, pictures.with_name("out"), *words), message)


@pytest.mark.parametrize(("module", "extra"), [("cryptography", "corpus"), ("bokeh", "dashboard")])
def test_what_is_missing_is_said_before_the_work(
    pictures: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    done = npembed("corpus", pictures, pictures.with_name("out"), "--weights", weights, "--dashboard")
    assert_refused(done, rf"needs {module}: pip install 'npembed\[{extra}\]'")
    assert not pictures.with_name("out").exists()
