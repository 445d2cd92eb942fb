"""Bad requests to a loaded SavedModel: one sentence each, and the next good request gets its answer."""

import math
import re

import numpy as np
import pytest
import tensorflow as tf

from tests.export.served_model import strings

WINDOW = 64
CACHE = [f"past_key_values_{i}_{part}" for i in range(2) for part in ("key", "value")]
NO_CACHE = {name: np.zeros((1, 2, 0, 16)) for name in CACHE}


def of_text(message, **inputs):
    """A bad request to `generate_text`, its second row if one is all right."""
    return pytest.param("generate_text", {"text": ["x", "y"], **inputs}, message, id=f"generate_text-{inputs}")


def of_tokens(signature, token_ids, message, mask=None, **inputs):
    mask = np.ones_like(token_ids) if mask is None else mask
    inputs = {"token_ids": token_ids, "padding_mask": mask, **inputs}
    return pytest.param(signature, inputs, message, id=f"{signature}-{message}")


SETTINGS = [
    of_text(f"{name} of row 1 is {shown}, expected {expected}", **{name: [good, bad]})
    for name, good, expected, bads in (
        ("max_new_tokens", 1, "at least 1", {"0": 0, "-3": -3, "-2147483648": -(2**31)}),
        (
            "temperature",
            1.0,
            "a finite number from 0",
            {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "-0.5": -0.5},
        ),
        ("top_k", 0, "0 (all tokens) or more", {"-1": -1}),
        ("top_p", 1.0, "above 0 and at most 1", {"0": 0.0, "1.5": 1.5, "nan": math.nan, "-0.1": -0.1}),
        (
            "repetition_penalty",
            1.0,
            "a finite number above 0",
            {"0": 0.0, "nan": math.nan, "inf": math.inf, "-1": -1.0},
        ),
    )
    for shown, bad in bads.items()
]
ROW_COUNTS = [
    of_text(
        "the rows are text 2, max_new_tokens 2, temperature 1, top_k 2, top_p 2, repetition_penalty 2, seed 2, "
        "expected as many of each, and at least 1",
        temperature=[1.0],
    ),
    of_text(
        "the rows are text 2, max_new_tokens 2, temperature 2, top_k 2, top_p 2, repetition_penalty 2, seed 3, "
        "expected as many of each, and at least 1",
        seed=[1, 2, 3],
    ),
    of_text(
        "the rows are text 0, max_new_tokens 0, temperature 0, top_k 0, top_p 0, repetition_penalty 0, seed 0, "
        "expected as many of each, and at least 1",
        text=[],
    ),
    *(
        pytest.param(name, {"text": []}, "the rows are text 0, expected as many of each, and at least 1", id=name)
        for name in ("score", "embed")
    ),
    of_tokens(
        "continue_tokens",
        [[1], [2]],
        "the rows are token_ids 2, padding_mask 2, stop_token_ids 1, max_new_tokens 2, temperature 2, top_k 2, "
        "top_p 2, repetition_penalty 2, seed 2, first_index 2, expected as many of each, and at least 1",
        stop_token_ids=[[-1]],
    ),
    of_tokens(
        "score_tokens",
        [[1], [2]],
        "the rows are token_ids 2, padding_mask 1, expected as many of each, and at least 1",
        mask=[[1]],
    ),
]
TOKEN_IDS = [
    of_tokens(name, [[1, 2], [399, bad]], f"token_ids of row 1 is {bad}, expected 0 to 399")
    for name in ("generate", "score_tokens", "prefill")
    for bad in (400, -1, 2**31 - 1)
]
LENGTHS = [
    *(
        of_tokens(
            name,
            [[1] * (WINDOW + 2)] * 2,
            f"the number of tokens of row 1 is 65, expected at most {WINDOW}, the window",
            mask=[[0] * 2 + [1] * WINDOW, [0] + [1] * (WINDOW + 1)],
        )
        for name in ("generate", "score_tokens", "prefill")
    ),
    *(
        of_tokens(
            name,
            [[1, 2], [3, 4]],
            "the number of tokens of row 1 is 0, expected at least 1",
            mask=[[0, 1], [0, 0]],
        )
        for name in ("generate", "score_tokens", "prefill")
    ),
    *(
        of_tokens(name, np.zeros((1, 0)), "the number of tokens of row 0 is 0, expected at least 1")
        for name in ("generate", "score_tokens", "prefill")
    ),
    *(
        pytest.param(
            name,
            {"text": ["x", "! " * WINDOW]},
            f"the number of tokens of row 1 is {2 * WINDOW}, expected at most {WINDOW}, the window",
            id=f"{name}-long",
        )
        for name in ("generate_text", "serving_default", "score", "embed")
    ),
]
MASKS = [
    of_tokens(
        name,
        [[1, 2, 3], [4, 5, 6]],
        "the columns are token_ids 3, padding_mask 1, expected as many of each",
        mask=[[1], [1]],
    )
    for name in ("generate", "score_tokens", "prefill")
]
OTHERS = [
    pytest.param(
        "logits", {"token_ids": [[1, 400]]}, "token_ids of row 0 is 400, expected 0 to 399", id="logits-outside"
    ),
    pytest.param(
        "logits",
        {"token_ids": [[1] * (WINDOW + 1)]},
        f"the number of tokens of row 0 is 65, expected at most {WINDOW}, the window",
        id="logits-long",
    ),
    pytest.param(
        "logits",
        {"token_ids": np.zeros((0, 3))},
        "the rows are token_ids 0, expected as many of each, and at least 1",
        id="logits-no rows",
    ),
    of_tokens(
        "generate", [[1, 2, 3]], "the columns are token_ids 3, padding_mask 2, expected as many of each", [[1, 1]]
    ),
    pytest.param(
        "decode_step",
        {"input_ids": [[1, 2]], "attention_mask": [[1, 1]], "position_ids": [[63, 64]], **NO_CACHE},
        "position_ids of row 0 is 64, expected 0 to 63, for the window has 64",
        id="decode_step-past the window",
    ),
    pytest.param(
        "decode_step",
        {"input_ids": [[1]], "attention_mask": [[1]], "position_ids": [[-1]], **NO_CACHE},
        "position_ids of row 0 is -1, expected 0 to 63, for the window has 64",
        id="decode_step-before the window",
    ),
    pytest.param(
        "decode_step",
        {"input_ids": [[400]], "attention_mask": [[1]], "position_ids": [[0]], **NO_CACHE},
        "input_ids of row 0 is 400, expected 0 to 399",
        id="decode_step-outside",
    ),
]


@pytest.fixture(scope="module")
def good(served):
    """A good request of each signature's family, and its answer before anything went wrong."""
    requests = {
        "generate_text": {"text": ["import os", "x"], "temperature": [0.0, 1.0]},
        "serving_default": {"text": ["import os"]},
        "score": {"text": ["import os"]},
        "embed": {"text": ["import os"]},
        "generate": {"token_ids": [[1, 2, 3]], "padding_mask": [[1, 1, 1]]},
        "score_tokens": {"token_ids": [[1, 2, 3]], "padding_mask": [[1, 1, 1]]},
        "prefill": {"token_ids": [[1, 2, 3]], "padding_mask": [[1, 1, 1]]},
        "logits": {"token_ids": [[1, 2, 3]]},
        "continue_tokens": {"token_ids": [[1, 2, 3]], "padding_mask": [[1, 1, 1]], "stop_token_ids": [[-1]]},
        "decode_step": {"input_ids": [[1]], "attention_mask": [[1]], "position_ids": [[0]], **NO_CACHE},
    }
    return {name: (request, served(name, **request)) for name, request in requests.items()}


def refuse(served, signature, inputs):
    """The sentence with which a request is refused."""
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        served(signature, **inputs)
    (sentence,) = re.findall(r"assertion failed: \[(.*)\]", error.value.message)
    return sentence


@pytest.mark.parametrize("signature, inputs, sentence", [*SETTINGS, *ROW_COUNTS, *TOKEN_IDS, *LENGTHS, *MASKS, *OTHERS])
def test_a_bad_request_gets_a_sentence_and_the_next_one_its_answer(served, good, signature, inputs, sentence):
    assert refuse(served, signature, inputs) == sentence
    request, expected = good[signature]
    found = served(signature, **request)
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), value)


def test_settings_are_checked_in_every_signature_that_takes_them(served, good):
    for signature in ("generate", "continue_tokens"):
        request, _ = good[signature]
        for param in SETTINGS:
            _, inputs, sentence = param.values
            ((name, (_, value)),) = ((name, values) for name, values in inputs.items() if name != "text")
            found = refuse(served, signature, {**request, name: [value]})
            assert found == sentence.replace("of row 1", "of row 0")


def test_continue_tokens_does_not_go_past_the_window(served):
    """Its callers cut contexts; whoever does not gets no text from positions that there are not."""
    inputs = {
        "token_ids": [[1] * WINDOW] * 2,
        "padding_mask": [[0] * 9 + [1] * (WINDOW - 9), [0] * 10 + [1] * (WINDOW - 10)],
        "stop_token_ids": [[-1]] * 2,
    }
    assert served("continue_tokens", **inputs, max_new_tokens=10).num_new_tokens.tolist() == [10, 10]
    assert refuse(served, "continue_tokens", {**inputs, "max_new_tokens": 11}) == (
        "max_new_tokens of row 0 is 11, expected no more than the window of 64 has room for"
    )


STEPS = [
    (
        {"attention_mask": [[1, 1, 1]]},
        "the columns are attention_mask 3, the cache and the new tokens 1, expected as many",
    ),
    (
        {"input_ids": [[1, 2]], "attention_mask": [[1, 1]]},
        "the columns are input_ids 2, position_ids 1, expected as many",
    ),
    (
        {"input_ids": [[]], "position_ids": [[]]},
        "the columns are input_ids 0, position_ids 0, expected as many of each",
    ),
    ({"input_ids": [[1], [2]]}, "the rows are input_ids 2, attention_mask 1, position_ids 1, past_key_values_0_key 1"),
]


@pytest.mark.parametrize("inputs, sentence", STEPS)
def test_a_step_whose_inputs_do_not_belong_together(served, good, inputs, sentence):
    request, expected = good["decode_step"]
    assert sentence in refuse(served, "decode_step", {**request, **inputs})
    np.testing.assert_array_equal(served("decode_step", **request).logits, expected.logits)


def test_scores_of_rows_wider_than_the_window(served):
    tokens, mask = [[1] * 65], [[0] * 62 + [1] * 3]
    sentence = refuse(served, "score_tokens", {"token_ids": tokens, "padding_mask": mask})
    assert sentence == "the width of row 0 is 65, expected at most 64, the window"


# === A tokenizer of characters, without an end token ===


@pytest.mark.parametrize("signature", ["generate_text", "serving_default", "score", "embed"])
def test_an_unknown_character(served_characters, signature):
    expected = "the character q (U+0071) is not in the vocabulary; expected text made of the 6 characters"
    before = vars(served_characters(signature, text=["a", "b"]))
    assert refuse(served_characters, signature, {"text": ["ab", "aqb"]}).startswith(expected)
    assert "U+FFFD is not in the vocabulary" in refuse(served_characters, signature, {"text": [b"a\xff"]})
    for name, value in vars(served_characters(signature, text=["a", "b"])).items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("signature", ["generate_text", "serving_default", "score", "embed"])
def test_an_empty_text_where_nothing_stands_for_it(served_characters, signature):
    sentence = "the number of tokens of row {} is 0, expected at least 1"
    assert refuse(served_characters, signature, {"text": ["a", ""]}) == sentence.format(1)
    assert refuse(served_characters, signature, {"text": [""]}) == sentence.format(0)
    assert strings(served_characters("generate_text", text=["a"], max_new_tokens=1).text)[0][0] == "a"
