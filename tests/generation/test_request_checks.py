import math

import numpy as np
import pytest
import tensorflow as tf

from tfgpt.generation.request_checks import require, require_rows, require_settings, require_tokens

GOOD = {
    "max_new_tokens": tf.constant([1, 2**31 - 1]),
    "temperature": tf.constant([0.0, 100.0]),
    "top_k": tf.constant([0, 2**31 - 1]),
    "top_p": tf.constant([1e-30, 1.0]),
    "repetition_penalty": tf.constant([1e-30, 1e30]),
    "seed": tf.constant([-(2**63), 2**63 - 1], tf.int64),
}


@pytest.fixture(params=["eager", "graph"])
def in_mode(request):
    """Runs a function as it is, or as a `tf.function`, of which a server's graph is made."""
    return tf.function if request.param == "graph" else lambda function: function


@pytest.fixture
def refuse(in_mode):
    """The sentence with which a function refuses its arguments."""

    def sentence(function, *arguments, **inputs):
        with pytest.raises(tf.errors.InvalidArgumentError) as error:
            in_mode(function)(*arguments, **inputs)
        assert error.value.message.count("assertion failed: [") <= 1
        return error.value.message

    return sentence


# === require ===


def test_values_that_are_as_they_should_be_come_back(in_mode):
    values = tf.constant([[1, 2], [3, 4]])
    np.testing.assert_array_equal(in_mode(lambda v: require("n", v, v > 0, "above 0"))(values), values)


@pytest.mark.parametrize(
    "values, shown",
    [
        ([1, 0, -7], "n of row 1 is 0, expected above 0"),
        ([[1, 2], [3, -4], [-5, 6]], "n of row 1 is -4, expected above 0"),
        ([1.0, -0.1], "n of row 1 is -0.1, expected above 0"),
        ([math.nan], "n of row 0 is nan, expected above 0"),
        ([2.0, 1.0, -math.inf], "n of row 2 is -inf, expected above 0"),
    ],
)
def test_the_first_bad_value_is_named_with_its_row(refuse, values, shown):
    assert shown in refuse(lambda v: require("n", v, v > 0, "above 0"), tf.constant(values))


def test_one_function_refuses_and_then_accepts():
    function = tf.function(lambda v: require("n", v, v > 0, "above 0"), input_signature=[tf.TensorSpec([None])])
    for _ in range(2):
        with pytest.raises(tf.errors.InvalidArgumentError, match="n of row 0 is -1, expected above 0"):
            function(tf.constant([-1.0]))
        assert function(tf.constant([2.0])).numpy() == [2]


# === require_rows ===


def test_inputs_of_as_many_rows_come_back(in_mode):
    inputs = {"a": tf.constant([1, 2]), "b": tf.constant([[1.0], [2.0]]), "c": tf.constant(["x", "y"])}
    found = in_mode(lambda **tensors: require_rows(**tensors))(**inputs)
    for tensor, expected in zip(found, inputs.values(), strict=True):
        np.testing.assert_array_equal(tensor, expected)


@pytest.mark.parametrize(
    "rows, counts",
    [((2, 3), "a 2, b 3"), ((3, 2), "a 3, b 2"), ((1, 2), "a 1, b 2"), ((0, 1), "a 0, b 1"), ((0, 0), "a 0, b 0")],
)
def test_counts_of_rows_that_differ(refuse, rows, counts):
    message = refuse(lambda **t: require_rows(**t), a=tf.zeros([rows[0]]), b=tf.zeros([rows[1], 4]))
    assert f"the rows are {counts}, expected as many of each, and at least 1" in message


# === require_tokens ===


def checked_tokens(token_ids, padding_mask):
    return require_tokens(token_ids, padding_mask, vocabulary_size=10, window=3)


def test_tokens_come_back_with_zeros_and_ones(in_mode):
    token_ids, mask = in_mode(checked_tokens)(
        tf.constant([[-1, 99, 9, 0], [1, 2, 3, 10]]), tf.constant([[0, 0, 5, -1], [1, 1, 1, 0]])
    )
    assert token_ids.numpy().tolist() == [[0, 0, 9, 0], [1, 2, 3, 0]]
    assert mask.numpy().tolist() == [[0, 0, 1, 1], [1, 1, 1, 0]]


@pytest.mark.parametrize(
    "token_ids, mask, sentence",
    [
        ([[1], [10]], [[1], [1]], "token_ids of row 1 is 10, expected 0 to 9"),
        ([[1, -1]], [[1, 1]], "token_ids of row 0 is -1, expected 0 to 9"),
        ([[1, 2], [1, 2]], [[1, 0], [0, 0]], "the number of tokens of row 1 is 0, expected at least 1"),
        ([[1, 2, 3, 4]], [[1, 1, 1, 1]], "the number of tokens of row 0 is 4, expected at most 3, the window"),
        ([[1, 2]], [[1]], "the columns are token_ids 2, padding_mask 1, expected as many of each"),
        ([[1]], [[1, 1]], "the columns are token_ids 1, padding_mask 2, expected as many of each"),
    ],
)
def test_tokens_that_are_refused(refuse, token_ids, mask, sentence):
    assert sentence in refuse(checked_tokens, tf.constant(token_ids), tf.constant(mask))


def test_no_columns_are_no_tokens(refuse):
    message = refuse(checked_tokens, tf.zeros([2, 0], tf.int32), tf.zeros([2, 0], tf.int32))
    assert "the number of tokens of row 0 is 0, expected at least 1" in message


# === require_settings ===


def test_settings_within_their_ranges_come_back(in_mode):
    found = in_mode(lambda **settings: require_settings(settings))(**GOOD)
    assert found.keys() == GOOD.keys()
    for name, values in GOOD.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("max_new_tokens", 0, "is 0, expected at least 1"),
        ("temperature", math.nan, "is nan, expected a finite number from 0"),
        ("temperature", math.inf, "is inf, expected a finite number from 0"),
        ("temperature", -1e-3, "is -0.001, expected a finite number from 0"),
        ("top_k", -1, "is -1, expected 0 (all tokens) or more"),
        ("top_p", 0.0, "is 0, expected above 0 and at most 1"),
        ("top_p", 1.0001, "is 1.0001, expected above 0 and at most 1"),
        ("top_p", math.nan, "is nan, expected above 0 and at most 1"),
        ("repetition_penalty", 0.0, "is 0, expected a finite number above 0"),
        ("repetition_penalty", math.inf, "is inf, expected a finite number above 0"),
        ("repetition_penalty", math.nan, "is nan, expected a finite number above 0"),
    ],
)
def test_a_setting_out_of_its_range(refuse, name, value, expected):
    settings = {**GOOD, name: tf.constant([GOOD[name][0].numpy(), value], GOOD[name].dtype)}
    assert f"{name} of row 1 {expected}" in refuse(lambda **s: require_settings(s), **settings)
