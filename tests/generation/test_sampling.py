import numpy as np
import pytest
import tensorflow as tf

from tfgpt.generation.random_numbers import uniform
from tfgpt.generation.sampling import choose_tokens, penalize_repetition, sample

LOGITS = np.log([0.05, 0.4, 0.1, 0.2, 0.25]).astype(np.float32)
DRAWS = 20_000
# The 0.999 quantile of chi-square by degrees of freedom; seeds are fixed, so a test passes always or never.
CHI_SQUARE = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47}


def draw(logits=LOGITS, temperature=1.0, top_k=0, top_p=1.0, rows=DRAWS, seed=1):
    settings = {
        "temperature": tf.fill([rows], np.float32(temperature)),
        "top_k": tf.fill([rows], top_k),
        "top_p": tf.fill([rows], np.float32(top_p)),
        "repetition_penalty": tf.ones([rows]),
    }
    seeds = tf.range(rows, dtype=tf.int64) + seed * rows
    seen = tf.zeros([rows, len(logits)], tf.bool)
    logits = tf.tile(tf.constant(logits)[None], [rows, 1])
    return choose_tokens(logits, seen, settings, lambda: uniform(seeds, tf.zeros([rows], tf.int32))).numpy()


def assert_distributed_as(tokens, probabilities):
    probabilities = np.array(probabilities) / np.sum(probabilities)
    observed = np.bincount(tokens, minlength=len(probabilities))
    possible = probabilities > 0
    assert observed[~possible].sum() == 0
    expected = len(tokens) * probabilities[possible]
    statistic = ((observed[possible] - expected) ** 2 / expected).sum()
    assert statistic < CHI_SQUARE[possible.sum() - 1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_temperature(temperature):
    assert_distributed_as(draw(temperature=temperature), np.exp(LOGITS / temperature))


@pytest.mark.parametrize(
    "top_k, probabilities",
    [
        (0, [0.05, 0.4, 0.1, 0.2, 0.25]),
        (2, [0, 0.4, 0, 0, 0.25]),
        (3, [0, 0.4, 0, 0.2, 0.25]),
        (5, [0.05, 0.4, 0.1, 0.2, 0.25]),
        (99, [0.05, 0.4, 0.1, 0.2, 0.25]),
    ],
)
def test_top_k(top_k, probabilities):
    assert_distributed_as(draw(top_k=top_k), probabilities)


@pytest.mark.parametrize(
    "top_p, probabilities",
    [
        (0.45, [0, 0.4, 0, 0, 0.25]),
        (0.64, [0, 0.4, 0, 0, 0.25]),
        (0.66, [0, 0.4, 0, 0.2, 0.25]),
        (0.84, [0, 0.4, 0, 0.2, 0.25]),
        (0.9, [0, 0.4, 0.1, 0.2, 0.25]),
        (0.96, [0.05, 0.4, 0.1, 0.2, 0.25]),
        (1.0, [0.05, 0.4, 0.1, 0.2, 0.25]),
    ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, probabilities):
    assert_distributed_as(draw(top_p=top_p), probabilities)


def test_top_p_is_of_what_top_k_left_and_of_the_logits_after_temperature():
    # Of the two likeliest 0.4 / 0.65 = 0.62 is enough for 0.6, though it is not of all.
    assert (draw(top_k=2, top_p=0.6) == 1).all()
    assert_distributed_as(draw(top_k=2, top_p=0.63), [0, 0.4, 0, 0, 0.25])
    # At temperature 0.5 the likeliest has 0.16 / 0.275 = 0.58.
    assert (draw(temperature=0.5, top_p=0.55) == 1).all()
    assert len(set(draw(temperature=0.5, top_p=0.6))) == 2


def test_the_smallest_settings_leave_the_likeliest_token():
    assert (draw(top_k=1) == 1).all()
    assert (draw(top_p=1e-30) == 1).all()
    assert (draw(temperature=1e-4) == 1).all()


def test_where_the_number_falls_in_the_cumulative_distribution():
    """Likeliest first: 1 up to 0.4, 4 up to 0.65, 3 up to 0.85, 2 up to 0.95, then 0."""
    numbers = [0.0, 0.39, 0.41, 0.64, 0.66, 0.84, 0.86, 0.94, 0.96, 1 - 2**-24]
    rows = len(numbers)
    logits = tf.tile(tf.constant(LOGITS)[None], [rows, 1])
    tokens = sample(logits, tf.zeros([rows], tf.int32), tf.ones([rows]), tf.constant(numbers, tf.float32))
    assert tokens.numpy().tolist() == [1, 1, 4, 4, 3, 3, 2, 2, 0, 0]


def test_the_last_number_takes_no_token_that_was_cut():
    rows = 5
    logits = tf.random.stateless_normal([rows, 1000], [1, 2]) * 3
    top_k = tf.constant([1, 3, 0, 7, 500])
    top_p = tf.constant([1.0, 1.0, 0.3, 0.9, 0.999])
    tokens = sample(logits, top_k, top_p, tf.fill([rows], np.float32(1 - 2**-24))).numpy()
    for row in range(rows):
        order = np.argsort(-logits[row].numpy(), kind="stable")[: int(top_k[row]) or None]
        probabilities = np.exp(logits[row].numpy()[order].astype(np.float64))
        before = np.cumsum(probabilities / probabilities.sum()) - probabilities / probabilities.sum()
        assert tokens[row] in order[before < float(top_p[row]) + 1e-6]


def test_equal_logits_at_the_edge_of_top_k_go_to_the_lower_id():
    assert set(draw(np.zeros(5, np.float32), top_k=2, rows=200)) == {0, 1}
    assert set(draw(np.zeros(5, np.float32), temperature=0.0, rows=3)) == {0}


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits_of_seen_tokens():
    logits = np.array([[2.0, 2.0, -2.0, -2.0, 0.0], [2.0, 2.0, -2.0, -2.0, 0.0]], np.float32)
    seen = np.array([[True, False, True, False, True], [False, True, False, False, False]])
    penalized = penalize_repetition(logits, seen, tf.constant([4.0, 0.5]))
    np.testing.assert_array_equal(penalized, [[0.5, 2, -8, -2, 0], [2, 4, -2, -2, 0]])


def test_every_setting_is_a_rows_own():
    """One batch in which each row has another setting gives each row what it gives with that setting alone."""
    rows = 6
    settings = {
        "temperature": np.array([0.0, 1.0, 3.0, 1.0, 1.0, 0.0], np.float32),
        "top_k": np.array([0, 2, 0, 0, 3, 0], np.int32),
        "top_p": np.array([1.0, 1.0, 0.9, 0.5, 0.7, 1.0], np.float32),
        "repetition_penalty": np.array([1.0, 1.0, 1.0, 2.0, 1.0, 5.0], np.float32),
    }
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 2, (rows, 40)).astype(np.float32)
    seen = rng.random((rows, 40)) < 0.5
    seen[5] = np.arange(40) == logits[5].argmax()
    numbers = rng.random(rows).astype(np.float32)

    def choose(chosen):
        picked = {name: tf.constant(values[chosen]) for name, values in settings.items()}
        return choose_tokens(tf.constant(logits[chosen]), seen[chosen], picked, lambda: tf.constant(numbers[chosen]))

    together = choose(slice(None)).numpy()
    np.testing.assert_array_equal(together, [choose(slice(i, i + 1)).numpy()[0] for i in range(rows)])
    assert together[0] == logits[0].argmax()
    assert together[5] != logits[5].argmax()


def test_greedy_rows_draw_no_number():
    def no_number():
        raise AssertionError("a number was drawn")

    settings = {
        "temperature": tf.zeros([1]),
        "top_k": tf.constant([3]),
        "top_p": tf.constant([0.5]),
        "repetition_penalty": tf.ones([1]),
    }
    assert choose_tokens(tf.constant(LOGITS[None]), tf.zeros([1, 5], tf.bool), settings, no_number).numpy() == [1]
