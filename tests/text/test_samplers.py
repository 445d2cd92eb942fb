import pathlib

import numpy as np
import pytest

from tfgpt.errors import UserError
from tfgpt.text import MixtureSampler, TokenMixture, TokenSplit, WindowSampler, training_windows


def make_mixture(*weights, num_tokens=1000):
    """Splits of num_tokens tokens each; token // num_tokens is the number of the split."""
    splits = tuple(
        TokenSplit(
            "train", pathlib.Path("tokens"), (np.arange(num_tokens, dtype=np.uint32) + k * num_tokens,), num_tokens, 1
        )
        for k in range(len(weights))
    )
    return TokenMixture(splits, weights)


@pytest.mark.parametrize("weights", [(7, 3), (0.7, 0.3), (0.5, 0.25, 0.25), (1e-4, 1 - 1e-4)])
def test_each_cycle_has_exactly_the_shares(weights):
    batches = MixtureSampler(make_mixture(*weights), 4, 1000, seed=0)
    parts = np.concatenate([batches.batch(step)[:, 0] // 1000 for step in range(20)])
    for cycle in np.split(parts, 2):
        for part, weight in enumerate(weights):
            assert (cycle == part).sum() == round(weight / sum(weights) * 10_000)


def test_a_batch_is_mixed_as_by_chance():
    sampler = MixtureSampler(make_mixture(7, 3), 4, 100, seed=0)
    counts = np.array([(sampler.batch(step)[:, 0] < 1000).sum() for step in range(100)])
    assert counts.mean() == 70
    assert 2 < counts.std() < 8  # binomial: 4.6


def test_no_window_crosses_and_every_split_is_read_by_epochs():
    mixture = make_mixture(2, 1, num_tokens=100_000)
    sampler = MixtureSampler(mixture, 9, 500, seed=3)
    rows = np.concatenate([sampler.batch(step) for step in range(20)])
    assert (np.diff(rows, axis=1) == 1).all()
    assert len(np.unique(rows)) == rows.size  # within the first epoch of both
    for part in range(2):
        here = rows[rows[:, 0] // 100_000 == part] - part * 100_000
        own = WindowSampler(mixture.splits[part], 9, 1, seed=3 + (part << 32))
        expected = own.samples(np.arange(len(here))) - part * 100_000
        assert sorted(here[:, 0]) == sorted(expected[:, 0])


def test_batches_are_a_pure_function_of_seed_and_step():
    mixture = make_mixture(7, 3)
    sampler = MixtureSampler(mixture, 8, 60, seed=1)
    forwards = [sampler.batch(step) for step in range(400)]  # over cycles and epochs
    for step in (399, 166, 167, 3, 0):
        np.testing.assert_array_equal(MixtureSampler(mixture, 8, 60, seed=1).batch(step), forwards[step])
    assert (MixtureSampler(mixture, 8, 60, seed=2).batch(0) != forwards[0]).any()


def test_pipelines_share_a_mixed_batch():
    mixture = make_mixture(7, 3)
    parts = [training_windows(mixture, 8, 6, 1, start_step=5, num_pipelines=2, pipeline=k).take(9) for k in range(2)]
    sampler = MixtureSampler(mixture, 8, 6, seed=1)
    for step, ((inputs, _), (more, targets)) in enumerate(zip(*parts, strict=True), start=5):
        np.testing.assert_array_equal(np.concatenate([inputs, more]), sampler.batch(step)[:, :-1])
        np.testing.assert_array_equal(targets, sampler.batch(step)[3:, 1:])


def test_splits_have_orders_of_their_own():
    sampler = MixtureSampler(make_mixture(1, 1, num_tokens=100_000), 9, 10_000, seed=0)
    first, second = (sampler._samplers[k].samples(np.arange(100))[:, 0] - k * 100_000 for k in range(2))
    assert (first != second).any()


@pytest.mark.parametrize(
    "weights, message",
    [
        ((1, 0), r"are \[1, 0\]; expected numbers above 0"),
        ((1, float("nan")), "expected numbers above 0"),
        ((1, 1e-6), "expected each to be 0.0001 of all at least"),
    ],
)
def test_bad_weights(weights, message):
    with pytest.raises(UserError, match=message):
        MixtureSampler(make_mixture(*weights), 8, 6, seed=1)


def test_a_weight_a_split():
    with pytest.raises(UserError, match="found 1 weights for 2 data sets; expected one each"):
        TokenMixture(make_mixture(1, 1).splits, (1,))
