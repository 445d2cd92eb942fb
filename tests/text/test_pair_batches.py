import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfgpt.errors import UserError
from tfgpt.text import PairSampler, SentencePairs, encode_pairs, sequential_pairs, training_pairs
from tfgpt.text.pair_batches import bucket_widths
from tfgpt.text.pair_pipelines import sequential_batches

LENGTHS = np.random.default_rng(0).geometric(0.1, 500) + 2


class Words:
    """A tokenizer of numbers."""

    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def encode_batch(self, texts):
        return [[int(word) for word in text.split()] for text in texts]


PAIRS = SentencePairs(["5 6 7", "8", "9 9 9 9 9 9"], ["3", "4 4 4 4", "5 5"], "a.txt", "b.txt")


# === Encoding ===


def test_a_batch_has_both_sides_with_their_special_tokens():
    pairs = encode_pairs(PAIRS, Words(), window=8)
    assert len(pairs) == 3 and pairs.lengths.tolist() == [4, 5, 7] and pairs.num_target_tokens == 10
    inputs, following, weights = pairs.batch(np.array([1, 0, -1]), width=6)
    assert inputs["source_ids"].tolist() == [[8, 2, 0, 0, 0, 0], [5, 6, 7, 2, 0, 0], [2, 0, 0, 0, 0, 0]]
    assert inputs["source_padding_mask"].tolist() == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert inputs["target_ids"].tolist() == [[1, 4, 4, 4, 4, 0], [1, 3, 0, 0, 0, 0], [0] * 6]
    assert following.tolist() == [[4, 4, 4, 4, 2, 0], [3, 2, 0, 0, 0, 0], [0] * 6]
    assert weights.tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0], [0] * 6]


def test_a_long_sentence_is_refused_with_its_line_or_left_out():
    with pytest.raises(UserError) as error:
        encode_pairs(PAIRS, Words(), window=6)
    assert str(error.value) == (
        "a.txt, line 3: the sentence has 7 tokens with its end, expected at most the window's 6: give a larger "
        "max_length, or skip_long to leave it out"
    )
    pairs = encode_pairs(PAIRS, Words(), window=6, skip_long=True)
    assert len(pairs) == 2 and pairs.skipped == 1
    with pytest.raises(UserError, match=r"b\.txt, line 2: the sentence has 5 tokens"):
        encode_pairs(SentencePairs(["5", "5", "5"], PAIRS.targets, "a.txt", "b.txt"), Words(), window=4)
    with pytest.raises(UserError, match="no pair of sentences of less than 2 tokens"):
        encode_pairs(PAIRS, Words(), window=2, skip_long=True)


# === Widths ===


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_widths_need_least_padding(lengths, num_buckets):
    """Compared with every choice of widths."""
    found = bucket_widths(np.array(lengths), num_buckets, multiple=4)

    def padded(widths):
        return sum(min((w for w in widths if w >= length), default=np.inf) for length in lengths)

    candidates = {-(-length // 4) * 4 for length in lengths}
    choices = (c for n in range(1, num_buckets + 1) for c in itertools.combinations(sorted(candidates), n))
    assert padded(found) == min(map(padded, choices))
    assert found == sorted(set(found)) and len(found) <= num_buckets


# === Batches ===


def test_a_batch_is_a_function_of_seed_and_step():
    one, other, third = (PairSampler(LENGTHS, 256, seed) for seed in (0, 0, 1))
    for step in (57, 3, 0, 400):
        numbers, width = one.batch(step)
        np.testing.assert_array_equal(numbers, other.batch(step)[0])
        assert width == other.batch(step)[1]
    assert any(one.batch(step)[0].tolist() != third.batch(step)[0].tolist() for step in range(5))


def test_shapes_are_few_and_hold_their_pairs():
    sampler = PairSampler(LENGTHS, 256, seed=0, num_buckets=4)
    assert len(sampler.shapes) == 4
    for step in range(200):
        numbers, width = sampler.batch(step)
        assert (len(numbers), width) in sampler.shapes
        assert LENGTHS[numbers].max() <= width and len(numbers) * width <= 256
        narrower = [w for w in sampler.widths if w < width]
        assert not narrower or LENGTHS[numbers].min() > narrower[-1]


def test_every_pair_is_met_equally_often():
    sampler = PairSampler(LENGTHS, 256, seed=0)
    counts, step = np.zeros(len(LENGTHS), int), 0
    while sampler.epochs(step) < 20:
        np.add.at(counts, sampler.batch(step)[0], 1)
        step += 1
        assert step / sampler.batches_per_epoch == pytest.approx(sampler.epochs(step), abs=1.0)
    assert counts.min() >= 18 and counts.max() <= 21


def test_epochs_are_shuffled():
    """Neither widths nor pairs come in order, and the next epoch has another one."""
    sampler = PairSampler(LENGTHS, 256, seed=0)
    per_epoch = int(sampler.batches_per_epoch)
    first, second = ([sampler.batch(start + i) for i in range(per_epoch)] for start in (0, per_epoch))
    widths = [width for _, width in first]
    assert widths != sorted(widths) and widths != [width for _, width in second]
    assert {tuple(sorted(n)) for n, _ in first} != {tuple(sorted(n)) for n, _ in second}


def test_more_tokens_than_a_batch_is_refused():
    with pytest.raises(UserError, match="tokens_per_batch is 16, expected at least the .* tokens of the widest row"):
        PairSampler(LENGTHS, 16, seed=0)
    with pytest.raises(UserError, match="found the seed -1"):
        PairSampler(LENGTHS, 256, seed=-1)


# === Pipelines ===


def test_training_goes_on_from_a_step():
    pairs = encode_pairs(PAIRS, Words(), window=8)
    sampler = PairSampler(pairs.lengths, 16, seed=3)
    whole = [batch for batch, _ in zip(training_pairs(pairs, sampler), range(12))]
    rest = [batch for batch, _ in zip(training_pairs(pairs, sampler, start_step=5), range(7))]
    for (x, y, w), (x_again, y_again, w_again) in zip(whole[5:], rest, strict=True):
        for name in x:
            np.testing.assert_array_equal(x[name], x_again[name])
        np.testing.assert_array_equal(y, y_again)
        np.testing.assert_array_equal(w, w_again)


def test_validation_has_every_pair_once():
    batches = sequential_batches(LENGTHS, 256, num_buckets=3)
    numbers = np.concatenate([numbers for numbers, _ in batches])
    assert sorted(numbers[numbers >= 0].tolist()) == list(range(len(LENGTHS)))
    assert len({(len(numbers), width) for numbers, width in batches}) == 3
    pairs = encode_pairs(PAIRS, Words(), window=8)
    dataset = sequential_pairs(pairs, 16)
    assert int(dataset.cardinality()) == len(list(dataset))
    assert sum(float(weights.numpy().sum()) for _, _, weights in dataset) == pairs.num_target_tokens
