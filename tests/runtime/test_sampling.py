import numpy as np
import pytest
import tensorflow as tf

from tfgpt.generation import GenerationSettings
from tfgpt.generation import sampling as witness
from tfgpt.runtime.sampling import choose_tokens, largest, sample

SETTINGS = [
    {"temperature": 0.0},
    {"temperature": 0.0, "top_k": 3, "top_p": 0.5},
    {"temperature": 1.0},
    {"temperature": 0.05},
    {"temperature": 30.0},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.3, "top_k": 7},
    {"temperature": 1.0, "top_k": 96},
    {"temperature": 1.0, "top_k": 97},
    {"temperature": 1.0, "top_k": 5000},
    {"temperature": 2.0, "top_p": 1e-30},
    {"temperature": 1.0, "top_p": 0.37},
    {"temperature": 5.0, "top_p": 0.93},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.83},
    {"temperature": 9.0, "top_k": 60, "top_p": 0.41},
]


def tensorflows_choice(logits, seen, settings, numbers):
    rows = len(logits)
    per_row = {
        "temperature": tf.fill([rows], np.float32(settings.temperature)),
        "top_k": tf.fill([rows], settings.top_k),
        "top_p": tf.fill([rows], np.float32(settings.top_p)),
        "repetition_penalty": tf.fill([rows], np.float32(settings.repetition_penalty)),
    }
    seen = np.zeros(logits.shape, bool) if seen is None else seen
    return witness.choose_tokens(tf.constant(logits), seen, per_row, lambda: tf.constant(numbers)).numpy()


def random_logits(kind, rng, rows=400, vocabulary_size=97):
    shape = (rows, vocabulary_size)
    return {
        "distinct": lambda: rng.normal(0, 2, shape),
        "all negative": lambda: rng.normal(-90, 3, shape),
        "many ties": lambda: rng.integers(-3, 4, shape),
        "impossible tokens": lambda: np.where(rng.random(shape) < 0.7, -np.inf, rng.integers(-2, 3, shape)),
        "all equal": lambda: np.zeros(shape),
    }[kind]().astype(np.float32)


@pytest.mark.parametrize("kind", ["distinct", "all negative", "many ties", "impossible tokens", "all equal"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_tokens_are_tensorflows(settings, kind):
    rng = np.random.default_rng(5)
    logits, numbers = random_logits(kind, rng), rng.random(400).astype(np.float32)
    settings = GenerationSettings(**settings)
    found = choose_tokens(logits, None, settings, lambda: numbers)
    assert (found.shape, found.dtype) == ((400,), np.int64)
    np.testing.assert_array_equal(found, tensorflows_choice(logits, None, settings, numbers))


@pytest.mark.parametrize("settings", SETTINGS[::3], ids=str)
@pytest.mark.parametrize("penalty", [1.3, 0.6, 5.0])
def test_tokens_with_a_repetition_penalty_are_tensorflows(settings, penalty):
    rng = np.random.default_rng(6)
    logits, numbers = random_logits("distinct", rng), rng.random(400).astype(np.float32)
    seen = rng.random(logits.shape) < 0.4
    penalized = GenerationSettings(repetition_penalty=penalty, **settings)
    found = choose_tokens(logits, seen, penalized, lambda: numbers)
    np.testing.assert_array_equal(found, tensorflows_choice(logits, seen, penalized, numbers))
    assert (found != choose_tokens(logits, None, GenerationSettings(**settings), lambda: numbers)).any()


@pytest.mark.parametrize("settings", [{"top_k": 50, "top_p": 0.9}, {"top_p": 0.9}], ids=str)
def test_tokens_of_gpt2s_vocabulary_are_tensorflows(settings):
    """Rounded to 1/8, so that hundreds of tokens are equal wherever top_k cuts."""
    rng = np.random.default_rng(7)
    logits = (rng.normal(-40, 3, (16, 50257)) * 8).round().astype(np.float32) / 8
    numbers = rng.random(16).astype(np.float32)
    settings = GenerationSettings(temperature=1.0, **settings)
    found = choose_tokens(logits, None, settings, lambda: numbers)
    np.testing.assert_array_equal(found, tensorflows_choice(logits, None, settings, numbers))
    assert len(set(found.tolist())) > 8


def test_the_cases_are_not_all_alike():
    """Sampled tokens are many, and settings make a difference, or the comparisons above would compare little."""
    rng = np.random.default_rng(5)
    logits, numbers = random_logits("distinct", rng), rng.random(400).astype(np.float32)
    chosen = [choose_tokens(logits, None, GenerationSettings(**settings), lambda: numbers) for settings in SETTINGS]
    assert len({tuple(tokens) for tokens in chosen}) >= 9
    assert len(set(chosen[2].tolist())) > 80


def test_a_number_beyond_the_last_token_takes_the_last_that_was_kept():
    logits = np.full((4, 20), -500, np.float32)
    logits[:3, :5] = np.log([0.05, 0.4, 0.1, 0.2, 0.25])
    logits[3, 2:14] = 0  # 12 times 1/12 is less than 1 in float32, and yet there is no other token
    top_k, top_p, numbers = [5, 3, 0, 0], np.array([1.0, 1.0, 0.6, 1.0], np.float32), np.ones(4, np.float32)
    found = [sample(logits[i : i + 1], top_k[i], top_p[i], numbers[i : i + 1])[0] for i in range(4)]
    assert found == [0, 3, 4, 13]
    expected = witness.sample(tf.constant(logits), tf.constant(top_k), tf.constant(top_p), tf.constant(numbers))
    assert found == expected.numpy().tolist()


def test_greedy_rows_draw_no_number():
    def no_number():
        raise AssertionError("a number was drawn")

    logits = np.array([[0, 2, 2], [1, 0, 1]], np.float32)
    settings = GenerationSettings(top_k=2, top_p=0.5)
    assert choose_tokens(logits, None, settings, no_number).tolist() == [1, 0]
    # A temperature that float32 takes for zero is zero, as it is in TensorFlow.
    assert choose_tokens(logits, None, GenerationSettings(temperature=1e-50), no_number).tolist() == [1, 0]


def test_the_inputs_stay_as_they_are():
    rng = np.random.default_rng(8)
    logits = random_logits("distinct", rng, rows=3)
    before, seen = logits.copy(), rng.random(logits.shape) < 0.5
    settings = GenerationSettings(temperature=1.0, top_k=5, top_p=0.8, repetition_penalty=2.0)
    choose_tokens(logits, seen, settings, lambda: np.zeros(3, np.float32))
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("count", [1, 2, 10, 96, 97])
@pytest.mark.parametrize("kind", ["distinct", "many ties", "impossible tokens", "all equal"])
def test_the_largest_are_tensorflows_top_k(kind, count):
    values = random_logits(kind, np.random.default_rng(9), rows=50)
    expected_values, expected_indices = tf.math.top_k(values, count)
    found_values, found_indices = largest(values, count)
    np.testing.assert_array_equal(found_indices, expected_indices)
    np.testing.assert_array_equal(found_values, expected_values)


def test_settings_that_make_logits_infinite():
    """Still the likeliest token, here and in TensorFlow."""
    settings = GenerationSettings(temperature=1e-30, repetition_penalty=1e-35)
    logits = np.array([[1.0, -2.0, 3.0], [-1.0, -5.0, -2.0]], np.float32)
    seen = np.array([[False, True, True], [False, True, False]])
    numbers = np.array([0.5, 0.0], np.float32)
    ours, theirs = (
        choose_tokens(logits, seen, settings, lambda: numbers),
        tensorflows_choice(logits, seen, settings, numbers),
    )
    assert ours.tolist() == theirs.tolist()
    assert set(ours.tolist()) <= {0, 1, 2}
