import numpy as np
import pytest

from tfgpt.errors import UserError
from tfgpt.text.labelled_batches import POOL, LabelledSampler, training_batches, validation_batches

RANDOM = np.random.default_rng(0)
# Each text begins with its own number, so that batches tell which texts they hold.
ROWS = [[number, *RANDOM.integers(1000, 2000, RANDOM.integers(0, 30))] for number in range(150)]
CLASSES = [number % 3 for number in range(150)]


def sampler(**options):
    return LabelledSampler(ROWS, CLASSES, **{"batch_size": 4, "seed": 7, **options})


def texts_of(batches):
    return [int(number) for token_ids, _, _ in batches for number in token_ids[:, 0]]


@pytest.mark.parametrize("bucket", [True, False])
def test_a_batch_is_a_function_of_seed_and_step(bucket):
    batches = [sampler(bucket=bucket).batch(step) for step in range(70)]
    again = sampler(bucket=bucket)
    for step in (69, 3, 40, 0):
        for found, expected in zip(again.batch(step), batches[step], strict=True):
            np.testing.assert_array_equal(found, expected)
    others = [sampler(bucket=bucket, seed=8).batch(step) for step in range(70)]
    assert texts_of(batches) != texts_of(others)


@pytest.mark.parametrize("bucket", [True, False])
def test_batches_hold_whole_texts_with_their_classes(bucket):
    for step in range(40):
        for token_ids, mask, number in zip(*sampler(bucket=bucket).batch(step), strict=True):
            assert token_ids[: mask.sum()].tolist() == ROWS[token_ids[0]] and not token_ids[mask.sum() :].any()
            assert (np.diff(mask) <= 0).all() and number == token_ids[0] % 3


def test_an_epoch_takes_each_text_once():
    made = sampler(batch_size=5, bucket=False)
    first, second = (texts_of(made.batch(step) for step in range(30 * n, 30 * n + 30)) for n in (0, 1))
    assert sorted(first) == sorted(second) == list(range(150)) and first != second


def test_bucketing_rearranges_a_pool():
    size = POOL * 4
    bucketed, plain = sampler(), sampler(bucket=False)
    for pool in (0, 1):
        steps = range(pool * POOL, (pool + 1) * POOL)
        found, expected = (texts_of(each.batch(step) for step in steps) for each in (bucketed, plain))
        assert sorted(found) == sorted(expected) and len(found) == size
    padding = [sum(1 - each.batch(step)[1].mean() for step in range(POOL)) / POOL for each in (bucketed, plain)]
    assert padding[0] < 0.7 * padding[1]  # the rest is widths' rounding
    widths = [bucketed.batch(step)[0].shape[1] for step in range(POOL)]
    assert widths != sorted(widths) and all(width % 8 == 0 for width in widths)


def test_a_fixed_width():
    assert {sampler(width=32).batch(step)[0].shape for step in range(10)} == {(4, 32)}


def test_dropped_tokens():
    made, kept, count = sampler(token_dropout=0.4, bucket=False), 0, 0
    for step in range(100):
        token_ids, mask, _ = made.batch(step)
        whole = sampler(bucket=False).batch(step)
        for row, real, full, all_real in zip(token_ids, mask, whole[0], whole[1], strict=True):
            left, before = row[: real.sum()].tolist(), full[: all_real.sum()].tolist()
            assert len(left) >= 1
            remaining = iter(before)
            assert all(token in remaining for token in left)  # in their order
            if len(before) > 5:
                kept, count = kept + len(left), count + len(before)
    assert kept / count == pytest.approx(0.6, abs=0.02)
    np.testing.assert_array_equal(made.batch(3)[0], sampler(token_dropout=0.4, bucket=False).batch(3)[0])
    one = LabelledSampler([[5]], [0], batch_size=2, seed=0, token_dropout=0.99)
    assert one.batch(0)[0][:, 0].tolist() == [5, 5]


def test_datasets_go_on_from_any_step_and_share_batches():
    made = sampler()
    dataset = training_batches(made, start_step=9).as_numpy_iterator()
    for step in (9, 10):
        inputs, classes = next(dataset)
        expected = made.batch(step)
        for found, array in zip((inputs["token_ids"], inputs["padding_mask"], classes), expected, strict=True):
            np.testing.assert_array_equal(found, array)
    parts = [next(training_batches(made, 3, 2, part).as_numpy_iterator()) for part in (0, 1)]
    joined = np.concatenate([inputs["token_ids"] for inputs, _ in parts])
    np.testing.assert_array_equal(joined, made.batch(3)[0])


@pytest.mark.parametrize("width, pipelines", [(None, 1), (32, 1), (None, 2)])
def test_validation_takes_each_text_once(width, pipelines):
    seen, lengths = [], []
    for part in range(pipelines):
        dataset = validation_batches(ROWS, CLASSES, 8, width, pipelines, part)
        assert int(dataset.cardinality()) == 19
        for inputs, classes, weights in dataset.as_numpy_iterator():
            real = weights == 1
            assert inputs["token_ids"].shape[1] == (width or inputs["token_ids"].shape[1])
            assert (inputs["padding_mask"][~real] == 0).all()
            for row, mask, number in zip(inputs["token_ids"][real], inputs["padding_mask"][real], classes[real]):
                assert row[: mask.sum()].tolist() == ROWS[row[0]] and number == row[0] % 3
                seen.append(int(row[0]))
                lengths.append(mask.sum())
    assert sorted(seen) == list(range(150))
    assert lengths == sorted(lengths) or pipelines == 2


def test_bad_batch_size():
    with pytest.raises(UserError, match="batch_size is 0, expected at least 1"):
        sampler(batch_size=0)
