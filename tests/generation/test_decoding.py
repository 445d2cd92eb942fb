import numpy as np
import pytest
import tensorflow as tf

from tfgpt.generation import GenerationSettings, decode, generate_token_ids
from tfgpt.generation.decoding import seen_tokens
from tfgpt.generation.random_numbers import uniform

SAMPLED = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.2}


def continuations(model, prompts, **settings):
    return generate_token_ids(model, prompts, GenerationSettings(**settings))


def naive(model, prompt, count, choose):
    """Decoding without a cache, by the rule of `tfgpt.context_window`: past the window go on from its last half."""
    forward = tf.function(model, reduce_retracing=True)
    window = model.backbone.max_sequence_length
    context, new = list(prompt), []
    for step in range(count):
        if len(context) > window:
            context = context[-(window // 2) :]
        logits = forward(tf.constant([context]))[0, -1].numpy()
        new.append(int(choose(step, logits, context)))
        context.append(new[-1])
    return new


def greedily(step, logits, context):
    return logits.argmax()


def test_the_model_of_these_tests_says_something(model, prompts):
    new = continuations(model, prompts, max_new_tokens=100)
    assert all(len(set(tokens)) > 10 for tokens in new)
    assert len({tuple(tokens) for tokens in new}) == len(prompts)


def test_greedy_is_a_loop_without_a_cache(model, prompts):
    """100 tokens: past the window of 32 several times over."""
    assert continuations(model, prompts, max_new_tokens=100) == [naive(model, p, 100, greedily) for p in prompts]


def test_greedy_with_a_repetition_penalty_is_a_loop_without_a_cache(model, prompts):
    def penalized(step, logits, context):
        seen = np.isin(np.arange(len(logits)), context)
        return np.where(seen, np.where(logits > 0, logits / 1.5, logits * 1.5), logits).argmax()

    expected = [naive(model, prompt, 60, penalized) for prompt in prompts]
    assert continuations(model, prompts, max_new_tokens=60, repetition_penalty=1.5) == expected
    assert continuations(model, prompts, max_new_tokens=60) != expected


def test_sampling_is_a_loop_without_a_cache(model, prompts):
    """Token n of row i falls where number n of the stream seed + i lies among the kept tokens, likeliest first."""

    def sampling(seed):
        def choose(step, logits, context):
            order = np.argsort(-logits, kind="stable")[:50]
            probabilities = np.exp((logits[order].astype(np.float64) - logits.max()) / 0.9)
            probabilities /= probabilities.sum()
            kept = np.cumsum(probabilities) - probabilities < 0.95
            number = uniform(tf.constant([seed], tf.int64), tf.constant([step]))[0].numpy()
            cumulative = np.cumsum(probabilities[kept])
            return order[kept][np.searchsorted(cumulative, number * cumulative[-1], "right")]

        return choose

    expected = [naive(model, prompt, 60, sampling(7 + i)) for i, prompt in enumerate(prompts)]
    found = continuations(model, prompts, max_new_tokens=60, temperature=0.9, top_k=50, top_p=0.95, seed=7)
    assert found == expected


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampling"])
def test_a_ragged_batch_gives_each_row_what_it_gives_alone(model, prompts, settings):
    together = continuations(model, prompts, max_new_tokens=70, seed=3, **settings)
    alone = [
        continuations(model, [prompt], max_new_tokens=70, seed=3 + i, **settings)[0] for i, prompt in enumerate(prompts)
    ]
    assert together == alone
    if settings:
        assert (
            continuations(model, prompts[::-1], max_new_tokens=70, seed=(8, 7, 6, 5, 4, 3), **settings) == alone[::-1]
        )


def test_a_longer_continuation_begins_with_the_shorter(model, prompts):
    short = continuations(model, prompts, max_new_tokens=11, **SAMPLED)
    long = continuations(model, prompts, max_new_tokens=45, **SAMPLED)
    assert short == [tokens[:11] for tokens in long]


def test_seeds(model, prompts):
    first = continuations(model, prompts, max_new_tokens=20, seed=1, **SAMPLED)
    assert continuations(model, prompts, max_new_tokens=20, seed=1, **SAMPLED) == first
    others = [continuations(model, prompts, max_new_tokens=20, seed=seed, **SAMPLED) for seed in (2, 2**33, -1)]
    assert all(a != b for other in others for a, b in zip(first, other, strict=True))
    # The same prompt twice in a batch gives two texts, for the rows have two seeds.
    a, b = continuations(model, [prompts[0]] * 2, max_new_tokens=20, **SAMPLED)
    assert a != b


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampling"])
def test_a_row_ends_with_its_stop_token(model, prompts, settings):
    whole = continuations(model, prompts, max_new_tokens=60, **settings)
    stops = (whole[0][3], whole[2][40])

    def up_to_stop(tokens):
        ends = [i for i, token in enumerate(tokens) if token in stops]
        return tokens[: ends[0] + 1] if ends else tokens

    found = continuations(model, prompts, max_new_tokens=60, stop_token_ids=stops, **settings)
    assert found == [up_to_stop(tokens) for tokens in whole]
    assert len({len(tokens) for tokens in found}) > 1


def test_a_stop_token_in_the_prompt_stops_nothing(model, prompts):
    assert prompts[0][-1] not in continuations(model, prompts[:1], max_new_tokens=20)[0]
    stopped = continuations(model, prompts[:1], max_new_tokens=20, stop_token_ids=(prompts[0][-1],))
    assert stopped == continuations(model, prompts[:1], max_new_tokens=20)


def test_rows_of_one_request_have_their_own_settings(model):
    """What a server's batch is: lengths, settings, seeds, places in the stream and stop tokens of each row."""
    prompts = [[5, 6, 7], [250], [9, 8, 7, 6, 5, 4]]
    greedy = continuations(model, prompts, max_new_tokens=12)
    sampled = continuations(model, [prompts[1]], max_new_tokens=12, temperature=1.0, seed=77)[0]
    outputs = decode(
        model,
        token_ids=tf.constant([[0, 0, 0, 5, 6, 7], [0, 0, 0, 0, 0, 250], prompts[2]]),
        padding_mask=tf.constant([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1], [1] * 6]),
        max_new_tokens=tf.constant([12, 4, 9]),
        temperature=tf.constant([0.0, 1.0, 0.0]),
        top_k=tf.constant([0, 0, 5]),
        top_p=tf.constant([1.0, 1.0, 0.5]),
        repetition_penalty=tf.constant([1.0, 1.0, 1.0]),
        seed=tf.constant([0, 77, 0], tf.int64),
        first_index=tf.constant([0, 0, 0]),
        stop_token_ids=tf.constant([[-1], [-1], [greedy[2][5]]]),
    )
    stop = greedy[2].index(greedy[2][5]) + 1
    assert outputs["num_new_tokens"].numpy().tolist() == [12, 4, stop]
    expected = [greedy[0], sampled[:4] + [0] * 8, greedy[2][:stop] + [0] * (12 - stop)]
    np.testing.assert_array_equal(outputs["token_ids"], expected)


def test_a_row_at_the_windows_end_beside_rows_that_go_on(model):
    """The first row ends where the window of 32 is full; while the others go on, it has no position left."""
    rng = np.random.default_rng(2)
    full, short = rng.integers(0, 300, 32).tolist(), [5, 6, 7]
    expected = [continuations(model, [full], max_new_tokens=1)[0], continuations(model, [short], max_new_tokens=25)[0]]
    padding = 32 - len(short)
    inputs = {
        "token_ids": tf.constant([full, [0] * padding + short]),
        "padding_mask": tf.constant([[1] * 32, [0] * padding + [1] * len(short)]),
        "max_new_tokens": tf.constant([1, 25]),
        **{name: tf.constant([value] * 2) for name, value in (("temperature", 0.0), ("top_p", 1.0))},
        "repetition_penalty": tf.ones([2]),
        **{name: tf.zeros([2], dtype) for name, dtype in (("top_k", "int32"), ("seed", "int64"))},
        "first_index": tf.zeros([2], tf.int32),
        "stop_token_ids": tf.zeros([2, 0], tf.int32),
    }
    for run in (decode, tf.function(decode)):
        outputs = run(model, **inputs)
        assert outputs["num_new_tokens"].numpy().tolist() == [1, 25]
        np.testing.assert_array_equal(outputs["token_ids"], [expected[0] + [0] * 24, expected[1]])


def test_seen_tokens_are_those_of_the_prompt_and_not_its_padding():
    seen = seen_tokens(tf.constant([[0, 3, 3, 1], [0, 0, 0, 2]]), tf.constant([[0, 1, 1, 1], [0, 0, 1, 1]]), 5)
    np.testing.assert_array_equal(seen, [[False, True, False, True, False], [True, False, True, False, False]])
