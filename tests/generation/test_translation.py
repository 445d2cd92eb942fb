import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfgpt.errors import UserError
from tfgpt.generation import translate_by_beam_search, translate_token_ids
from tfgpt.models import EncoderDecoderBackbone, EncoderDecoderTransformer
from tfgpt.text import train_joint_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:You are using a softmax over axis")  # of a single key: right so

BOS, EOS = 1, 2
SOURCES = [[3, 4, 2], [4, 2], [0, 3, 3, 1, 2], [1, 4, 0, 2]]


def made(vocabulary_size, seed):
    """A random model whose logits are far apart, so that its translations are varied."""
    keras.utils.set_random_seed(seed)
    config = {"num_heads": 2, "hidden_dim": 16, "intermediate_dim": 32, "max_sequence_length": 24}
    # Shared and scaled embeddings would make a random model repeat its last token.
    config |= {"share_embeddings": False, "scale_embeddings": False}
    model = EncoderDecoderTransformer(EncoderDecoderBackbone(vocabulary_size, 2, 2, **config))
    for variable in model.trainable_variables:
        if len(variable.shape) > 1 and "embedding" not in variable.path:
            variable.assign(variable * 3.0)
    return model


@pytest.fixture(scope="module")
def tiny_model():
    """A model of 5 tokens, few enough to try every translation."""
    return made(5, seed=4)


@pytest.fixture(scope="module")
def model():
    return made(60, seed=1)


@pytest.fixture(scope="module")
def text_model():
    tokenizer = train_joint_tokenizer(["some words to merge", "einige wörter zu mischen"] * 3, 280, lowercase=True)
    model = made(tokenizer.vocabulary_size, seed=2)
    model.tokenizer = tokenizer
    return model


def sources_of(count, seed=0, longest=12):
    rng = np.random.default_rng(seed)
    return [[*rng.integers(3, 60, length - 1).tolist(), EOS] for length in rng.integers(1, longest, count)]


def score(model, source, tokens):
    """The model's own log-probability of target tokens, in one pass."""
    return float(model.score(np.array([source]), np.array([[BOS, *tokens]]))[0])


def exhaustive(model, source, max_new_tokens, length_penalty):
    """The best (tokens, score) of all translations that end, or are `max_new_tokens` long."""
    best = ([], -np.inf)
    for length in range(1, max_new_tokens + 1):
        texts = [
            text
            for text in itertools.product(range(model.backbone.vocabulary_size), repeat=length)
            if EOS not in text[:-1] and (length == max_new_tokens or text[-1] == EOS)
        ]
        targets = np.array([[BOS, *text] for text in texts])
        scores = model.score(np.tile(source, (len(texts), 1)), targets).numpy() / length**length_penalty
        best = max(best, (list(texts[scores.argmax()]), scores.max()), key=lambda pair: pair[1])
    return best


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
def test_a_wide_beam_finds_what_trying_every_translation_finds(tiny_model, length_penalty):
    settings = {"max_new_tokens": 3, "num_beams": 25, "length_penalty": length_penalty}
    found = translate_token_ids(tiny_model, SOURCES, BOS, EOS, **settings)
    expected = [exhaustive(tiny_model, source, 3, length_penalty) for source in SOURCES]
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
    np.testing.assert_allclose([score for _, score in found], [score for _, score in expected], rtol=1e-5)


def test_the_exhaustive_cases_are_not_all_alike(tiny_model):
    best = {p: [exhaustive(tiny_model, source, 3, p)[0] for source in SOURCES] for p in (-1.0, 0.0, 2.0)}
    greedy = [tokens for tokens, _ in translate_token_ids(tiny_model, SOURCES, BOS, EOS, max_new_tokens=3)]
    assert best[0.0] != greedy
    assert sum(map(len, best[-1.0])) < sum(map(len, best[2.0]))
    assert len({tuple(tokens) for tokens in best[0.0]}) > 1


def test_a_beam_of_one_is_greedy(model):
    """The two are different programs: `translate` takes the greedy one for one beam."""
    sources = sources_of(6)
    greedy = translate_token_ids(model, sources, BOS, EOS, max_new_tokens=12)
    for source, (tokens, none) in zip(sources, greedy, strict=True):
        outputs = translate_by_beam_search(
            model, tf.constant([source]), tf.ones([1, len(source)], tf.int32), BOS, EOS, 12, 1, 0.0
        )
        length = int(outputs["num_new_tokens"][0])
        assert outputs["token_ids"][0, :length].numpy().tolist() == tokens and none is None
        np.testing.assert_allclose(outputs["score"][0], score(model, source, tokens), rtol=1e-5)


def test_greedy_search_takes_the_likeliest_token(model):
    """Token by token by whole passes without any cache."""
    source = sources_of(1, seed=3)[0]
    tokens = []
    while len(tokens) < 10 and EOS not in tokens:
        logits = model({"source_ids": np.array([source]), "target_ids": np.array([[BOS, *tokens]])})
        tokens.append(int(np.argmax(logits[0, -1])))
    assert translate_token_ids(model, [source], BOS, EOS, max_new_tokens=10) == [(tokens, None)]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -0.5])
def test_scores_are_the_models_own(model, length_penalty):
    sources = sources_of(8, seed=5)
    settings = {"num_beams": 4, "length_penalty": length_penalty, "max_new_tokens": 10}
    found = translate_token_ids(model, sources, BOS, EOS, **settings)
    for source, (tokens, value) in zip(sources, found, strict=True):
        np.testing.assert_allclose(value, score(model, source, tokens) / len(tokens) ** length_penalty, rtol=1e-5)
        assert EOS not in tokens[:-1] and (len(tokens) == 10 or tokens[-1] == EOS)


def test_a_wider_beam_scores_no_worse_here(model):
    sources = sources_of(8, seed=6)
    settings = {"length_penalty": 0.0, "max_new_tokens": 10}
    greedy = translate_token_ids(model, sources, BOS, EOS, max_new_tokens=10)
    narrow = [score(model, source, tokens) for source, (tokens, _) in zip(sources, greedy, strict=True)]
    wide = [value for _, value in translate_token_ids(model, sources, BOS, EOS, num_beams=6, **settings)]
    assert all(a <= b + 1e-5 for a, b in zip(narrow, wide, strict=True)) and sum(narrow) < sum(wide)


@given(st.data())
@settings(max_examples=12, deadline=None)
def test_translations_stay_when_padding_grows_and_batch_mates_change(model, data):
    draw = st.lists(st.integers(3, 59), max_size=9).map(lambda ids: [*ids, EOS])
    source, mates = data.draw(draw), data.draw(st.lists(draw, max_size=3))
    num_beams, place = data.draw(st.sampled_from([1, 3])), data.draw(st.integers(0, len(mates)))
    options = {"num_beams": num_beams, "max_new_tokens": 8}
    [(alone, value)] = translate_token_ids(model, [source], BOS, EOS, **options)
    batch = [*mates[:place], source, *mates[place:]]
    together, value_together = translate_token_ids(model, batch, BOS, EOS, **options)[place]
    assert together == alone
    if num_beams > 1:
        np.testing.assert_allclose(value_together, value, atol=1e-5)
        width = len(source) + data.draw(st.integers(0, 9))
        ids = np.pad([source], ((0, 0), (0, width - len(source))), constant_values=data.draw(st.integers(0, 59)))
        mask = (np.arange(width) < len(source)).astype(np.int32)[None]
        ids = tf.constant(ids, tf.int32)
        padded = translate_by_beam_search(model, ids, tf.constant(mask), BOS, EOS, 8, num_beams, 1.0)
        assert padded["token_ids"][0, : len(alone)].numpy().tolist() == alone
        np.testing.assert_allclose(padded["score"][0], value, atol=1e-5)


def test_the_default_length_follows_from_the_source_alone(model):
    """A long batch mate gives a source no more room."""
    short, long = [5, EOS], [*range(3, 20), EOS]
    unending = made(60, seed=1)
    embeddings = unending.backbone.target_embedding.embeddings
    embeddings.assign(np.where(np.arange(60)[:, None] == EOS, 0.0, embeddings))  # whose logit is 0
    alone, together = (translate_token_ids(unending, batch, BOS, EOS)[0][0] for batch in ([short], [short, long, long]))
    assert alone == together and len(alone) <= 24


def test_one_trace_serves_every_shape(model):
    translate_token_ids(model, sources_of(3), BOS, EOS, num_beams=2, max_new_tokens=4)
    function = model.translation_functions[2]
    traces = function.experimental_get_tracing_count()
    translate_token_ids(model, sources_of(7, seed=9), BOS, EOS, num_beams=2, max_new_tokens=9, length_penalty=0.3)
    assert function.experimental_get_tracing_count() == traces == 1


# === Text ===


def test_a_string_gives_a_string_and_a_list_a_list(text_model):
    texts = ["Some words", "words to merge  ", "to"]
    together = text_model.translate(texts, max_new_tokens=8)
    assert together == [text_model.translate(text, max_new_tokens=8) for text in texts]
    assert isinstance(together[0], str) and len(set(together)) > 1
    assert text_model.translate("some words", max_new_tokens=8) == together[0]  # the tokenizer lower-cases
    tokenizer = text_model.tokenizer
    source = [*tokenizer.encode("some words"), tokenizer.eos_token_id]
    [(tokens, _)] = translate_token_ids(text_model, [source], BOS, EOS, max_new_tokens=8, num_beams=5)
    assert tokenizer.decode([i for i in tokens if i > 2]).strip() == together[0]
    assert text_model.translate([]) == []


def test_a_seed_samples_the_same_and_another_one_another(text_model):
    settings = {"num_beams": 1, "temperature": 2.0, "max_new_tokens": 8}
    first, again, other = (text_model.translate("some words", seed=seed, **settings) for seed in (1, 1, 2))
    assert first == again != other


def test_progress_ends_at_one(text_model):
    fractions = []
    text_model.translate(["some", "words to merge some"], on_progress=fractions.append)
    assert fractions == sorted(fractions) and fractions[-1] == 1.0


@pytest.mark.parametrize(
    "texts, options, sentence",
    [
        (["some", " "], {}, "text 1 is ' ', expected a sentence"),
        ([[1, 2]], {}, "text 0 is [1, 2], expected a sentence"),
        (["words " * 30], {}, "text 0 has "),
        ("some", {"num_beams": 0}, "num_beams is 0, expected at least 1"),
        ("some", {"max_new_tokens": 25}, "max_new_tokens is 25, expected at most the window's 24"),
        ("some", {"temperature": 0.5}, "beam search takes no temperature"),
    ],
)
def test_bad_input_is_one_sentence(text_model, texts, options, sentence):
    with pytest.raises(UserError) as error:
        text_model.translate(texts, **options)
    assert str(error.value).startswith(sentence) and "\n" not in str(error.value)


def test_a_model_without_a_tokenizer_takes_no_text(model):
    with pytest.raises(UserError, match="the model has no tokenizer"):
        model.translate("some words")
