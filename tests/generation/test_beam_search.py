import itertools

import numpy as np
import pytest
import tensorflow as tf

from tfgpt.context_window import pad_left
from tfgpt.errors import UserError
from tfgpt.generation import GenerationSettings, beam_search, generate_token_ids

PROMPTS = [[1, 2, 3], [4], [0, 0, 2, 1, 3], [2, 4]]


def search(model, prompts, max_new_tokens, num_beams, length_penalty=1.0, stops=()):
    """(tokens, score) of each row."""
    outputs = beam_search(
        model,
        *map(tf.constant, pad_left(prompts)),
        tf.constant(max_new_tokens),
        num_beams,
        tf.constant(length_penalty, tf.float32),
        tf.constant(stops, tf.int32, shape=[len(stops)]),
    )
    rows = zip(*(outputs[name].numpy() for name in ("token_ids", "num_new_tokens", "score")), strict=True)
    return [(tokens[:length].tolist(), float(score)) for tokens, length, score in rows]


def log_probability(model, prompt, new):
    """Of the new tokens after the prompt, in one pass without a cache; `new` is (N, T)."""
    new = np.array(new)
    rows = np.concatenate([np.tile(prompt, (len(new), 1)), new], axis=1)
    log_probabilities = tf.nn.log_softmax(model(tf.constant(rows))).numpy()[:, len(prompt) - 1 : -1]
    return np.take_along_axis(log_probabilities, new[:, :, None], axis=2).sum(axis=(1, 2))


def exhaustive(model, prompt, max_new_tokens, length_penalty, stops):
    """The best (tokens, score) of all texts that end in a stop token or are `max_new_tokens` long."""
    best = ([], -np.inf)
    for length in range(1, max_new_tokens + 1):
        texts = [
            text
            for text in itertools.product(range(model.backbone.vocabulary_size), repeat=length)
            if not set(text[:-1]) & set(stops) and (length == max_new_tokens or text[-1] in stops)
        ]
        if texts:
            scores = log_probability(model, prompt, texts) / length**length_penalty
            best = max(best, (list(texts[scores.argmax()]), scores.max()), key=lambda pair: pair[1])
    return best


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("stops", [(), (2,), (0, 3)])
def test_a_wide_beam_finds_what_trying_every_text_finds(tiny_model, stops, length_penalty):
    found = search(tiny_model, PROMPTS, 3, 25, length_penalty, stops)
    expected = [exhaustive(tiny_model, prompt, 3, length_penalty, stops) for prompt in PROMPTS]
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
    np.testing.assert_allclose([score for _, score in found], [score for _, score in expected], rtol=1e-5)


def test_the_exhaustive_cases_are_not_all_alike(tiny_model):
    """Greedy search misses some of them, and penalties change the length of some."""
    best = [exhaustive(tiny_model, prompt, 3, 0.0, ())[0] for prompt in PROMPTS]
    assert best != generate_token_ids(tiny_model, PROMPTS, GenerationSettings(max_new_tokens=3))
    by_penalty = {
        penalty: [len(exhaustive(tiny_model, prompt, 3, penalty, (0, 3))[0]) for prompt in PROMPTS]
        for penalty in (-1.0, 0.0, 2.0)
    }
    assert sum(by_penalty[-1.0]) < sum(by_penalty[2.0])


def test_a_beam_of_one_is_greedy(model, prompts):
    prompts = [prompt[:12] for prompt in prompts]
    greedy = generate_token_ids(model, prompts, GenerationSettings(max_new_tokens=20))
    found = search(model, prompts, 20, num_beams=1)
    assert [tokens for tokens, _ in found] == greedy
    for prompt, (tokens, score) in zip(prompts, found, strict=True):
        np.testing.assert_allclose(score, log_probability(model, prompt, [tokens])[0] / 20, rtol=1e-5)


@pytest.mark.parametrize("length_penalty, stops", [(1.0, ()), (0.6, (3, 70, 150, 151, 152, 153)), (-0.5, (8, 9))])
def test_scores_are_the_models_log_probabilities(model, prompts, length_penalty, stops):
    prompts = [prompt[:12] for prompt in prompts]
    for prompt, (tokens, score) in zip(prompts, search(model, prompts, 15, 4, length_penalty, stops), strict=True):
        expected = log_probability(model, prompt, [tokens])[0] / len(tokens) ** length_penalty
        np.testing.assert_allclose(score, expected, rtol=1e-5)
        assert not set(tokens[:-1]) & set(stops)
        assert len(tokens) == 15 or tokens[-1] in stops


def test_a_wider_beam_scores_no_worse_here(model, prompts):
    prompts = [prompt[:12] for prompt in prompts]
    narrow, wide = ([score for _, score in search(model, prompts, 10, beams)] for beams in (1, 8))
    assert all(a <= b + 1e-6 for a, b in zip(narrow, wide, strict=True))
    assert sum(narrow) < sum(wide)


def test_a_ragged_batch_gives_each_row_what_it_gives_alone(model, prompts):
    prompts = [prompt[:16] for prompt in prompts]
    whole = generate_token_ids(model, prompts, GenerationSettings(max_new_tokens=16, num_beams=3))
    for stops in ((), (whole[0][2], whole[1][7], whole[3][11])):
        settings = GenerationSettings(max_new_tokens=16, num_beams=3, stop_token_ids=stops)
        together = generate_token_ids(model, prompts, settings)
        assert together == [generate_token_ids(model, [prompt], settings)[0] for prompt in prompts]
    assert len({len(tokens) for tokens in together}) > 1


def test_a_beam_as_wide_as_the_vocabulary_and_wider(tiny_model):
    for num_beams in (5, 7):
        [(tokens, score)] = search(tiny_model, [[1]], 1, num_beams)
        expected, best = exhaustive(tiny_model, [1], 1, 1.0, ())
        assert tokens == expected
        np.testing.assert_allclose(score, best, rtol=1e-5)


def test_beam_search_stays_within_the_window(model):
    settings = GenerationSettings(max_new_tokens=3, num_beams=2)
    assert [len(tokens) for tokens in generate_token_ids(model, [[1] * 30, [2]], settings)] == [3, 3]
    with pytest.raises(UserError) as error:
        generate_token_ids(model, [[2], [1] * 31], settings)
    assert str(error.value) == (
        "beam search stays within the window of 32 tokens, expected max_new_tokens of at most 2 after the longest "
        "prompt, found 3"
    )
