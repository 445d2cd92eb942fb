import pathlib

import numpy as np
import pytest
import tensorflow as tf

from tfgpt.errors import UserError
from tfgpt.text import TokenSplit, WindowSampler, sequential_windows, training_windows


def make_split(*lengths, name="train"):
    """Tokens that are their own positions in the split."""
    total = sum(lengths)
    arrays = tuple(np.split(np.arange(total, dtype=np.uint32), np.cumsum(lengths)[:-1]))
    return TokenSplit(name, pathlib.Path("tokens"), arrays, total, total)


def take(dataset, count):
    return [tuple(array.numpy() for array in batch) for batch in dataset.take(count)]


# === The sampler ===


@pytest.mark.parametrize("lengths", [(1000,), (400, 400, 200), (300, 5, 17), (9,), (12, 9, 10), (17,)])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_an_epoch_takes_no_token_twice_and_misses_little(lengths, batch_size):
    window = 8
    sampler = WindowSampler(make_split(*lengths), window, batch_size, seed=3)
    bounds = np.cumsum([0, *lengths])
    stream = np.concatenate([sampler.batch(step) for step in range(5 * sampler.windows_per_epoch // batch_size + 1)])
    for epoch in range(5):
        rows = stream[epoch * sampler.windows_per_epoch : (epoch + 1) * sampler.windows_per_epoch]
        # Consecutive tokens, so within the split; and none crosses a shard.
        assert (np.diff(rows, axis=1) == 1).all()
        assert (np.searchsorted(bounds, rows[:, 0], "right") == np.searchsorted(bounds, rows[:, -1], "right")).all()
        seen = np.unique(rows)
        assert len(seen) == rows.size
        for start, length in zip(bounds[:-1], lengths, strict=True):
            missed = length - ((seen >= start) & (seen < start + length)).sum()
            assert missed < 2 * (window + 1)


def test_every_token_is_met_over_epochs_and_at_every_place():
    window = 4
    sampler = WindowSampler(make_split(53), window, batch_size=10, seed=0)
    rows = np.concatenate([sampler.batch(step) for step in range(100)])
    assert len(np.unique(rows)) == 53
    assert all(20 in rows[:, place] for place in range(window + 1))


def test_batches_are_a_pure_function_of_seed_and_step():
    split = make_split(500, 300)
    sampler = WindowSampler(split, 16, 5, seed=1)
    forwards = [sampler.batch(step) for step in range(40)]
    for step in reversed(range(40)):
        np.testing.assert_array_equal(sampler.batch(step), forwards[step])
        np.testing.assert_array_equal(WindowSampler(split, 16, 5, seed=1).batch(step), forwards[step])
    other = WindowSampler(split, 16, 5, seed=2)
    assert any((other.batch(step) != forwards[step]).any() for step in range(3))


def test_epochs_differ_in_order_and_phase():
    sampler = WindowSampler(make_split(1000), 9, batch_size=1, seed=0)
    n = sampler.windows_per_epoch
    starts = np.array([sampler.batch(step)[0, 0] for step in range(6 * n)]).reshape(6, n)
    assert len(set(starts[:, 0] % 10)) > 1  # the phase
    assert all((np.diff(epoch) < 0).any() for epoch in starts)  # shuffled
    assert len({tuple(np.argsort(epoch)) for epoch in starts}) == 6


def test_a_batch_may_span_several_epochs():
    sampler = WindowSampler(make_split(9), 8, batch_size=4, seed=0)
    assert sampler.windows_per_epoch == 1
    np.testing.assert_array_equal(sampler.batch(0), np.tile(np.arange(9), (4, 1)))


def test_far_steps():
    batch = WindowSampler(make_split(1000), 9, batch_size=4, seed=0).batch(10**12)
    assert batch.shape == (4, 10) and batch.dtype == np.int32


# === The training pipeline ===


def test_training_windows():
    split = make_split(1000)
    dataset = training_windows(split, window=8, batch_size=3, seed=5)
    assert dataset.element_spec == (tf.TensorSpec((3, 8), tf.int32), tf.TensorSpec((3, 8), tf.int32))
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    sampler = WindowSampler(split, 8, 3, seed=5)
    batches = take(dataset, 60)  # past an epoch
    for step, (inputs, targets) in enumerate(batches):
        np.testing.assert_array_equal(inputs, sampler.batch(step)[:, :-1])
        np.testing.assert_array_equal(targets, inputs + 1)
    resumed = take(training_windows(split, window=8, batch_size=3, seed=5, start_step=40), 20)
    for expected, found in zip(batches[40:], resumed, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("num_pipelines", [1, 2, 3, 6])
def test_pipelines_share_the_global_batch(num_pipelines):
    split = make_split(500, 300)
    whole = take(training_windows(split, 8, 6, seed=5, start_step=10), 30)
    parts = [
        take(training_windows(split, 8, 6, 5, start_step=10, num_pipelines=num_pipelines, pipeline=k), 30)
        for k in range(num_pipelines)
    ]
    for step, (inputs, targets) in enumerate(whole):
        assert all(len(part[step][0]) == 6 // num_pipelines for part in parts)
        np.testing.assert_array_equal(np.concatenate([part[step][0] for part in parts]), inputs)
        np.testing.assert_array_equal(np.concatenate([part[step][1] for part in parts]), targets)


def test_autotune_is_off():
    split = make_split(100)
    for dataset in (training_windows(split, 8, 3, seed=5), sequential_windows(split, 8, 3)):
        assert dataset.options().autotune.enabled is False


# === The sequential pipeline ===


@pytest.mark.parametrize("lengths", [(9,), (25,), (24,), (100,), (7, 50, 3, 40), (97,), (98,)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_sequential_windows_cover_every_target_once(lengths, batch_size):
    split = make_split(*lengths)
    dataset = sequential_windows(split, window=8, batch_size=batch_size)
    ids, weights = tf.TensorSpec((batch_size, 8), tf.int32), tf.TensorSpec((batch_size, 8), tf.float32)
    assert dataset.element_spec == (ids, ids, weights)
    batches = take(dataset, -1)
    assert len(batches) == dataset.cardinality() == -(-(split.num_tokens - 1) // (8 * batch_size))
    inputs, targets, weights = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    assert set(np.unique(weights)) <= {0, 1}
    real = weights == 1
    assert targets[real].tolist() == list(range(1, split.num_tokens))
    assert (inputs[real] == targets[real] - 1).all()
    assert (targets[~real] == 0).all()
    assert (inputs < split.num_tokens).all()


# === Errors ===


@pytest.mark.parametrize("make", [lambda s: training_windows(s, 8, 2, seed=0), lambda s: sequential_windows(s, 8, 2)])
def test_a_split_shorter_than_a_window(make):
    make(make_split(9))
    with pytest.raises(UserError, match="the validation split of tokens has 8 tokens; expected at least 9"):
        make(make_split(8, name="validation"))


def test_shards_shorter_than_a_window():
    with pytest.raises(UserError, match="has 20 tokens in 4 shards, at most 5 in one; expected at least 9"):
        WindowSampler(make_split(5, 5, 5, 5), 8, 2, seed=0)


def test_bad_arguments():
    with pytest.raises(UserError, match="windows of 0 tokens in batches of 2; expected at least 1"):
        training_windows(make_split(100), 0, 2, seed=0)
    with pytest.raises(UserError, match="in batches of 0; expected at least 1"):
        sequential_windows(make_split(100), 8, 0)
    with pytest.raises(UserError, match="found the seed -1; expected 0 or more"):
        training_windows(make_split(100), 8, 2, seed=-1)
    with pytest.raises(UserError, match="batch_size is 6, expected a multiple of the 4 input pipelines"):
        training_windows(make_split(100), 8, 6, seed=0, num_pipelines=4)
    with pytest.raises(UserError, match="found input pipeline 2; expected 0 to 1"):
        training_windows(make_split(100), 8, 6, seed=0, num_pipelines=2, pipeline=2)


@pytest.mark.parametrize("num_pipelines", [1, 2, 3])
def test_pipelines_share_each_batch_without_overlap(num_pipelines):
    split = make_split(500)
    for make in (
        lambda **share: training_windows(split, 8, 6, seed=3, start_step=2, **share).take(4),
        lambda **share: sequential_windows(split, 8, 6, **share),
    ):
        whole = [[part.numpy() for part in batch] for batch in make()]
        shares = [make(num_pipelines=num_pipelines, pipeline=k) for k in range(num_pipelines)]
        for batch, *rows in zip(whole, *shares, strict=True):
            assert {part.shape for share in rows for part in share} == {(6 // num_pipelines, 8)}
            for number, part in enumerate(batch):
                assert (np.concatenate([share[number].numpy() for share in rows]) == part).all()
