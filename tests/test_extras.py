"""A test that lacks a package of an extra is skipped, and no other failure is."""

from pathlib import Path

import pytest

BLOCKED = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "PIL":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
pytest_plugins = ["tests.extras"]
"""

FILES = {
    "test_whole": "from PIL import Image\ndef test_never(): pass\n",
    "test_helped": "import helper\ndef test_never(): pass\n",
    "helper": "import PIL\n",
    "test_parts": """
import pytest

@pytest.fixture
def picture():
    import PIL

def test_inside(): import PIL.Image
def test_in_a_fixture(picture): pass
def test_in_the_package():
    import numpy as np, npembed
    npembed.slice_image(np.zeros((9, 9, 3), np.uint8))
def test_from_another_error():
    try:
        import PIL
    except ImportError as error:
        raise RuntimeError("no pictures") from error
def test_right(): pass
def test_wrong(): assert 1 == 2
def test_another_package(): import no_such_package
def test_installed(): raise ImportError("pip install 'npembed[testing]'")
def documented():
    '''
    >>> import PIL
    '''
""",
}


def test_only_what_lacks_a_package_of_an_extra_is_skipped(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    pytester.makeconftest(BLOCKED)
    pytester.makepyfile(**FILES)
    result = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider", "--doctest-modules")
    failed = sorted(line.split("::")[-1].partition(" ")[0] for line in result.outlines if line.startswith("FAILED"))
    assert failed == ["test_another_package", "test_installed", "test_wrong"]
    assert "not run: 3 files and 5 tests of others that need pip install 'npembed[image]'" in result.outlines
    assert result.parseoutcomes()["passed"] == 1
