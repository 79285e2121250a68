"""A screen that is closed or stops listening, a full disk, a folder that takes nothing: one line, and the old file stays."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import saved
from tests.synthetic import synthetic_picture

pytestmark = pytest.mark.skipif(os.name != "posix", reason="streams, modes and file systems as POSIX has them")
ROOT = Path(__file__).parents[2]
NPEMBED = f"{sys.executable} -m npembed"


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, cwd=folder, env=environment)


@pytest.mark.parametrize("words", ["rules --json", "rules --markdown", "rules", "families", "--help"])
def test_a_reader_that_stops_after_a_line(words: str, tmp_path: Path) -> None:
    ran = shell(f"{NPEMBED} {words} | head -1", tmp_path)
    assert ran.stdout.count("\n") <= 1
    assert ran.stderr == ""


@pytest.mark.parametrize("words", ["rules", "families"])
def test_a_screen_that_is_closed(words: str, tmp_path: Path) -> None:
    ran = shell(f"{NPEMBED} {words} >&-", tmp_path)
    assert (ran.returncode, ran.stderr) in ((0, ""), (2, "npembed: [Errno 9] Bad file descriptor\n"))
    ran = shell(f"{NPEMBED} none 2>&-", tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")


def test_with_both_streams_closed_the_work_is_done(tmp_path: Path, weights: Path) -> None:
    saved(synthetic_picture(60, 40), tmp_path / "p.png")
    ran = shell(f"{NPEMBED} embed p.png --weights {weights} -o o.npz >&- 2>&-", tmp_path)
    assert ran.returncode == 0
    assert sorted(os.listdir(tmp_path)) == ["o.npz", "p.png"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_screen_that_takes_no_more(tmp_path: Path) -> None:
    ran = shell(f"{NPEMBED} rules > /dev/full", tmp_path)
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert ran.stderr.startswith("npembed: ")


@pytest.fixture
def full(tmp_path: Path) -> object:
    """A disk of 64 KB of its own."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("name", ["o.npz", "o.safetensors"])
def test_a_full_disk_is_one_line_and_the_old_file_stays(name: str, full: Path, weights: Path) -> None:
    saved(synthetic_picture(60, 40), full / "p.png")
    (full / name).write_text("old")
    before = sorted(os.listdir(full))
    ran = shell(f"{NPEMBED} embed p.png --weights {weights} -o {name}", full)
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert "No space left on device" in ran.stderr
    assert (full / name).read_text() == "old"
    assert sorted(os.listdir(full)) == before


def test_a_pack_on_a_full_disk_is_one_line_and_no_litter(full: Path) -> None:
    ran = shell(f"{NPEMBED} golden write {full}/pack", full.parent)
    assert ran.returncode == 2
    assert "No space left on device" in ran.stderr
    assert os.listdir(full) == []


def test_a_folder_that_takes_no_files_is_said(tmp_path: Path, weights: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    saved(synthetic_picture(60, 40), tmp_path / "p.png")
    (tmp_path / "closed").mkdir(mode=0o555)
    ran = shell(f"{NPEMBED} embed p.png --weights {weights} -o closed/o.npz", tmp_path)
    assert (ran.returncode, ran.stderr) == (2, "npembed: the output's folder " + f"{tmp_path}/closed cannot be written to\n")
