"""Settings and fixtures that the tests share."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from npembed import Model, load_model
from npembed.conformance import Pack, read_pack, write_pack
from tests.synthetic import synthetic_picture

pytest_plugins = ("pytester", "tests.extras")
pytest.register_assert_rewrite("tests.command_line")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script; the children of tests would ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of upstream's own answers."""
    return DATA


@pytest.fixture(scope="session")
def tiny() -> Model:
    """The small checkpoint that upstream's answers were made with."""
    return load_model(DATA / "tiny-minicpmv")


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pack]:
    """MiniCPM-V 2.6's golden pack, which no test may change."""
    folder = tmp_path_factory.mktemp("golden") / "pack"
    write_pack(folder)
    pack = read_pack(folder)
    yield pack
    assert read_pack(folder).manifest == pack.manifest, "a test has changed the pack that all share"


# Of the command line


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def weights(data: Path) -> Path:
    return data / "tiny-minicpmv"


@pytest.fixture
def picture(here: Path) -> Path:
    """A small picture, of one slice."""
    from tests.command_line import saved

    return saved(synthetic_picture(60, 40), here / "picture.png")


@pytest.fixture
def old_output(picture: Path) -> Iterator[Path]:
    """The file that holds what it held before, when the test is over."""
    from tests.command_line import state

    output = picture.with_name("out.safetensors")
    output.write_bytes(b"old")
    before = state(picture.parent)
    yield output
    assert state(picture.parent) == before


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of things that are wrong, and of old outputs; no test may change a byte of it."""
    from tests.wrong_things import make_site

    folder = tmp_path_factory.mktemp("site")
    make_site(folder)
    return folder
