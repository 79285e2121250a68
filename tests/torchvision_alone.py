"""transformers' torchvision processors, in a process of their own.

Where torchvision is in the environment, transformers takes other processors by default, so it stands apart from the other
packages, in a folder that no import finds:

    pip install --no-deps --target SITE-PACKAGES/torchvision-alone torchvision==0.28.0

with the folder that holds torch for SITE-PACKAGES. Its wheel wants CUDA's libraries for operators that a resize does not need;
these are defined here, so that it can be imported beside torch for the CPU. `ask` starts the process; where there is no
torchvision, the test is skipped.
"""

import importlib
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

OPERATORS = (
    "roi_align _roi_align_backward ps_roi_align _ps_roi_align_backward roi_pool _roi_pool_backward ps_roi_pool "
    "_ps_roi_pool_backward nms qnms qroi_align deform_conv2d _deform_conv2d_backward"
)
NOT_THERE = 77
"""The exit status of a process without torchvision."""

Job = tuple[str, dict[str, Any], tuple[Any, ...], dict[str, Any]]
"""A processor as "module:class", the options it is made with, and the arguments of the call."""


def ask(jobs: list[Job], folder: Path) -> list[dict[str, Any]]:
    """What each call gives, its tensors as arrays."""
    (folder / "jobs").write_bytes(pickle.dumps(jobs))
    command = [sys.executable, __file__, str(folder / "jobs"), str(folder / "answers")]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if ended.returncode == NOT_THERE:
        pytest.skip(ended.stderr.strip().splitlines()[-1])
    assert ended.returncode == 0, ended.stderr
    answers: list[dict[str, Any]] = pickle.loads((folder / "answers").read_bytes())
    return answers


def import_torchvision() -> None:
    """torchvision with the operators that it registers something for, or the end of the process."""
    import torch

    sys.path.append(str(Path(torch.__file__).parents[1] / "torchvision-alone"))
    if importlib.util.find_spec("torchvision") is None:
        print("torchvision is not there; tests/torchvision_alone.py says how to install it apart", file=sys.stderr)
        sys.exit(NOT_THERE)
    for name in OPERATORS.split():
        torch.library.define(f"torchvision::{name}", "(Tensor x) -> Tensor")
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        print(f"torchvision cannot be imported: {error!r}", file=sys.stderr)
        sys.exit(NOT_THERE)


def _answer(job: Job) -> dict[str, Any]:
    where, options, arguments, call = job
    module, name = where.split(":")
    found = getattr(importlib.import_module(module), name)(**options)(*arguments, **call)
    return {key: value.numpy() if hasattr(value, "numpy") else value for key, value in found.items()}


if __name__ == "__main__":
    import importlib.util

    import_torchvision()
    answers = [_answer(job) for job in pickle.loads(Path(sys.argv[1]).read_bytes())]
    Path(sys.argv[2]).write_bytes(pickle.dumps(answers))
