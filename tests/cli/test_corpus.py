"""`npembed corpus`: what it prints, its exit codes, and bad input, which gets one line."""

import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from npembed import FAMILIES, Model, random_model
from npembed.corpus import Settings, build
from npembed.corpus import open as open_corpus
from tests.command_line import assert_refused, done_well, npembed
from tests.corpora import BROKEN, write_pictures
from tests.synthetic import synthetic_picture


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with three good pictures in `p` and the broken ones."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "p", 3)
    return tmp_path


@pytest.fixture
def weights(data: Path) -> Path:
    return data / "tiny-minicpmv"


def test_failures_are_counted_the_first_named_and_the_others_are_there(here: Path, weights: Path) -> None:
    done = npembed("corpus", "p", "out", "--weights", weights, "--max-slices", 1, "--workers", 1)
    assert (done.code, done.err) == (1, "")
    *_, counted, first, second, third, why, rest = done.out.splitlines()
    assert counted == f"3 of {3 + BROKEN} pictures are in out; {BROKEN} failed:"
    assert re.fullmatch(r"  p/broken/00: it cannot be read as an image: .+", first)
    assert (second[:14], third[:14]) == ("  p/broken/01:", "  p/broken/02:")
    assert why == "index.parquet says of each picture that failed why; npembed corpus page out lists them"
    assert re.fullmatch(r"2 other files; \d+\.\d s", rest)
    assert set(pq.read_table("out/index.parquet")["slices"].to_pylist()) == {None, 1}
    again = npembed("corpus", "p", "out", "--weights", weights, "--max-slices", 1)
    assert again.code == 1
    assert f"\n{first}\n" in again.out
    assert f"\n{3 + BROKEN} were there already; " in again.out
    assert_refused(npembed("corpus", "p", "out", "--weights", weights), r"out was made with max_slices 1, not None")


def test_turns_are_counted_at_the_end_and_upright_applies_them(here: Path, weights: Path) -> None:
    (here / "q").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(synthetic_picture(60, 40))
    for name, options in {"a.jpg": {}, "b.png": {}, "c.tiff": {"compression": "tiff_lzw"}}.items():
        picture.save(here / "q" / name, exif=exif, **options)
    picture.convert("L").save(here / "q/d.tiff", exif=exif)
    picture.save(here / "q/e.png", exif=b"rubbish")
    options = ("--weights", weights, "--workers", 1)
    lines = done_well(npembed("corpus", "q", "out", *options)).splitlines()
    assert lines[-5:-1] == [
        "5 pictures are in out",
        "2 pictures are turned by their EXIF, which was not applied; --upright, into another OUT, applies it",
        "1 picture is turned by Pillow itself, as upstream gets a TIFF",
        "1 picture is mixed up by Pillow, as upstream gets such a TIFF; --upright, into another OUT, reads it right",
    ]
    assert_refused(npembed("corpus", "q", "out", *options, "--upright"), "out was made with upright False, not True")
    lines = done_well(npembed("corpus", "q", "turned", *options, "--upright")).splitlines()
    assert lines[-4:-1] == [
        "5 pictures are in turned",
        "2 pictures are turned by Pillow itself, as upstream gets a TIFF",
        "1 picture is not turned, because its EXIF cannot be read",
    ]
    index = open_corpus("turned").index
    assert index["turn"].to_pylist() == ["applied", "applied", "applied by Pillow", "applied by Pillow", "cannot be read"]
    assert index["width"].to_pylist() == [40, 40, 40, 40, 60]
    assert open_corpus("out").index["width"].to_pylist() == [60, 60, 40, 60, 60]


def test_what_a_library_says_of_a_damaged_picture_is_not_on_the_screen(
    here: Path, weights: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """libtiff writes it straight to the error stream; a worker has none."""
    for name in ("good", "bad"):
        (here / name).mkdir()
        Image.fromarray(synthetic_picture(60, 40)).save(here / name / "a.tiff", compression="tiff_lzw")
    damaged = bytearray((here / "bad/a.tiff").read_bytes())
    damaged[20:40] = b"\xff" * 20
    (here / "bad/a.tiff").write_bytes(damaged)
    made = ("corpus", "good", "bad", "out", "--weights", weights, "--until", "hidden", "--vector", "mean", "--workers", 1)
    assert npembed(*made).code == 1
    new = here / "new.tiff"
    new.write_bytes(damaged)
    for words in (("corpus", "search", "out", new), ("embed", new), ("explain", new), ("rules", "--pixels", new)):
        assert_refused(npembed(*words), r"new\.tiff cannot be read as an image")
    assert capfd.readouterr().err == ""


def test_globs_choose_and_all_well_is_exit_0(here: Path, weights: Path) -> None:
    Image.new("RGB", (9, 9)).save(here / "p/more.png")
    words = ("--weights", weights, "--include", "*.png", "--exclude", "empty*", "--workers", 1)
    done = npembed("corpus", "p", "out", *words)
    assert (done.code, done.err) == (0, "")
    assert open_corpus("out").index["path"].to_pylist() == ["p/b/picture 001.png", "p/more.png"]


def test_a_corpus_says_what_normalize_needs_of_a_family_with_vectors(here: Path) -> None:
    family = FAMILIES["siglip"]
    model = random_model(family.small(), until="pooled")
    message = r"^corpus: --normalize needs one vector per picture: add --until pooled$"
    with pytest.raises(ValueError, match=message):
        build(["p"], "out", model, settings=Settings(until="embeddings", normalize=True))


def test_a_list_comes_through_a_pipe(here: Path, weights: Path) -> None:
    Image.new("RGB", (9, 9)).save(here / "a.png")
    words = [sys.executable, "-m", "npembed", "corpus", "-", "out", "--weights", str(weights), "--workers", "1"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run(words, input=b"a.png\n", capture_output=True, check=False, cwd=here, env=environment)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert b"\n1 picture is in out\n" in ran.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "Missing argument 'SOURCE"),
        ("p", "Missing argument 'OUT'|Missing argument 'SOURCE"),
        ("gone out", "the source gone does not exist"),
        ("p/notes out", r"no picture found in p/notes \(1 other files\)"),
        ("p p", "p is not empty and no corpus"),
        ("p p/notes", "cannot be read as a folder: Not a directory"),
        ("p out --until nothing", "--until must be one of"),
        ("p out --until pooled", "has no stage 'pooled'"),
        ("p out --vector median", "--vector must be 'mean'; got 'median'"),
        ("p out --vector mean --until embeddings", "--vector mean goes with --until hidden or tokens; got embeddings"),
        ("p out --normalize", "--normalize needs one vector per picture: add --vector mean$"),
        ("p out --dtype int8", "--dtype must be 'float32' or 'float16'"),
        ("p out --rule none", "none"),
        ("p out --workers 2 --scheduler tcp://127.0.0.1:1", "--workers and --scheduler exclude each other"),
        ("p out --scheduler nonsense://x", "the scheduler nonsense://x does not answer"),
    ],
)
def test_bad_input_gets_one_line(here: Path, weights: Path, words: str, message: str) -> None:
    assert_refused(npembed("corpus", *words.split(), *(["--weights", weights] if words else [])), message)
    assert not (here / "out/index.parquet").exists()


def test_most_slices_of_a_family_without_them_are_refused(here: Path, tmp_path: Path) -> None:
    import json

    from safetensors.numpy import save_file

    from npembed import FAMILIES, random_model

    family = FAMILIES["siglip"]
    model: Model = random_model(family.small(), until="pooled")
    config, preprocessor = family.as_json(model.config)
    (tmp_path / "w").mkdir()
    (tmp_path / "w/config.json").write_text(json.dumps(config))
    (tmp_path / "w/preprocessor_config.json").write_text(json.dumps(preprocessor))
    save_file({name: array.copy() for name, array in model.weights.items()}, tmp_path / "w/model.safetensors")
    assert_refused(npembed("corpus", "p", "out", "--weights", "w", "--max-slices", 2), "has no most number of slices")
    done = npembed("corpus", "p", "out", "--weights", "w", "--workers", 1)
    assert done.code == 1
    assert "pooled" in str(open_corpus("out")), "the default for a family that has it"
