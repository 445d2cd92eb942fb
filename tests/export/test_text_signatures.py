"""The signatures of texts, against the Keras model and its tokenizer."""

import numpy as np
import pytest

from tests.export.served_model import new_tokens, strings, text_of_tokens

WINDOW = 64
NEW_TOKENS = 24
TEXTS = ["def __init__(self):\n", "é", "    return None  # 漢字 \U0001f980", "x", "<|endoftext|>import os"]
INVALID = [b"caf\xc3", b"\xff\xfe", b"ok \xe6\xbc after", b"\xed\xa0\x80", b"\xf4\x90\x80\x80!"]


def token_bytes(tokenizer):
    """The exact bytes of each token, by GPT-2's table of printable characters for bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    tokens = [tokenizer._backend.id_to_token(i) for i in range(tokenizer.vocabulary_size)]
    return [bytes(byte_of[character] for character in token) for token in tokens]


@pytest.fixture(scope="module")
def tokenizer(bpe_model):
    return bpe_model.tokenizer


@pytest.fixture(scope="module")
def prompts(texts, tokenizer):
    """50 pieces of the standard library's source, of 1 token to the whole window."""
    lengths = np.linspace(1, WINDOW, 50).astype(int)
    prompts = [text_of_tokens(texts, 1700 * i, length, tokenizer) for i, length in enumerate(lengths)]
    counts = [len(tokenizer.encode(prompt)) for prompt in prompts]
    assert (min(counts), max(counts)) == (1, WINDOW) and len(set(counts)) > 40
    return prompts


@pytest.fixture(scope="module")
def together(served, prompts):
    return served("generate_text", text=prompts, max_new_tokens=NEW_TOKENS)


# === generate_text ===


def test_greedy_text_of_fifty_prompts_in_one_batch(together, bpe_model, prompts, tokenizer):
    room = [WINDOW + 1 - len(tokenizer.encode(prompt)) for prompt in prompts]
    expected = [
        bpe_model.generate(prompt, max_new_tokens=min(NEW_TOKENS, room), return_prompt=False)
        for prompt, room in zip(prompts, room, strict=True)
    ]
    assert len(set(expected)) > 45
    assert strings(together.new_text) == expected
    assert strings(together.text) == [prompt + new for prompt, new in zip(prompts, expected, strict=True)]
    assert together.num_prompt_tokens.tolist() == [WINDOW + 1 - r for r in room]
    for reason, count, left in zip(together.finish_reason, together.num_new_tokens, room, strict=True):
        if reason != b"stop":
            assert (reason, count) == ((b"window", left) if left < NEW_TOKENS else (b"length", NEW_TOKENS))
    assert {b"window", b"length"} <= set(together.finish_reason)


def test_each_prompt_alone_gives_what_it_gives_in_the_batch(served, together, prompts):
    for row, prompt in enumerate(prompts):
        alone = served("generate_text", text=[prompt], max_new_tokens=NEW_TOKENS)
        for name in ("text", "new_text_bytes", "finish_reason", "num_prompt_tokens", "num_new_tokens"):
            assert getattr(alone, name)[0] == getattr(together, name)[row]
        assert new_tokens(alone)[0] == new_tokens(together)[row]


def test_generate_text_is_generate_of_its_tokens(served, together, prompts, tokenizer):
    encoded = [tokenizer.encode(prompt) for prompt in prompts]
    token_ids, mask = np.zeros((50, WINDOW), int), np.zeros((50, WINDOW), int)
    for row, ids in enumerate(encoded):
        token_ids[row, : len(ids)], mask[row, : len(ids)] = ids, 1
    outputs = served("generate", token_ids=token_ids, padding_mask=mask, max_new_tokens=NEW_TOKENS)
    for name in ("token_ids", "finish_reason", "num_prompt_tokens", "num_new_tokens"):
        np.testing.assert_array_equal(getattr(outputs, name), getattr(together, name))


def test_a_stop_token_ends_the_text_and_is_in_the_tokens_alone(served, bpe_model, prompts, tokenizer):
    """Rows that reach the end token, found by sampling; beside rows that do not."""
    seeds = list(range(50))
    outputs = served("generate_text", text=prompts[:25] * 2, max_new_tokens=20, temperature=1.5, seed=seeds)
    end = tokenizer.end_token_id
    rows = new_tokens(outputs)
    stopped = [row[-1] == end for row in rows]
    assert 3 < sum(stopped) < 50
    assert outputs.finish_reason.tolist() == [b"stop" if stop else b"length" for stop in stopped]
    assert outputs.num_new_tokens.tolist() == [row.index(end) + 1 if end in row else 20 for row in rows]
    expected = [tokenizer.decode(row[:-1] if stop else row) for row, stop in zip(rows, stopped, strict=True)]
    assert strings(outputs.new_text) == expected
    keras = bpe_model.generate(
        prompts[:25] * 2, max_new_tokens=20, temperature=1.5, seed=tuple(seeds), return_prompt=False
    )
    assert keras == expected


def test_new_text_is_always_utf8_and_the_bytes_are_exact(served, tokenizer):
    """Rows of a hot sampler hold characters of several bytes, whole and cut."""
    table = token_bytes(tokenizer)
    rows = 400
    request = {"text": ["a"] * rows, "temperature": 4.0, "seed": list(range(rows))}
    outputs = served("generate_text", **request, max_new_tokens=20)
    stopped = outputs.finish_reason == b"stop"
    for row, tokens in enumerate(new_tokens(outputs)):
        assert outputs.new_text_bytes[row] == b"".join(table[token] for token in tokens[: len(tokens) - stopped[row]])
        assert outputs.new_text[row].decode() == outputs.new_text_bytes[row].decode("utf-8", "replace")
        assert outputs.text[row] == b"a" + outputs.new_text[row]

    # Where a row wrote a whole character with one token a byte, cut that row between its bytes.
    def whole_character(row):
        tokens = new_tokens(outputs)[row]
        for place in range(len(tokens) - 1):
            pair = table[tokens[place]] + table[tokens[place + 1]]
            if len(table[tokens[place]]) == 1 and 0xC2 <= pair[0] < 0xE0 and len(pair) == 2 and 0x80 <= pair[1] < 0xC0:
                return place + 1
        return None

    row, cut = next((row, cut) for row in range(rows) if (cut := whole_character(row)))
    before, after = (
        served("generate_text", text=["a"], temperature=4.0, seed=row, max_new_tokens=count) for count in (cut, cut + 1)
    )
    assert after.new_text[0].decode().endswith(after.new_text_bytes[0][-2:].decode())
    assert before.new_text_bytes[0] == after.new_text_bytes[0][:-1]
    assert before.new_text[0].endswith("\ufffd".encode())
    assert before.text[0] == b"a" + before.new_text[0]


def test_prompts_that_are_not_utf8(served, bpe_model):
    read = [text.decode("utf-8", "replace") for text in INVALID]
    outputs = served("generate_text", text=INVALID)
    assert strings(outputs.text) == bpe_model.generate(read, max_new_tokens=8)
    np.testing.assert_array_equal(outputs.text, served("generate_text", text=read).text)


def test_an_empty_prompt_is_the_end_of_another_text(served, bpe_model, tokenizer):
    outputs = served("generate_text", text=["", "x", ""])
    assert strings(outputs.text) == bpe_model.generate(["", "x", ""], max_new_tokens=8)
    assert outputs.num_prompt_tokens.tolist() == [1, 1, 1]
    mask, end = [[1]], [[tokenizer.end_token_id]]
    assert new_tokens(outputs)[0] == new_tokens(served("generate", token_ids=end, padding_mask=mask))[0]


# === serving_default ===


def test_the_default_takes_text_alone_and_gives_text(served, bpe_model):
    """`{"instances": ["Once upon"]}`; the settings are `GenerationSettings`' own."""
    default = served("serving_default", text=TEXTS)
    assert strings(default.text) == strings(served("generate_text", text=TEXTS, max_new_tokens=64).text)
    room = WINDOW + 1 - len(bpe_model.tokenizer.encode(TEXTS[0]))
    assert strings(default.text)[0] == bpe_model.generate(TEXTS[0], max_new_tokens=room)
    for row, text in enumerate(TEXTS):
        assert served("serving_default", text=[text]).text[0] == default.text[row]


# === score ===


def test_score_is_score_tokens_of_the_tokens(served, prompts):
    outputs = served("score", text=prompts)
    mask = np.arange(outputs.token_ids.shape[1]) < outputs.num_tokens[:, None]
    of_tokens = served("score_tokens", token_ids=outputs.token_ids, padding_mask=mask)
    for name in ("log_probabilities", "log_probability", "num_scored_tokens"):
        np.testing.assert_array_equal(getattr(outputs, name), getattr(of_tokens, name))


def test_score_of_texts(served, bpe_model, prompts, tokenizer):
    outputs = served("score", text=prompts)
    for row, prompt in enumerate(prompts):
        token_ids = tokenizer.encode(prompt)
        count = len(token_ids)
        assert outputs.token_ids[row, :count].tolist() == token_ids
        assert not outputs.token_ids[row, count:].any() and not outputs.log_probabilities[row, count:].any()
        assert (outputs.num_tokens[row], outputs.num_scored_tokens[row]) == (count, count - 1)
        logits = bpe_model(np.array([token_ids])).numpy()[0].astype(np.float64)
        log_probabilities = logits - np.log(np.exp(logits - logits.max()).sum(-1, keepdims=True)) - logits.max()
        expected = [log_probabilities[i, token] for i, token in enumerate(token_ids[1:])]
        np.testing.assert_allclose(outputs.log_probabilities[row, 1:count], expected, atol=1e-4)
        if count > 1:
            # As the docstring has it; Keras' loss is the mean negative log-probability.
            perplexity = np.exp(-outputs.log_probability[row] / outputs.num_scored_tokens[row])
            np.testing.assert_allclose(perplexity, np.exp(-np.mean(expected)), rtol=1e-4)


def test_a_text_of_one_token_has_no_score(served):
    outputs = served("score", text=["x", ""])
    assert outputs.log_probability.tolist() == [0, 0]
    assert outputs.num_scored_tokens.tolist() == [0, 0]
    assert outputs.num_tokens.tolist() == [1, 1]


# === embed ===


def test_embed_is_the_backbones_last_hidden_state(served, bpe_model, prompts, tokenizer):
    outputs = served("embed", text=prompts)
    assert outputs.last_hidden_state.shape == (50, WINDOW, 32)
    for row, prompt in enumerate(prompts):
        token_ids = tokenizer.encode(prompt)
        expected = bpe_model.backbone(np.array([token_ids])).numpy()[0]
        np.testing.assert_allclose(outputs.last_hidden_state[row, : len(token_ids)], expected, atol=2e-4)
        np.testing.assert_allclose(outputs.mean_pooled[row], expected.mean(0), atol=2e-4)
        assert not outputs.last_hidden_state[row, len(token_ids) :].any()
        assert outputs.num_tokens[row] == len(token_ids)


# === A tokenizer of characters, without an end token ===


def test_characters(served_characters, character_model, character_settings):
    texts = ["a", "fed", "abcabcabc"]
    outputs = served_characters("generate_text", text=texts)
    stops = character_settings.stop_token_ids
    expected = character_model.generate(texts, max_new_tokens=8, stop_token_ids=stops)
    assert strings(outputs.text) == expected
    assert outputs.num_prompt_tokens.tolist() == [1, 3, 9]
    assert served_characters("score", text=texts).token_ids.tolist() == [
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
        [5, 4, 3, 0, 0, 0, 0, 0, 0],
        [0, 1, 2, 0, 1, 2, 0, 1, 2],
    ]
    hidden = character_model.backbone(np.array([[5, 4, 3]])).numpy()[0]
    np.testing.assert_allclose(served_characters("embed", text=["fed"]).mean_pooled[0], hidden.mean(0), atol=1e-4)
