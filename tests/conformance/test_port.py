"""The check of Python ports: right ones pass, each wrong one is caught, and the smallest input and the cause are named."""

import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import npembed
from npembed import conformance
from npembed.conformance import Outcome, Status, check_port, load_port, port_tests
from npembed.conformance.probes import CHECKS
from tests.ports import RIGHT_PORTS, WRONG_PORTS, WrongPort, as_module
from tests.tensors import dtype_of

CHECKED = [name for name in CHECKS if name != "slice_image" or find_spec("PIL") is not None]


def check_function(port: Any, name: str, **options: Any) -> Outcome:
    """As the kit's own; what cannot be checked here for want of an extra is an error that names it."""
    outcome = conformance.check_function(port, name, **options)
    if outcome.summary.startswith("not checked: "):
        raise ImportError(outcome.summary)
    return outcome


EXAMPLE = Path(npembed.__file__).parent / "conformance" / "examples" / "plain_python_port.py"

CAUSES = {
    "padding side ignored": ("pad_sequence", "ignores padding_side"),
    "padding with 1": ("embed", "the strips are padded with 1, not 0"),
    "mask one short": ("patch_attention_mask", "the mask is one place short"),
    "bias missing": ("embed", "the bias is missing"),
    "kernel transposed": ("embed", "the kernels are transposed"),
    "convolution over BGR": ("embed", "the channels are reversed"),
    "float16 accumulation": ("patch_conv", "the products are summed in the half type; sum them in float32"),
    "bucketize side left": ("bucket_coords", "off by one on boundaries: searchsorted side left"),
    "digitize read as torch's bucketize": (
        "bucketize",
        "right means the opposite here: np.digitize's convention, not torch's",
    ),
    "exact integer rule": ("bucket_coords", "matches rule `exact`, not `arange`"),
    "arange with 4 lanes": ("bucket_coords", "matches rule `arange-lanes4`, not `arange`"),
    "coordinates rounded to bfloat16": ("embed", "the position ids: matches rule `step-bfloat16`, not `arange`"),
    "boundaries of G - 1": ("bucket_coords", "the boundaries are those of G - 1"),
    "ids by rows of G - 1": ("position_ids", "the row is multiplied by G - 1, not G"),
    "h and w swapped in the ids": ("position_ids", "equals the reference with h and w swapped"),
    "row and column swapped in the ids": ("position_ids", "row and column are exchanged in the id"),
    "mask of the ids ignored": ("position_ids", "the mask's pattern is ignored: ids at the first places"),
    "no position in padding": ("embed", "the padding holds the bias alone; upstream adds position 0"),
    "gelu by erf": ("encode", "gelu in its erf form, not the tanh form"),
    "layer norm eps 1e-5, encoder": ("encode", "layer norms with eps 1e-5"),
    "layer norm eps 1e-5, resampler": ("resample", "layer norms with eps 1e-5"),
    "attention scale missing, encoder": ("encode", "the attention's scores are not scaled"),
    "attention scale missing, resampler": ("resample", "the attention's scores are not scaled"),
    "softmax over padding, encoder": ("encode", "padding takes part in the attention's softmax"),
    "softmax over padding, resampler": ("resample", "padding takes part in the attention's softmax"),
    "boolean mask added as a number, encoder": ("encode", "a boolean mask is added to the scores as a number"),
    "boolean mask added as a number, resampler": ("resample", "a boolean mask is added to the scores as a number"),
    "cosines before sines": ("resample", "sines and cosines are exchanged in the table of positions"),
    "rows before columns in the sine table": ("resample", "rows and columns are exchanged in the table of positions"),
    "proj transposed": ("resample", "proj is transposed"),
    "grid read as rows, columns": ("image_placeholder", "the grid is taken as (rows, columns); it is (columns, rows)"),
    "image_bound inclusive": ("image_bounds", "the end is taken as inclusive: it is the place of the end token"),
    "scatter off by one": ("scatter_image_embeds", "the tokens land one place too early"),
    "strips in BGR": ("slice_image", "the channels are reversed: BGR, not RGB"),
    "strips read column-major": ("slice_image", "the patches are laid column by column, not row by row"),
    "mean and std ignored": ("slice_image", "mean and std are ignored: 0.5 for each"),
    "mean and std exchanged": ("slice_image", "mean and std are exchanged"),
    "the first channel's mean and std for all": ("slice_image", "the first channel's mean and std serve for all"),
    "max_slice_nums ignored": ("slice_image", "max_slice_nums of the config is ignored: it is 9"),
    "scale_resolution ignored": ("slice_image", "scale_resolution of the config is ignored: it is 448"),
    "rounded half up": ("slice_image", "lengths are rounded half up, not half to even"),
    "bilinear": ("slice_image", "bilinear resizing, not the filter of the config"),
    "pixels normalised in float64": ("slice_image", "pixels are normalised in float64"),
    "crops in BGR": ("slice_image", "the channels are reversed in the crops alone"),
    "grid turned": ("slice_image", "the grid has columns and rows exchanged"),
    "crops by column": ("slice_image", "the crops go column by column, not row by row"),
    "layer_norm_eps ignored": ("encode", "layer_norm_eps of the config is ignored: it is 1e-6"),
    "eps 1e-5 in post_layernorm": ("encode", "eps 1e-5 in post_layernorm alone"),
    "drop_vision_last_layer ignored": ("encode", "the last layer is run though drop_vision_last_layer leaves it out"),
    "kv_proj always looked for": ("resample", "kv_proj is looked for where D = E, which has none"),
    "softmax without its maximum": ("encode", "the softmax's maximum is not taken off its scores"),
    "NaN of padded places": ("resample", "what stands in padded places is read: here NaN"),
    "quick gelu": ("encode", "gelu in its quick form, x * sigmoid(1.702 x), not the tanh form"),
    "unbiased variance": ("encode", "the variance is the unbiased one"),
    "keys and values exchanged, encoder": ("encode", "keys and values are exchanged"),
    "keys and values exchanged, resampler": ("resample", "keys and values are exchanged"),
    "query not normed": ("resample", "the query is not normed"),
    "keys without positions": ("resample", "the keys have no positions"),
    "positions on the values": ("resample", "the positions are added to the values in place of the keys"),
    "sine table clamped at 70": ("resample", "the table of positions is clamped at 70 rows and columns"),
    "G taken as 70": ("position_ids", "G is taken as 70, whatever is given"),
    "boundaries by products": ("bucket_coords", "the boundaries are f32(k) * f32(1/G)"),
    "digitize's ids": ("embed", "the position ids: matches rule `digitize`, not `arange`"),
    "starts and ends paired by the shorter list": ("image_bounds", "starts and ends are paired by the shorter list"),
    "tokens at the text's end": ("scatter_image_embeds", "the tokens are put at the text's end"),
    "mask of True places": ("patch_attention_mask", "every place is True"),
    "mask one long": ("encode", "the mask is one place long: the first padded place is attended to"),
    "last patch no key": ("encode", "the mask is one place short: the last patch is not attended to"),
    "causal attention": ("encode", "the attention is causal"),
    "causal attention where nothing is padded": ("encode", "the attention is causal where no slice of the batch is padded"),
    "ids at a canvas's first places": (
        "position_ids",
        "the ids stand at the first places of a canvas, the patches at those of its mask",
    ),
    "the last of two grids": ("slice_image", "of two grids that are as near the last is taken"),
    "eps 1e-6 in post_layernorm": ("encode", "eps 1e-6 in post_layernorm alone, whatever the config says"),
    "eps 1e-5 in layer_norm1": ("encode", "eps 1e-5 in layer_norm1 alone"),
    "use_image_id ignored": ("image_placeholder", "use_image_id of the config is ignored"),
    "query_num ignored": ("image_placeholder", "query_num of the config is ignored: it is 64"),
}
"""Wrong port -> a function that it breaks, and the cause that must be named for it, alone."""


@pytest.mark.parametrize("name", RIGHT_PORTS)
def test_a_right_port_passes(name: str) -> None:
    outcomes = check_port(as_module(RIGHT_PORTS[name]()), require=CHECKED, stage=CHECKED, examples=20)
    assert {outcome.name: outcome.summary for outcome in outcomes if outcome.status is not Status.PASS} == {}


def test_the_reference_passes_its_own_check() -> None:
    outcomes = check_port(npembed, require=CHECKED, stage=CHECKED, examples=30)
    assert [outcome.name for outcome in outcomes] == CHECKED
    assert {outcome.status for outcome in outcomes} == {Status.PASS}


@pytest.mark.parametrize("wrong", WRONG_PORTS, ids=lambda wrong: wrong.name)
def test_a_wrong_port_is_caught_in_each_function_that_it_breaks(wrong: WrongPort) -> None:
    port = as_module(wrong.port())
    found = {name: check_function(port, name, examples=0).status for name in wrong.functions}
    assert found == dict.fromkeys(wrong.functions, Status.FAIL)


@pytest.mark.parametrize(("name", "function", "cause"), [(name, *found) for name, found in CAUSES.items()])
def test_the_likely_cause_is_named(name: str, function: str, cause: str) -> None:
    wrong = next(wrong for wrong in WRONG_PORTS if wrong.name == name)
    told = check_function(as_module(wrong.port()), function, examples=5).cause
    assert told is not None
    kinds = {words.split(" (as ")[0].removesuffix(": it overflows") for words in told.split(" or: ")}
    assert kinds == {cause}


def test_every_check_can_fail() -> None:
    caught = {function for wrong in WRONG_PORTS for function in wrong.functions}
    assert set(CHECKS) - caught == set()


@pytest.mark.parametrize(
    ("name", "function", "call"),
    [
        ("exact integer rule", "bucket_coords", "bucket_coords(25, 70)"),
        ("arange with 4 lanes", "bucket_coords", "bucket_coords(49, 70)"),
        ("coordinates rounded to bfloat16", "bucket_coords", "bucket_coords(7, 70)"),
        ("bucketize side left", "bucket_coords", "bucket_coords(2, 70)"),
        ("h and w swapped in the ids", "position_ids", "import numpy as np; position_ids(np.array([[1, 2]]), 70)"),
        ("ids by rows of G - 1", "position_ids", "import numpy as np; position_ids(np.array([[2, 1]]), 70)"),
        ("mask one short", "patch_attention_mask", "import numpy as np; patch_attention_mask(np.array([[1, 1]]))"),
    ],
)
def test_the_smallest_input_is_shown(name: str, function: str, call: str) -> None:
    wrong = next(wrong for wrong in WRONG_PORTS if wrong.name == name)
    assert check_function(as_module(wrong.port()), function).call == call


def test_what_came_what_was_expected_and_the_first_difference_are_told() -> None:
    outcome = check_function(
        SimpleNamespace(bucket_coords=lambda n, side=70: npembed.bucket_coords(n, side, "exact")), "bucket_coords"
    )
    assert outcome.summary == "element [5] is 14, should be 13 (4 of 25 elements differ)"
    assert outcome.came is not None
    assert outcome.came.startswith("[ 0,  2,  5,  8, 11, 14,")
    assert outcome.expected is not None
    assert outcome.expected.startswith("[ 0,  2,  5,  8, 11, 13,")


def test_a_failure_that_only_drawn_inputs_show_is_shrunk() -> None:
    def pad(sequences, batch_first=False, padding_value=0.0, padding_side="right"):
        result = npembed.pad_sequence(sequences, batch_first, padding_value, padding_side)
        return result + (len(sequences) == 3)  # no fixed input has three sequences

    outcome = check_function(SimpleNamespace(pad_sequence=pad), "pad_sequence")
    assert outcome.status is Status.FAIL
    assert outcome.call is not None
    assert outcome.call.count("np.array([], dtype='float32')") == 2, "two of the three sequences can be empty"
    assert outcome.call.count("np.array([1.], dtype='float32')") == 1


def test_the_seed_decides_what_is_drawn() -> None:
    def calls(seed: int) -> list[int]:
        seen: list[int] = []

        def coords(n, rule="arange"):
            seen.append(n)
            return npembed.fractional_coords(n)

        check_function(SimpleNamespace(fractional_coords=coords), "fractional_coords", seed=seed)
        return seen

    assert calls(1) == calls(1)
    assert calls(1) != calls(2)


@pytest.mark.parametrize(
    ("function", "summary"),
    [
        (lambda n, side=70: npembed.bucket_coords(n, side).astype(float), "dtype float64, should be integer"),
        (lambda n, side=70: npembed.bucket_coords(n, side)[:, None], "shape (1, 1), should be (1,)"),
        (lambda n, side=70: 1 // 0, "raised ZeroDivisionError: integer division or modulo by zero"),
        (lambda n: n, "raised TypeError: <lambda>() takes 1 positional argument but 2 were given"),
        (lambda n, side=70: None, "shape (), should be (1,)"),
    ],
)
def test_a_result_of_the_wrong_kind_is_told(function, summary: str) -> None:
    assert check_function(SimpleNamespace(bucket_coords=function), "bucket_coords").summary.endswith(summary)


def test_nan_is_a_failure() -> None:
    port = SimpleNamespace(embed=lambda *args: np.full_like(npembed.embed(*args), np.nan))
    assert "not a number" in check_function(port, "embed").summary


def test_a_port_that_changes_its_argument_is_caught() -> None:
    def scatter(text, tokens, bounds):
        result = npembed.scatter_image_embeds(text, tokens, bounds)
        text[:] = result
        return result

    assert (
        check_function(SimpleNamespace(scatter_image_embeds=scatter), "scatter_image_embeds").summary
        == "changed its argument 0"
    )


def test_what_is_not_provided_is_said_and_fails_only_where_it_is_required() -> None:
    port = SimpleNamespace(bucketize=npembed.bucketize)
    free, required = (check_port(port, require=names, examples=1) for names in ((), ("embed",)))
    assert {outcome.status for outcome in free} == {Status.PASS, Status.ABSENT}
    statuses = {outcome.name: (outcome.status, outcome.summary) for outcome in required}
    assert statuses["embed"] == (Status.FAIL, "not provided, but required")
    assert statuses["encode"] == (Status.ABSENT, "not provided")


def test_unknown_names_precisions_and_empty_ports_are_refused() -> None:
    with pytest.raises(ValueError, match="check: no public function is called embedd; there are pad_sequence, "):
        check_port(npembed, require=["embedd"])
    with pytest.raises(ValueError, match="precision must be one of float64, float32, float16, bfloat16, int8; got 'half'"):
        check_port(npembed, precision="half")
    with pytest.raises(ValueError, match="check: the port has none of the public functions pad_sequence, "):
        check_port(SimpleNamespace())


def test_a_stated_precision_widens_the_bound() -> None:
    half = dtype_of("bfloat16")

    def conv(*args):  # rounds its inputs to bfloat16 and says nothing of it in its result's dtype
        rounded = [None if array is None else array.astype(half).astype(np.float32) for array in args]
        return npembed.patch_conv(*rounded)

    port = SimpleNamespace(patch_conv=conv)
    assert check_function(port, "patch_conv").status is Status.FAIL
    assert check_function(port, "patch_conv", precision="bfloat16").status is Status.PASS
    assert check_function(SimpleNamespace(patch_conv=conv, PRECISION="bfloat16"), "patch_conv").status is Status.PASS


def test_the_plain_python_example_passes() -> None:
    provided = ("pad_pixel_values", "patch_conv", "bucket_coords", "position_ids", "embed")
    outcomes = check_port(load_port(str(EXAMPLE)), require=provided, examples=20)
    assert {outcome.name: outcome.summary for outcome in outcomes if outcome.status is Status.FAIL} == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module_anywhere", "check: the port no_such_module_anywhere cannot be imported: ModuleNotFoundError: "),
        ("no/such/file.py", "cannot be imported: ValueError: no/such/file.py is not a file"),
    ],
)
def test_a_port_that_cannot_be_imported_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_port(name)


def test_a_port_that_fails_as_it_is_imported_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('no GPU')")
    with pytest.raises(ValueError, match=r"broken.py cannot be imported: RuntimeError: no GPU"):
        load_port(str(tmp_path / "broken.py"))


def test_one_line_in_a_test_file_gives_one_test_per_function(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        my_port=textwrap.dedent(
            """
            import npembed
            from npembed import bucketize
            def patch_attention_mask(tgt_sizes):
                return ~npembed.patch_attention_mask(tgt_sizes)
            """
        ),
        test_my_port='from npembed.conformance import port_tests\ntest_port = port_tests("my_port", examples=1)\n',
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-q")
    result.assert_outcomes(passed=1, failed=1, skipped=len(CHECKS) - 2)
    result.stdout.fnmatch_lines(["*True and False are exchanged*"])


def test_without_pytest_the_entry_says_which_extra_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytest", None)
    with pytest.raises(ImportError, match=r"port_tests needs pytest: pip install 'npembed\[testing\]'"):
        port_tests(npembed)


# Runs of a port's author: one stage, a declared rule, a call that can be pasted, what must be refused


def test_a_right_port_of_one_stage_passes_by_itself() -> None:
    port = SimpleNamespace(embed=npembed.embed, encode=lambda *args: 1 / 0)
    outcomes = check_port(port, stage=["embeddings"], examples=3)
    assert [(outcome.name, outcome.status) for outcome in outcomes] == [("embed", Status.PASS)]
    outcomes = check_port(port, stage=["embed"], require=["tokens"], examples=3)
    assert {outcome.name: outcome.status for outcome in outcomes} == {"embed": Status.PASS, "resample": Status.FAIL}


RULED = ("boundaries", "fractional_coords", "bucket_coords", "position_ids", "flattened_position_ids", "embed")


@pytest.mark.parametrize("rule", ["quotient", "step", "exact", "shrunk-bfloat16", "candle-right", "digitize"])
def test_a_port_is_judged_by_the_rule_that_it_declares(rule: str) -> None:
    def of(name: str):
        return lambda *args, **kwargs: getattr(npembed, name)(*args, **kwargs, rule=rule)

    port = SimpleNamespace(**{name: of(name) for name in RULED})
    declared = {outcome.name: outcome.status for outcome in check_port(port, stage=RULED, rule=rule, examples=10)}
    assert Status.FAIL not in declared.values()
    assert declared["bucket_coords"] is Status.PASS
    assert check_function(port, "bucket_coords", examples=0).status is Status.FAIL


def test_under_a_declared_rule_another_fault_shows() -> None:
    port = SimpleNamespace(
        position_ids=lambda sizes, *args, **kw: npembed.position_ids(sizes[:, ::-1], *args, rule="exact", **kw)
    )
    outcome = check_function(port, "position_ids", rule="exact", examples=5)
    assert outcome.status is Status.FAIL
    assert outcome.cause == "equals the reference with h and w swapped"


def test_two_faults_at_once_are_told_apart() -> None:
    port = SimpleNamespace(
        position_ids=lambda sizes, *args, **kw: npembed.position_ids(sizes[:, ::-1], *args, rule="exact", **kw)
    )
    cause = check_function(port, "position_ids", examples=5).cause
    assert cause is not None
    assert "equals the reference with h and w swapped" in cause
    assert " and: " in cause
    assert "matches rule `exact`" in cause


def test_the_next_fault_shows_when_a_rule_is_taken_out() -> None:
    def ids(sizes, side=70, rule="arange", mask=None):
        result = npembed.position_ids(sizes, side, "quotient", mask)
        return result + (side == 27) * (sizes.shape[0] == 2) * (sizes[0, 0] == 4)  # on one of the inputs alone

    cause = check_function(SimpleNamespace(position_ids=ids), "position_ids", examples=5).cause
    assert cause is not None
    assert cause.startswith("no known cause explains every input. matches rule `quotient`, not `arange`")
    assert "the smallest input that still departs is import numpy as np; position_ids(np.array([[4, 2], [3, 5]]), 27)" in cause


def test_no_cause_is_named_that_does_not_explain_every_input() -> None:
    def embed(strips, tgt_sizes, model, rule=None):
        result = npembed.embed(strips, tgt_sizes, model)
        return result + np.float32(0.01) * (len(strips) > 1)

    assert check_function(SimpleNamespace(embed=embed), "embed", examples=5).cause is None


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda n, side=70: npembed.bucket_coords(n, side, "exact"), "bucket_coords"),
        (lambda strips, sizes, model: npembed.embed(strips, sizes, model) * 2, "embed"),
        (lambda x, sizes, model: npembed.encode(x, sizes, model) * 2, "encode"),
        (lambda x, sizes, model: np.nan_to_num(npembed.resample(x, sizes, model)) * np.isfinite(x).all(), "resample"),
        (lambda grid, image_id=None, config=None: "", "image_placeholder"),
        (lambda image, config=None: ([], np.zeros((0, 2), int)), "slice_image"),
        (lambda *args: np.zeros((0, 2), int), "image_bounds"),
    ],
)
def test_the_failing_call_can_be_pasted_and_run(function, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("port_of_a_test")
    setattr(module, name, function)
    monkeypatch.setitem(sys.modules, "port_of_a_test", module)
    outcome = check_function(module, name, examples=0)
    assert outcome.call is not None
    *imports, call = outcome.call.split("; ")
    assert f"from port_of_a_test import {name}" in imports
    names: dict[str, object] = {}
    for line in imports:
        exec(line, names)
    eval(call, names)


def test_what_has_no_right_result_must_be_refused() -> None:
    port = SimpleNamespace(randomized_positions=lambda n, most=2000: np.arange(n))
    outcome = check_function(port, "randomized_positions", examples=3)
    assert (outcome.summary, outcome.call) == ("was not refused: there is no right result", "randomized_positions(3, 2)")


def test_a_large_result_is_shown_around_the_first_difference() -> None:
    def encode(*args):
        result = npembed.encode(*args)
        result[:, -1, -1] += 1
        return result

    outcome = check_function(SimpleNamespace(encode=encode), "encode", examples=0)
    assert outcome.came is not None
    assert "..." not in outcome.came


def test_a_float32_failure_that_float16_may_have_says_so() -> None:
    def encode(x, sizes, model):
        return npembed.encode(x, sizes, model).astype(np.float16).astype(np.float32)

    cause = check_function(SimpleNamespace(encode=encode), "encode", examples=0).cause
    assert cause is None or "float16" in cause


def test_two_checks_in_two_threads_give_what_they_give_alone() -> None:
    """One tries every fault on a port that no known fault explains, and meanwhile the reference passes."""

    def no_known_fault(*args):
        return np.sin(npembed.merge_patches(*args))

    check = partial(check_function, name="merge_patches", family="minicpm-v-4.6", examples=0)
    port = SimpleNamespace(merge_patches=no_known_fault)
    alone, right = check(port), []
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(check, port)
        while not (beside.done() and right):
            right.append(check(npembed).status)
    assert beside.result() == alone
    assert set(right) == {Status.PASS}
