"""The strategies: what they draw is valid, what they promise is drawn, and it shrinks to small cases."""

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

import npembed
from npembed.conformance import strategies as draw

QUICK = settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@given(draw.tgt_sizes(max_slices=4, max_patches=60))
def test_sizes_are_valid_and_within_the_limits(sizes: np.ndarray) -> None:
    assert sizes.dtype == np.int64
    assert 1 <= len(sizes) <= 4
    assert (sizes >= 1).all()
    assert (sizes.prod(axis=1) <= 60).all()


@pytest.mark.parametrize("n", [25, 49, 7])
def test_sizes_on_which_rules_part_are_drawn_often(n: int) -> None:
    seen: list[bool] = []

    @settings(QUICK, phases=[Phase.generate], derandomize=True)
    @given(draw.tgt_sizes())
    def collect(sizes: np.ndarray) -> None:
        seen.append(n in sizes)

    collect()
    assert np.mean(seen) > 0.02


def test_any_two_rules_that_part_do_so_on_a_parting_size() -> None:
    telling = draw.parting_sizes(70, 128)
    vectors = {rule: [npembed.bucket_coords(n, 70, rule).tolist() for n in telling] for rule in npembed.RULES}
    for one in npembed.RULES:
        for other in npembed.RULES:
            part = any(
                npembed.bucket_coords(n, 70, one).tolist() != npembed.bucket_coords(n, 70, other).tolist()
                for n in range(1, 129)
            )
            assert part == (vectors[one] != vectors[other])


@given(st.data())
def test_strips_masks_and_models_fit_each_other(data: st.DataObject) -> None:
    sizes = data.draw(draw.tgt_sizes(max_patches=30))
    model = data.draw(draw.models())
    vision = model.config.vision
    strips = data.draw(draw.strips(sizes, vision.num_channels, vision.patch_size))
    mask = data.draw(draw.masks(sizes))
    assert np.isfinite(npembed.embed(strips, sizes, model)).all()
    assert npembed.position_ids(sizes, mask=mask).shape == (len(sizes), mask.shape[2])


@given(draw.rectangles())
def test_rectangles_have_sizes(mask: np.ndarray) -> None:
    assert (npembed.tgt_sizes_from_mask(mask).prod(axis=1) == mask.sum(axis=(1, 2))).all()


@given(draw.token_sequences())
def test_token_sequences_carry_their_bounds(sequence: draw.TokenSequence) -> None:
    found = npembed.image_bounds(sequence.input_ids, sequence.start_ids, sequence.end_ids)
    assert found.tolist() == sequence.image_bound.tolist()
    for start, end in found:
        assert (sequence.input_ids[start:end] == draw.UNK_ID).all()


@given(draw.models("tokens"))
@settings(max_examples=10)
def test_models_say_how_they_are_made(model: draw.SmallModel) -> None:
    again = eval(repr(model), {"small_model": draw.small_model})
    assert again.config == model.config
    assert all(np.array_equal(again.weights[name], array) for name, array in model.weights.items())


@pytest.mark.parametrize(
    ("strategy", "smallest"),
    [
        (draw.tgt_sizes(), [[1, 1]]),
        (draw.floats((2,)), [1, 1]),
        (draw.pictures().map(lambda picture: picture.shape), (1, 1, 3)),
        (draw.token_sequences().map(lambda sequence: sequence.input_ids), [290, 294, 291]),
        (draw.models("tokens").map(repr), "small_model('tokens')"),
    ],
)
def test_everything_shrinks_to_its_smallest_case(strategy: st.SearchStrategy, smallest: object) -> None:
    found = find(strategy, lambda value: True, settings=QUICK)
    assert (found.tolist() if isinstance(found, np.ndarray) else found) == smallest


def test_a_condition_on_the_batch_shrinks_to_the_least_batch_that_meets_it() -> None:
    ragged = find(draw.tgt_sizes(), lambda sizes: len(set(sizes.prod(axis=1).tolist())) > 1, settings=QUICK)
    assert sorted(ragged.prod(axis=1).tolist()) == [1, 2]
