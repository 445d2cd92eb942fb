"""The signatures of token ids, against the Keras model."""

import numpy as np
import pytest
import tensorflow as tf

from tests.export.served_model import new_tokens

WINDOW = 64
PROMPTS = [[5, 6, 7], [250], [9, 8, 7, 6, 5, 4, 3, 2, 1], [399, 0, 399]]
SETTINGS = {
    "max_new_tokens": ("int32", [None]),
    "temperature": ("float32", [None]),
    "top_k": ("int32", [None]),
    "top_p": ("float32", [None]),
    "repetition_penalty": ("float32", [None]),
    "seed": ("int64", [None]),
}
TEXT = {"text": ("string", [None])}
TOKENS = {name: ("int32", [None, None]) for name in ("token_ids", "padding_mask")}
CACHE = [f"{i}_{part}" for i in range(2) for part in ("key", "value")]
CACHE_SHAPE = [None, 2, None, 16]
ROWS = {name: ("int32", [None]) for name in ("num_prompt_tokens", "num_new_tokens")}
GENERATED = {"token_ids": ("int32", [None, None]), "finish_reason": ("string", [None]), **ROWS}
SCORES = {
    "log_probabilities": ("float32", [None, None]),
    "log_probability": ("float32", [None]),
    "num_scored_tokens": ("int32", [None]),
}
LOGITS = {"logits": ("float32", [None, None, 400])}

# Signature → inputs and outputs.
SIGNATURES = {
    "serving_default": (TEXT, TEXT),
    "generate_text": (
        {**TEXT, **SETTINGS},
        {**{name: ("string", [None]) for name in ("text", "new_text", "new_text_bytes")}, **GENERATED},
    ),
    "generate": ({**TOKENS, **SETTINGS}, GENERATED),
    "continue_tokens": (
        {**TOKENS, **SETTINGS, "first_index": ("int32", [None]), "stop_token_ids": ("int32", [None, None])},
        {"token_ids": ("int32", [None, None]), "num_new_tokens": ("int32", [None])},
    ),
    "score": (TEXT, {"token_ids": ("int32", [None, None]), "num_tokens": ("int32", [None]), **SCORES}),
    "score_tokens": (TOKENS, SCORES),
    "logits": ({"token_ids": TOKENS["token_ids"]}, LOGITS),
    "embed": (
        TEXT,
        {
            "mean_pooled": ("float32", [None, 32]),
            "last_hidden_state": ("float32", [None, None, 32]),
            "num_tokens": ("int32", [None]),
        },
    ),
    "prefill": (
        TOKENS,
        {
            "logits": ("float32", [None, 400]),
            "padding_mask": ("int64", [None, None]),
            "position_ids": ("int64", [None, 1]),
            **{f"present_{part}": ("float32", CACHE_SHAPE) for part in CACHE},
        },
    ),
    "decode_step": (
        {
            **{name: ("int64", [None, None]) for name in ("input_ids", "attention_mask", "position_ids")},
            **{f"past_key_values_{part}": ("float32", CACHE_SHAPE) for part in CACHE},
        },
        {**LOGITS, **{f"present_{part}": ("float32", CACHE_SHAPE) for part in CACHE}},
    ),
}
OF_TEXT = {"generate_text", "score", "embed"}


def described(specifications):
    return {name: (spec.dtype.name, spec.shape.as_list()) for name, spec in specifications.items()}


def fits(found, expected):
    """Whether dtypes are those expected, and shapes too where the graph knows them."""
    return found.keys() == expected.keys() and all(
        dtype == expected[name][0]
        and len(shape) == len(expected[name][1])
        and all(None in pair or pair[0] == pair[1] for pair in zip(shape, expected[name][1], strict=True))
        for name, (dtype, shape) in found.items()
    )


# === Names, dtypes and shapes ===


def test_names_of_signatures(served, served_characters, served_tokens):
    assert set(served.signatures) == set(SIGNATURES)
    assert set(served_characters.signatures) == set(SIGNATURES)
    assert set(served_tokens.signatures) == set(SIGNATURES) - OF_TEXT


@pytest.mark.parametrize("name", SIGNATURES)
def test_names_dtypes_and_shapes(served, name):
    inputs, outputs = SIGNATURES[name]
    signature = served.signatures[name]
    assert described(signature.structured_input_signature[1]) == inputs
    assert fits(described(signature.structured_outputs), outputs)


def test_without_a_tokenizer_logits_are_the_default(served_tokens, token_model):
    token_ids = np.array([[1, 2, 3], [29, 0, 5]])
    found = served_tokens("serving_default", token_ids=token_ids).logits
    np.testing.assert_allclose(found, token_model(token_ids), atol=1e-4)


# === generate ===


def padded(prompts, place, length=12):
    """Rows of prompts whose padding stands on the left, on the right, or among the tokens; ids there are no tokens."""
    token_ids, mask = np.full((len(prompts), length), -7), np.zeros((len(prompts), length), int)
    rng = np.random.default_rng(3)
    for row, prompt in enumerate(prompts):
        places = {
            "left": np.arange(length - len(prompt), length),
            "right": np.arange(len(prompt)),
            "middle": np.sort(rng.choice(length, len(prompt), replace=False)),
        }[place]
        token_ids[row, places], mask[row, places] = prompt, 1
    return {"token_ids": token_ids, "padding_mask": mask}


def keras_continuations(model, prompts, count, **settings):
    return model.generate(prompts, max_new_tokens=count, return_prompt=False, **settings)


@pytest.mark.parametrize("place", ["left", "right", "middle"])
def test_generate_takes_padding_anywhere(served, bpe_model, place):
    outputs = served("generate", **padded(PROMPTS, place), max_new_tokens=20)
    assert new_tokens(outputs) == keras_continuations(bpe_model, PROMPTS, 20)
    assert outputs.num_prompt_tokens.tolist() == [len(prompt) for prompt in PROMPTS]


def test_a_masks_ones_may_be_any_number(served):
    ones = padded(PROMPTS, "left")
    others = {**ones, "padding_mask": ones["padding_mask"] * 5}
    assert new_tokens(served("generate", **others)) == new_tokens(served("generate", **ones))


@pytest.mark.parametrize("length", [WINDOW - 5, WINDOW - 1, WINDOW])
def test_generate_ends_where_the_window_is_full(served, bpe_model, length):
    """The last token of a full window has no position; beside it a short row goes on to its own end."""
    rng = np.random.default_rng(length)
    prompts = [rng.integers(0, 399, length).tolist(), [5, 6, 7]]
    room = WINDOW + 1 - length
    outputs = served("generate", **padded(prompts, "right", WINDOW), max_new_tokens=20)
    expected = [keras_continuations(bpe_model, prompts[:1], room)[0], keras_continuations(bpe_model, prompts, 20)[1]]
    assert [len(tokens) for tokens in expected] == [room, 20]
    assert new_tokens(outputs) == expected
    assert outputs.finish_reason.tolist() == [b"window", b"length"]
    assert outputs.num_prompt_tokens.tolist() == [length, 3]
    exact = served("generate", **padded(prompts, "right", WINDOW), max_new_tokens=[room, 1])
    assert exact.finish_reason.tolist() == [b"length", b"length"]
    assert exact.num_new_tokens.tolist() == [room, 1]


def test_outputs_are_as_wide_as_the_longest_row_and_padded_with_zeros(served):
    outputs = served("generate", **padded(PROMPTS, "left"), max_new_tokens=[3, 1, 5, 2])
    assert outputs.token_ids.shape == (4, 5)
    assert outputs.num_new_tokens.tolist() == [3, 1, 5, 2]
    for row, count in zip(outputs.token_ids, outputs.num_new_tokens, strict=True):
        assert not row[count:].any()


def test_stop_tokens_that_the_export_was_given(served_tokens, token_model):
    """Without a tokenizer, those of generation_config.json: 7."""
    prompts = [[i] for i in range(30)]
    whole = keras_continuations(token_model, prompts, 10)
    assert any(7 in tokens for tokens in whole)
    assert any(7 not in tokens for tokens in whole)
    outputs = served_tokens("generate", token_ids=prompts, padding_mask=np.ones((30, 1)), max_new_tokens=10)
    assert new_tokens(outputs) == [tokens[: tokens.index(7) + 1] if 7 in tokens else tokens for tokens in whole]
    assert outputs.finish_reason.tolist() == [b"stop" if 7 in tokens else b"length" for tokens in whole]


def test_a_stop_token_at_the_very_end_is_a_stop(served_tokens, token_model):
    prompt, whole = next(
        ([i], whole)
        for i in range(30)
        if 7 in (whole := keras_continuations(token_model, [[i]], 10)[0]) and whole.index(7) > 0
    )
    at = whole.index(7)
    for count, reason in ((at + 1, b"stop"), (at, b"length")):
        outputs = served_tokens("generate", token_ids=[prompt], padding_mask=[[1]], max_new_tokens=count)
        assert (outputs.num_new_tokens, outputs.finish_reason) == ([count], [reason])


# === continue_tokens ===


def test_continue_tokens_goes_on_where_the_random_stream_was_left(served, bpe_model):
    seeds = [3, 2**40, -5, 9]
    expected = keras_continuations(
        bpe_model, PROMPTS, 20, seed=tuple(seeds), temperature=1.0, top_p=0.95, stop_token_ids=()
    )
    request = {"temperature": 1.0, "top_p": 0.95, "seed": seeds, "stop_token_ids": [[-1]] * 4}
    first = served("continue_tokens", **padded(PROMPTS, "left"), **request, max_new_tokens=8)
    assert new_tokens(first) == [tokens[:8] for tokens in expected]
    contexts = [prompt + new[:8] for prompt, new in zip(PROMPTS, expected, strict=True)]
    then = served("continue_tokens", **padded(contexts, "left", 20), **request, max_new_tokens=12, first_index=8)
    assert new_tokens(then) == [tokens[8:] for tokens in expected]


# === score_tokens, logits ===


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("place", ["left", "right"])
def test_score_tokens(served, bpe_model, place):
    batch = padded(PROMPTS, place)
    outputs = served("score_tokens", **batch)
    assert outputs.num_scored_tokens.tolist() == [len(prompt) - 1 for prompt in PROMPTS]
    for row, prompt in enumerate(PROMPTS):
        probabilities = log_softmax(bpe_model(np.array([prompt])))[0]
        expected = np.zeros(len(prompt))
        expected[1:] = probabilities[np.arange(len(prompt) - 1), prompt[1:]]
        mask = batch["padding_mask"][row] == 1
        np.testing.assert_allclose(outputs.log_probabilities[row, mask], expected, atol=1e-4)
        assert not outputs.log_probabilities[row, ~mask].any()
        np.testing.assert_allclose(outputs.log_probability[row], expected.sum(), rtol=1e-5, atol=1e-5)


def test_the_scores_of_all_continuations_sum_to_one(served_tokens):
    token_ids = [[3, 4, i] for i in range(30)]
    outputs = served_tokens("score_tokens", token_ids=token_ids, padding_mask=np.ones((30, 3)))
    np.testing.assert_allclose(np.exp(outputs.log_probabilities[:, 2]).sum(), 1, rtol=1e-5)


def test_logits_are_unaffected_by_what_stands_behind(served, bpe_model):
    ragged = [prompt + [13 * row] * (9 - len(prompt)) for row, prompt in enumerate(PROMPTS)]
    outputs = served("logits", token_ids=ragged)
    assert outputs.logits.shape == (4, 9, 400)
    for row, prompt in enumerate(PROMPTS):
        expected = bpe_model(np.array([prompt]))[0]
        np.testing.assert_allclose(outputs.logits[row, : len(prompt)], expected, atol=1e-4)


def test_logits_of_a_full_window(served, bpe_model):
    token_ids = np.random.default_rng(1).integers(0, 400, (2, WINDOW))
    np.testing.assert_allclose(served("logits", token_ids=token_ids).logits, bpe_model(token_ids), atol=1e-4)


# === prefill and decode_step ===


@pytest.mark.parametrize("place", ["left", "right", "middle"])
def test_a_client_that_streams_gets_the_greedy_text(served, bpe_model, place):
    """As the README's client does: prefill, then a step for each token with the cache it was given."""
    state = served("prefill", **padded(PROMPTS, place))
    logits, mask, positions = state.logits, state.padding_mask, state.position_ids
    cache = [getattr(state, f"present_{part}") for part in CACHE]
    assert positions[:, 0].tolist() == [len(prompt) for prompt in PROMPTS]
    found = [[] for _ in PROMPTS]
    for _ in range(15):
        tokens = logits.argmax(-1)
        for row, token in zip(found, tokens, strict=True):
            row.append(int(token))
        mask = np.concatenate([mask, np.ones_like(positions)], axis=1)
        past = {f"past_key_values_{part}": tensor for part, tensor in zip(CACHE, cache, strict=True)}
        state = served("decode_step", input_ids=tokens[:, None], attention_mask=mask, position_ids=positions, **past)
        logits, cache = state.logits[:, -1], [getattr(state, f"present_{part}") for part in CACHE]
        positions = positions + 1
    assert found == keras_continuations(bpe_model, PROMPTS, 15, stop_token_ids=())


def test_several_tokens_at_once(served, bpe_model):
    """What checks a draft: three tokens after the cache of two."""
    start = served("prefill", token_ids=[[5, 6]], padding_mask=[[1, 1]])
    past = {f"past_key_values_{part}": getattr(start, f"present_{part}") for part in CACHE}
    step = served("decode_step", input_ids=[[7, 8, 9]], attention_mask=[[1] * 5], position_ids=[[2, 3, 4]], **past)
    expected = bpe_model(tf.constant([[5, 6, 7, 8, 9]]))[0].numpy()
    np.testing.assert_allclose(start.logits[0], expected[1], atol=1e-4)
    np.testing.assert_allclose(step.logits[0], expected[2:], atol=1e-4)
    assert step.present_0_key.shape == (1, 2, 5, 16)


def test_padding_that_all_rows_have_is_cut(served):
    narrow = served("prefill", token_ids=[[1, 2, 3], [0, 4, 5]], padding_mask=[[1, 1, 1], [0, 1, 1]])
    tokens, mask = np.zeros((2, 500), int), np.zeros((2, 500), int)
    tokens[0, 7:10], tokens[1, -2:], mask[0, 7:10], mask[1, -2:] = [1, 2, 3], [4, 5], 1, 1
    wide = served("prefill", token_ids=tokens, padding_mask=mask)  # many times the window
    for name, expected in vars(narrow).items():
        np.testing.assert_array_equal(getattr(wide, name), expected)
