"""Settings and fixtures that the tests share."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from npembed import Model, load_model

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
