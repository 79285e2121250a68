"""A stop of a run, whenever it comes: one line, the shell's exit code, and nothing that goes on or is left lying."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from distributed import LocalCluster
from PIL import Image

from tests.corpus_stopped import STOP

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
ROOT = Path(__file__).parents[2]
MOMENTS = [
    ("SIGINT", "group", "distributed.nanny:Nanny.start_unsafe"),
    ("SIGINT", "group", "multiprocessing.popen_spawn_posix:Popen._launch"),
    ("SIGINT", "group", "worker"),
    ("SIGINT", "group", "distributed.client:Client.__init__"),
    ("SIGINT", "group", "npembed.corpus.build:run_groups"),
    ("SIGINT", "group", "distributed.deploy.spec:SpecCluster.close"),
    ("SIGTERM", "process", "worker"),
    ("SIGTERM", "group", "worker"),
    ("SIGTERM", "group", "npembed.corpus.engine:_result"),
]
"""As the cluster starts, works and ends: what is sent to whom, before what is called for the first time."""


def assert_stopped(number: str, whom: str, moment: str, folder: Path, *words: object) -> None:
    """A run that stops at that moment says so and ends, with all that it has started."""
    (folder / "p").mkdir()
    Image.new("RGB", (9, 9)).save(folder / "p/a.png")
    (folder / "tmp").mkdir()
    own = {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp"), STOP: str(folder / "not yet"), "OMP_NUM_THREADS": "1"}
    said = ("tests.corpus_stopped", moment, number, whom, "corpus", folder / "p", folder / "out", *words)
    ran = subprocess.Popen(
        [sys.executable, "-m", *map(str, said)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | own,
        start_new_session=True,
    )
    _, errors = ran.communicate()  # which waits for all that have these streams, its workers too
    assert (ran.returncode, errors) == (130 if number == "SIGINT" else 143, "npembed: stopped\n")
    assert psutil.wait_procs([each for each in psutil.process_iter() if _group(each.pid) == ran.pid], timeout=60)[1] == []
    assert not (folder / "not yet").exists(), "the moment came"
    assert not (folder / "out/scratch").exists()
    assert not list((folder / "out").rglob(".npembed-*"))


def _group(process: int) -> int:
    try:
        return os.getpgid(process)
    except ProcessLookupError:
        return -1


@pytest.mark.parametrize(("number", "whom", "moment"), MOMENTS)
def test_a_stop_is_one_line_and_ends_all(number: str, whom: str, moment: str, tmp_path: Path, weights: Path) -> None:
    assert_stopped(number, whom, moment, tmp_path, "--weights", weights, "--workers", 2)


@pytest.mark.parametrize("moment", ["npembed.corpus.engine:_asked", "distributed.client:Client._ensure_connected"])
def test_a_stop_while_another_scheduler_answers_is_one_line(moment: str, tmp_path: Path, weights: Path) -> None:
    with LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0", protocol="tcp", silence_logs=60) as there:
        words = ("--weights", weights, "--scheduler", there.scheduler_address)
        assert_stopped("SIGINT", "group", moment, tmp_path, *words)
