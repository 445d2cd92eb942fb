import types

import numpy as np
import pytest
import tensorflow as tf

from tfgpt.context_window import pad_left
from tfgpt.generation import GenerationSettings, generate_token_ids
from tfgpt.generation import beam_search as tensorflows_beam_search
from tfgpt.models import GPT2CausalLM
from tfgpt.runtime.beam_search import beam_search

STOPS = (3, *range(60, 75), *range(150, 160))


@pytest.fixture(scope="module")
def model():
    """A random model with a window of 32 tokens, whose text is varied."""
    model = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=0)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            # Less for the tied embedding, or each token would be followed by itself.
            variable.assign(variable * (10.0 if variable is model.backbone.token_embedding.embeddings else 20.0))
    return model


@pytest.fixture(scope="module")
def forward(model):
    """Logits after the last token of texts, each read anew as a whole."""
    ints = tf.TensorSpec([None, None], tf.int32)
    function = tf.function(lambda x, mask: model({"token_ids": x, "padding_mask": mask})[:, -1], [ints, ints])
    return lambda texts: function(*pad_left(texts)).numpy()


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 300, length).tolist() for length in (5, 1, 12, 7, 3)]


class WholeTexts:
    """Decoding without a cache: rows are texts, and `next_logits` gives the logits after each."""

    def __init__(self, prompts, num_beams, next_logits):
        self.texts = [list(prompt) for prompt in prompts for _ in range(num_beams)]
        self.next_logits = next_logits
        self.logits = next_logits(self.texts)

    def advance(self, tokens, parents):
        assert tokens.shape == parents.shape == (len(self.texts),)
        self.texts = [self.texts[parent] + [int(token)] for token, parent in zip(tokens, parents, strict=True)]
        self.logits = self.next_logits(self.texts)


def search(prompts, settings, next_logits):
    return beam_search(WholeTexts(prompts, settings.num_beams, next_logits), len(prompts), settings)


@pytest.mark.parametrize("num_beams", [2, 5])
@pytest.mark.parametrize(
    "length_penalty, stops", [(1.0, None), (1.0, STOPS), (0.0, STOPS), (2.5, STOPS), (-0.5, STOPS[:8])]
)
def test_texts_are_keras(model, forward, prompts, num_beams, length_penalty, stops):
    settings = GenerationSettings(
        max_new_tokens=12, num_beams=num_beams, length_penalty=length_penalty, stop_token_ids=stops
    )
    found = search(prompts, settings, forward)
    assert found == generate_token_ids(model, prompts, settings)
    assert all(type(token) is int for tokens in found for token in tokens)


def test_the_cases_are_not_all_alike(forward, prompts):
    def lengths(**settings):
        found = search(prompts, GenerationSettings(max_new_tokens=12, **settings), forward)
        return [len(tokens) for tokens in found]

    assert lengths(num_beams=5) == [12] * 5
    short, long = (lengths(num_beams=5, length_penalty=penalty, stop_token_ids=STOPS) for penalty in (-0.5, 2.5))
    assert sum(short) < sum(long)
    assert len(set(short + long)) > 2
    narrow, wide = (search(prompts, GenerationSettings(max_new_tokens=12, num_beams=n), forward) for n in (2, 5))
    assert narrow != wide


@pytest.mark.parametrize("max_new_tokens", [1, 2])
def test_the_shortest_texts_are_keras(model, forward, prompts, max_new_tokens):
    settings = GenerationSettings(max_new_tokens=max_new_tokens, num_beams=5, stop_token_ids=STOPS)
    assert search(prompts, settings, forward) == generate_token_ids(model, prompts, settings)


class Table:
    """What TensorFlow's beam search needs of a model, for one whose next token depends on the last one and its place.

    Were it not for the place, texts of the same pairs of tokens in another order would differ by rounding alone.
    """

    def __init__(self, table):
        self.table = table
        self.backbone = types.SimpleNamespace(
            vocabulary_size=table.shape[-1], empty_cache=lambda batch_size: tf.zeros([batch_size, 1, 0, 1])
        )

    def call_with_cache(self, token_ids, padding_mask, cache, position_ids, **_):
        return tf.gather_nd(self.table, tf.stack([position_ids[:, -1:], token_ids[:, -1:]], axis=-1)), cache

    def next_logits(self, texts):
        return self.table[[len(text) - 1 for text in texts], [text[-1] for text in texts]]


def random_table(kind, vocabulary_size, rng):
    shape = (16, vocabulary_size, vocabulary_size)
    if kind == "distinct":
        return rng.normal(0, 2, shape).astype(np.float32)
    # 1, 2 or 4 equally likely tokens, and no others: many texts are exactly equally likely.
    order = rng.random(shape).argsort(axis=-1)
    return np.where(order < rng.choice([1, 2, 4], (*shape[:2], 1)), 0, -200).astype(np.float32)


@pytest.mark.parametrize("kind", ["distinct", "ties"])
@pytest.mark.parametrize("num_beams", [1, 2, 3, 7])
def test_texts_of_small_vocabularies_are_tensorflows(num_beams, kind):
    """Vocabularies down to fewer tokens than beams, with any number of stop tokens."""
    rng = np.random.default_rng(num_beams)
    texts = []
    for _ in range(24):
        vocabulary_size = int(rng.integers(4, 9))
        table = Table(random_table(kind, vocabulary_size, rng))
        prompts = rng.integers(0, vocabulary_size, (int(rng.integers(1, 4)), 2)).tolist()
        settings = GenerationSettings(
            max_new_tokens=int(rng.integers(1, 13)),
            num_beams=num_beams,
            length_penalty=float(rng.choice([-1, -0.5, 0, 1, 2, 8])),
            stop_token_ids=tuple(rng.choice(vocabulary_size, rng.integers(0, 3), replace=False).tolist()),
        )
        outputs = tensorflows_beam_search(
            table,
            *map(tf.constant, pad_left(prompts)),
            tf.constant(settings.max_new_tokens),
            num_beams,
            tf.constant(settings.length_penalty),
            tf.constant(settings.stop_token_ids, tf.int32, shape=[len(settings.stop_token_ids)]),
        )
        rows = zip(outputs["token_ids"].numpy(), outputs["num_new_tokens"].numpy(), strict=True)
        found = search(prompts, settings, table.next_logits)
        assert found == [tokens[:length].tolist() for tokens, length in rows], settings
        texts += found
    assert len({len(tokens) for tokens in texts}) > 2
