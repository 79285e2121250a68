"""The benchmark compares like with like: its checks catch a wrong contestant, its cases are the ones it states. No timings."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import npembed
from benchmarks import cases, command, corpus, machine, measure, report, stages
from benchmarks.contest import OURS, PRODUCT, Contest, Contestant, DisagreementError, Schedule, quartiles, ratio, take_turns
from benchmarks.embedding import EMBEDDERS, Truth, embedding_contest
from benchmarks.measure import CASES, Row, contests
from benchmarks.report import TARGETS, Target
from npembed import Config, Model, VisionConfig, random_model
from npembed.corpus import Settings

SMALL = ((2, 25), (1, 3), (3, 2))
"""At 25 columns `quotient` gives other ids than `arange`; no slice fills its row of the batch but the first."""


@pytest.fixture(scope="module")
def model() -> Model:
    """The real patches and the real table of positions, with few channels."""
    vision = VisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    return random_model(Config(vision=vision))


@pytest.fixture(scope="module")
def batch() -> cases.Batch:
    return cases.make_batch(SMALL)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_contestant_agrees_on_a_ragged_batch(batch: cases.Batch, model: Model) -> None:
    contest = embedding_contest(batch, model, threads=1)
    assert [contestant.name for contestant in contest.contestants] == [*EMBEDDERS, PRODUCT]
    contest.agree()


@pytest.mark.parametrize("name", EMBEDDERS)
def test_a_contestant_off_by_a_rule_is_caught(name: str, batch: cases.Batch, model: Model) -> None:
    embedder = EMBEDDERS[name]
    wrong = "arange" if embedder.rule == "quotient" else "quotient"
    result = embedder.make(batch, model, 1)()
    truth = Truth(batch, model)
    truth.check(name, result, embedder.places(batch), embedder.rule)
    with pytest.raises(DisagreementError, match=rf"{name}: place \d+, channel \d+: .*, exactly .*; float32 may be off by "):
        truth.check(name, result, embedder.places(batch), wrong)


def _damaged(result: Any, place: tuple[int, int, int], change: float) -> Any:
    wrong = np.array(result)
    wrong[place] += change
    return wrong


@pytest.mark.parametrize("change", [1e-3, np.nan])
@pytest.mark.parametrize(
    ("place", "words"),
    [((0, 49, 15), "npembed: place 49, channel 15"), ((2, 5, 0), "npembed: place 58, channel 0")],
)
def test_one_wrong_number_is_caught(
    place: tuple[int, int, int], words: str, change: float, batch: cases.Batch, model: Model
) -> None:
    result = _damaged(EMBEDDERS[OURS].make(batch, model, 1)(), place, change)
    with pytest.raises(DisagreementError, match=re.escape(words)):
        Truth(batch, model).check(OURS, result, EMBEDDERS[OURS].places(batch), "arange")


def test_wrong_padding_is_caught(batch: cases.Batch, model: Model) -> None:
    result = _damaged(EMBEDDERS[OURS].make(batch, model, 1)(), (1, 3, 2), 1e-3)
    with pytest.raises(DisagreementError, match="npembed's padding: place 0, channel 2"):
        Truth(batch, model).check(OURS, result, EMBEDDERS[OURS].places(batch), "arange")


def test_a_result_of_another_shape_is_caught(batch: cases.Batch, model: Model) -> None:
    result = EMBEDDERS[OURS].make(batch, model, 1)()
    with pytest.raises(DisagreementError, match=re.escape("npembed: shape (3, 49, 16), expected (3, 50, 16)")):
        Truth(batch, model).check(OURS, result[:, :49], EMBEDDERS[OURS].places(batch), "arange")


@pytest.mark.parametrize("name", [OURS, PRODUCT])
def test_a_contest_stops_at_a_wrong_contestant(name: str, batch: cases.Batch, model: Model) -> None:
    contest = embedding_contest(batch, model, threads=1)
    broken = [
        replace(each, run=lambda run=each.run: run() * 1.001) if each.name == name else each for each in contest.contestants
    ]
    with pytest.raises(DisagreementError, match=f"^{name}: place"):
        Contest(broken, contest.check).agree()


def test_the_truth_is_no_product_of_a_contestant(model: Model, batch: cases.Batch) -> None:
    """A model with other weights than the contestants' does not pass for theirs."""
    other = random_model(model.config, seed=1)
    result = EMBEDDERS[OURS].make(batch, model, 1)()
    with pytest.raises(DisagreementError, match="npembed: place"):
        Truth(batch, other).check(OURS, result, EMBEDDERS[OURS].places(batch), "arange")


def test_wrong_ids_are_caught() -> None:
    contest = stages.ids_contest()
    contest.agree()
    with pytest.raises(DisagreementError, match="npembed: other position ids than the seed's loop"):
        contest.check(OURS, npembed.position_ids(cases.mixed_sizes(), rule="shrunk"))


def test_wrong_strips_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "JPEG_SIZE", (900, 700))
    contest = stages.slicing_contest()
    contest.agree()
    strips, _ = contest.contestants[0].run()
    assert len(strips) > 2
    with pytest.raises(DisagreementError, match="npembed: other strips"):
        contest.check(OURS, ([*strips[:-1], np.nextafter(strips[-1], 2)], None))
    with pytest.raises(DisagreementError, match="npembed: other strips"):
        contest.check(OURS, (strips[:-1], None))
    with pytest.raises(DisagreementError, match="pillow: other strips"):
        contest.check("pillow", [picture.rotate(180) for picture in contest.contestants[1].run()])


def test_another_epsilon_in_the_encoder_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "ENCODER_SIZE", (2, 3))
    contest = stages.encoder_contest()
    contest.agree()
    ours, theirs, products = (contestant.run() for contestant in contest.contestants)
    for wrong in (ours * np.float32(1 + 1e-4), np.full_like(ours, np.nan)):
        with pytest.raises(DisagreementError, match=r"npembed: .* from float64, where the largest value is "):
            contest.check(OURS, wrong)
    with pytest.raises(DisagreementError, match="torch-layers: "):
        contest.check("torch-layers", theirs.flip(1))
    with pytest.raises(DisagreementError, match="product: "):
        contest.check(PRODUCT, products[::-1])


def test_the_cases_have_the_sizes_stated() -> None:
    assert cases.BATCHES["seed"] == ((28, 37), (39, 26), (39, 26))
    assert cases.BATCHES["one"] == ((32, 32),)
    assert cases.BATCHES["many"] == ((32, 32),) * 64
    first, *rest = cases.BATCHES["ragged"]
    assert first == (32, 32)
    assert len(rest) == 15
    assert min(rest) == (2, 2)
    assert max(rest) == (12, 30)
    assert all(2 <= h <= 12 and 2 <= w <= 30 for h, w in rest)
    assert sum(h * w for h, w in cases.RAGGED) == 2634
    sizes = cases.mixed_sizes()
    assert len(sizes) == 256
    assert len(set(sizes)) > 20
    assert all(abs(h * w - 1024) < 25 for h, w in sizes)
    width, height = cases.JPEG_SIZE
    assert width * height == 12_000_000
    assert cases.ENCODER_SIZE == (28, 37)


def test_pictures_are_bytes_as_normalised(batch: cases.Batch) -> None:
    assert [strip.shape for strip in batch.strips] == [(3, 14, h * w * 14) for h, w in SMALL]
    pixels = np.concatenate([strip.ravel() for strip in batch.strips])
    assert pixels.dtype == np.float32
    assert pixels.min() == -1
    assert pixels.max() == 1
    assert len(np.unique(pixels)) == 256


def test_every_target_is_of_a_case_and_a_contestant_that_exist(model: Model) -> None:
    names = {case: {*EMBEDDERS, PRODUCT} for case in cases.BATCHES}
    names |= {"slicing": {"pillow"}, "encoder": {"torch-layers"}, "ids": {"seed-torch"}}
    names |= {case: {"transformers"} for case in ("siglip-pooled", "minicpm-4.6-tokens")}
    figures_of = {"per-patch": {"many / one"}, "memory": {"many", "twice / many"}, "import": {"over numpy", "SciPy, Pillow"}}
    figures_of["family-memory"] = set(npembed.FAMILIES)
    for case, what in TARGETS:
        assert what in (names | figures_of)[case]
    assert set(contests(model, 1)) | {"memory", "family-memory", "import"} == set(CASES)


def test_ratios_are_medians_over_the_rounds() -> None:
    times = {
        OURS: [[1.0, 1.0, 9.0], [2.0, 2.0, 2.0], [4.0, 4.0, 4.0]],
        "peer": [[3.0, 3.0, 3.0], [2.0, 2.0, 2.0], [8.0, 9.0, 0.0]],
    }
    assert ratio(times, "peer") == 2.0
    assert ratio(times, OURS, "peer") == 0.5
    assert quartiles([[1.0, 2.0], [3.0, 4.0, 5.0]]) == (2.0, 3.0, 4.0)
    assert quartiles([[7.0]]) == (7.0, 7.0, 7.0)


def test_contestants_take_turns() -> None:
    calls: list[str] = []
    contestants = [
        Contestant("a", lambda: calls.append("a"), before=lambda: calls.append("before a")),
        Contestant("b", lambda: calls.append("b")),
    ]
    times = take_turns(contestants, Schedule(rounds=2, calls=2, pause=0))
    assert calls == ["before a", "a"] * 2 + ["b", "b"] + ["b", "b"] + ["before a", "a"] * 2
    assert {name: [len(each) for each in rounds] for name, rounds in times.items()} == {"a": [2, 2], "b": [2, 2]}


@pytest.mark.parametrize(
    ("target", "value", "met"),
    [
        (Target(at_least=2), 2, True),
        (Target(at_least=2), 1.99, False),
        (Target(at_most=2), 2, True),
        (Target(at_most=2), 2.01, False),
        (Target(at_least=1, at_most=2), 0.9, False),
        (Target(at_least=1, at_most=2), 2.1, False),
        (Target(at_most=2), float("nan"), False),
    ],
)
def test_a_target_is_met_or_not(target: Target, value: float, met: bool) -> None:
    assert target.met(value) is met


def test_targets_are_for_an_openblas_without_a_pin() -> None:
    rows = [Row("seed", PRODUCT, 9.0, "ms", ratio=0.81), Row("memory", "many", 65.0, "MB"), Row("one", OURS, 1.0, "ms")]
    free = report.as_run({}, [], rows, None)["rows"]
    assert [row["met"] for row in free] == [True, False, None]
    pinned = report.as_run({"OPENBLAS_CORETYPE": "Haswell"}, [], rows, None)["rows"]
    assert [row["met"] for row in pinned] == [None, None, None]


def test_memory_is_counted_beside_inputs_result_and_weights(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def embed(strips: Any, sizes: Any, fresh: Model) -> Any:
        assert fresh is not model
        first = np.zeros(3_000_000, dtype=np.uint8)
        del first
        second = np.zeros(1_000_000, dtype=np.uint8)
        result = np.zeros(2_500_000, dtype=np.uint8)
        del second
        return result

    monkeypatch.setattr(npembed, "embed", embed)
    assert measure.peak_memory([], [], model) == pytest.approx(1.0, abs=0.01)


def test_a_familys_memory_is_its_largest_array_or_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tiny model, whose picture then is what counts: its slices, once in bytes and once as floats."""
    monkeypatch.setattr(measure, "JPEG_SIZE", (448, 448))
    family = npembed.FAMILIES["minicpm-v-4.6"]
    tiny = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 27}
    config = replace(next(iter(family.presets().values())), insert_layer_id=1, embed_dim=16)
    config = replace(config, vision=replace(config.vision, **tiny))
    strips, _ = npembed.slice_image(Image.new("RGB", (448, 448)), config)
    most = sum(strip.nbytes for strip in strips) / measure.MEGABYTE
    assert most < measure.pipeline_memory(family, config) < 20 * most


def test_what_a_model_computes_once_is_counted(batch: cases.Batch, model: Model) -> None:
    table = model.position_plus_bias.nbytes
    assert measure.peak_memory(batch.strips, batch.sizes, model) * measure.MEGABYTE > table


def test_the_json_has_its_shape(tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in machine.PIN:
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "out.json"
    assert command.main(["--quick", "--case", "ids", "--threads", "1", "--json", str(file)]) == 0
    done = json.loads(file.read_text())
    assert list(done) == ["format", "quick", "schedule", "machine", "versions", "runs"]
    assert list(done["schedule"]) == ["rounds", "calls", "pause"]
    assert list(done["machine"]) == ["processor", "cores", "threads", "system", "huge_pages"]
    assert {"Python", "npembed", "numpy", "torch", "transformers", "onnxruntime"} <= done["versions"].keys()
    (run,) = done["runs"]
    assert list(run) == ["pin", "kernels", "others_share", "rows"]
    assert {"owner", "blas", "kernel", "threads"} == set(run["kernels"][0])
    assert "numpy" in {each["owner"] for each in run["kernels"]}
    keys = ["case", "what", "value", "unit", "ratio", "ceiling", "lower", "upper", "samples", "target", "met"]
    assert [list(row) for row in run["rows"]] == [keys, keys]
    ours, seed = run["rows"]
    assert (ours["what"], ours["ratio"], ours["target"]) == (OURS, None, None)
    assert (seed["what"], seed["target"]) == ("seed-torch", {"at_least": 5, "at_most": None})
    assert [len(calls) for calls in seed["samples"]] == [done["schedule"]["calls"]] * done["schedule"]["rounds"]
    printed = capsys.readouterr().out
    assert "OpenBLAS chooses its kernel (OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE are not set)" in printed
    assert re.search(r"\| ids +\| seed-torch +\|", printed)


def test_the_pass_without_the_pin_loses_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "524288")
    seen = {}

    def run(words: list[Any], *, env: dict[str, str], stdout: int) -> Any:
        seen.update(words=words, env=env)
        words[words.index("--json") + 1].write_text(json.dumps({"runs": [{"pin": {}}]}))
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(command.subprocess, "run", run)
    assert command.run_without_pin(command.parse(["--case", "ids", "--case", "one"])) == [{"pin": {}}]
    assert not machine.PIN & seen["env"].keys()
    assert seen["words"][-4:] == ["--case", "ids", "--case", "one"]


def test_a_disagreement_is_exit_code_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = npembed.position_ids
    monkeypatch.setattr(npembed, "position_ids", lambda sizes: right(sizes) + 1)
    assert command.main(["--quick", "--case", "ids"]) == 1
    assert "contestants disagree: npembed: other position ids than the seed's loop" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--case", "nothing"], "invalid choice: 'nothing'"),
        (["--threads", "0"], "--threads must be at least 1; got 0"),
        (["--json", "no/such/folder/out.json"], "--json: no/such/folder is not a folder"),
    ],
)
def test_wrong_use_is_exit_code_two(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        command.main(words)
    assert message in capsys.readouterr().err


def test_the_contest_of_corpora_catches_other_vectors_and_shares_out_all_the_time(tmp_path: Path) -> None:
    family = npembed.FAMILIES["siglip"]
    model = random_model(family.small(), until="pooled")
    paths = corpus.write_pictures(tmp_path / "pictures", 2, (40, 30))

    def pooled(wrong: float) -> corpus.Contestant:
        def theirs(paths: Sequence[Path]) -> Any:
            strips, sizes = npembed.slice_image(Image.open(paths[0]), model.config)
            return npembed.run(strips, sizes, model)["pooled"] * (1 + wrong)

        return theirs

    peer = corpus.Peer(model, Settings(until="pooled"), pooled(0), same=True)
    corpus.check(paths[0], peer)
    with pytest.raises(DisagreementError, match="from transformers, whose largest value is"):
        corpus.check(paths[0], replace(peer, theirs=pooled(0.001)))
    corpus.one_process(paths, peer, corpus.write_weights(tmp_path / "weights", model))  # a command that fails is an error
    spent = corpus.bare(paths, peer)
    assert list(spent) == ["read", "decode", "resize", "product", "write"]
    assert min(spent.values()) > 0
