"""Encoder and GPT-2 classifiers against NumPy, under padding, and as ordinary Keras models."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import encoder_numpy, gpt2_numpy
from tfgpt.errors import UserError
from tfgpt.models import EncoderBackbone, EncoderClassifier, GPT2Backbone, GPT2CausalLM, GPT2Classifier
from tfgpt.models.classifier.hugging_face import named_variables
from tfgpt.text import BytePairTokenizer

pytestmark = pytest.mark.filterwarnings("ignore:You are using a softmax over axis")  # of a single key: right so

SMALL = {"vocabulary_size": 50, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "max_sequence_length": 24}
LABELS = ["bad", "fair", "good"]
ROW = [7, 3, 44, 3, 0, 12, 9]


def encoder(normalization="pre", positions="learned", pooling="mean", **options):
    backbone = EncoderBackbone(**{**SMALL, **options}, normalization=normalization, positions=positions)
    model = EncoderClassifier(backbone, LABELS, pooling=pooling)
    encoder_numpy.randomize(named_variables(model))
    return model


def gpt2(**options):
    model = GPT2Classifier(GPT2Backbone(**{**SMALL, **options}), LABELS)
    encoder_numpy.randomize(named_variables(model))
    return model


KINDS = {
    "mean": encoder(),
    "first": encoder(pooling="first", positions="none"),
    "post-norm": encoder(normalization="post", positions="sinusoidal"),
    "gpt2": gpt2(),
}


@pytest.fixture(params=KINDS)
def model(request):
    return KINDS[request.param]


# === Logits ===


@pytest.mark.parametrize("normalization", ["pre", "post"])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_an_encoders_logits_are_those_of_the_paper(normalization, positions, pooling):
    made = encoder(normalization, positions, pooling)
    weights = {name: variable.numpy().astype("float64") for name, variable in named_variables(made).items()}
    weights["score.weight"] = weights["score.weight"].T
    expected = encoder_numpy.forward(weights, ROW, 2, normalization, positions, pooling)
    assert gpt2_numpy.relative_error(made(np.array([ROW]))[0], expected) < 1e-5


@pytest.mark.parametrize(
    "change",
    [
        {"normalization": "post"},
        {"positions": "sinusoidal"},
        {"positions": "none"},
        {"pooling": "first"},
        {"num_heads": 4},
        {"epsilon": 1e-3},
    ],
    ids=str,
)
def test_the_witness_sees_every_detail(change):
    made = encoder()
    weights = {name: variable.numpy().astype("float64") for name, variable in named_variables(made).items()}
    weights["score.weight"] = weights["score.weight"].T
    right = {"num_heads": 2, "normalization": "pre", "positions": "learned", "pooling": "mean"}
    expected = encoder_numpy.forward(weights, ROW, **{**right, **change})
    assert gpt2_numpy.relative_error(made(np.array([ROW]))[0], expected) > 1e-4


def test_gpt2s_logits_are_a_linear_map_of_the_last_hidden_state():
    made = KINDS["gpt2"]
    weights = {name: variable.numpy().astype("float64") for name, variable in named_variables(made).items()}
    hidden = gpt2_numpy.hidden_states(weights, np.array([ROW]), num_heads=2)
    expected = hidden[0, -1] @ weights["score.weight"]
    assert gpt2_numpy.relative_error(made(np.array([ROW]))[0], expected) < 1e-5


@pytest.mark.parametrize("policy, tolerance", [("mixed_bfloat16", 0.1), ("mixed_float16", 0.01)])
@pytest.mark.parametrize("make", [encoder, gpt2])
def test_logits_are_float32_under_every_policy(make, policy, tolerance):
    logits = make(dtype=policy)(np.array([ROW]))
    assert logits.dtype == "float32"
    assert 0 < gpt2_numpy.relative_error(logits, make()(np.array([ROW]))) < tolerance


# === Padding and batches ===

rows = st.lists(st.lists(st.integers(0, 49), min_size=1, max_size=10), min_size=1, max_size=4)


@pytest.mark.parametrize("kind", KINDS)
@given(rows=rows, left=st.booleans(), more=st.integers(0, 6), filler=st.integers(0, 49))
@settings(max_examples=25, deadline=None)
def test_padding_and_batch_mates_change_nothing(kind, rows, left, more, filler):
    width = max(map(len, rows)) + more
    token_ids, mask = np.full((len(rows), width), filler), np.zeros((len(rows), width), "int32")
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        token_ids[number, place], mask[number, place] = row, 1
    together = KINDS[kind]({"token_ids": token_ids, "padding_mask": mask})
    alone = np.concatenate([KINDS[kind](np.array([row])) for row in rows])
    assert gpt2_numpy.relative_error(together, alone) < 1e-5


def test_a_row_that_only_fills_up_a_batch_is_finite(model):
    mask = np.array([[1, 1, 0], [0, 0, 0]])
    assert np.isfinite(model({"token_ids": np.zeros((2, 3), "int32"), "padding_mask": mask})).all()


# === Text ===


@pytest.fixture(scope="module")
def tokenizer():
    return BytePairTokenizer.train(["the cat sat on the mat, the cat ate"], vocabulary_size=262)


@pytest.mark.parametrize("make", [encoder, gpt2])
def test_classify(make, tokenizer):
    made = make(vocabulary_size=262)
    made.tokenizer = tokenizer
    texts = ["the cat", "on the mat, the cat", "a"]
    found = made.classify(texts, batch_size=2)
    for text, result in zip(texts, found, strict=True):
        expected = keras.ops.softmax(made(np.array([tokenizer.encode(text)])))[0].numpy()
        assert list(result.probabilities) == LABELS
        np.testing.assert_allclose(list(result.probabilities.values()), expected, atol=1e-5)
        assert result.label == LABELS[expected.argmax()]
        assert result.probability == max(result.probabilities.values())
    assert made.classify("the cat").label == found[0].label
    assert made.classify([]) == []


def test_bad_texts(tokenizer):
    made = encoder(vocabulary_size=262)
    with pytest.raises(UserError, match="has no tokenizer, expected one to classify"):
        made.classify("the cat")
    made.tokenizer = tokenizer
    with pytest.raises(UserError, match="^text 1 is empty, expected at least one token"):
        made.classify(["the cat", ""])
    long = "x" * 25
    with pytest.raises(UserError, match="^text 0 has 25 tokens, expected at most the window's 24; .*--truncate"):
        made.classify([long])
    assert made.classify([long], truncate=True) == made.classify([long[:24]])


@pytest.mark.parametrize(
    "labels, message", [(["a"], r"has 1 label \(a\), expected at least 2"), (["a", "b", "a"], "the label 'a' twice")]
)
def test_bad_labels(labels, message):
    with pytest.raises(UserError, match=message):
        EncoderClassifier(EncoderBackbone(**SMALL), labels)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: EncoderBackbone(**SMALL, normalization="none"), "normalization is 'none', expected pre or post"),
        (lambda: EncoderBackbone(**SMALL, positions="rotary"), "positions is 'rotary', expected one of learned"),
        (lambda: encoder(pooling="max"), "pooling is 'max', expected one of mean, first"),
        (lambda: encoder()(np.zeros((1, 25), "int32")), "has 25 tokens, expected at most the window's 24"),
        (lambda: GPT2Classifier.from_preset("gpt2-test", load_weights=False), "is no classifier, expected labels"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(UserError, match=message):
        make()


# === Ordinary Keras models ===


@pytest.mark.parametrize("make", [encoder, gpt2])
def test_fit_evaluate_predict(make):
    made = make(dropout=0.1)
    made.compile(
        optimizer=keras.optimizers.Adam(5e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    random = np.random.default_rng(0)
    token_ids, mask = random.integers(3, 50, (96, 8)), np.ones((96, 8), "int32")
    mask[:, 6:] = random.integers(0, 2, (96, 1))
    classes = random.integers(0, 3, 96)
    token_ids[np.arange(96), random.integers(0, 6, 96)] = classes  # one of the tokens 0, 1, 2 tells the class
    x = {"token_ids": token_ids, "padding_mask": mask}
    made.fit(x, classes, batch_size=16, epochs=25, verbose=0)
    assert made.evaluate(x, classes, verbose=0, return_dict=True)["accuracy"] > 0.9
    assert made.predict(x, verbose=0).shape == (96, 3)


@pytest.mark.parametrize("make", [encoder, gpt2])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_keras_file_round_trip(make, policy, tmp_path):
    made = make(dtype=policy, dropout=0.1)
    made.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == made.get_config()
    assert loaded.labels == tuple(LABELS)
    np.testing.assert_array_equal(loaded(np.array([ROW])), made(np.array([ROW])))


# === GPT-2, pretrained and frozen ===


def test_a_pretrained_backbone_is_the_language_models(tmp_path):
    language_model = GPT2CausalLM(GPT2Backbone(**SMALL))
    language_model.save_to_preset(tmp_path / "lm")
    made = GPT2Classifier.from_preset(tmp_path / "lm", labels=LABELS, seed=1)
    hidden = language_model.backbone(np.array([ROW]))[:, -1]
    np.testing.assert_allclose(made(np.array([ROW])), hidden @ made.score.kernel, atol=1e-6)
    again = GPT2Classifier.from_preset(tmp_path / "lm", labels=LABELS, seed=1)
    np.testing.assert_array_equal(again.score.kernel, made.score.kernel)
    assert np.std(made.score.kernel) == pytest.approx(0.02, rel=0.5)


@pytest.mark.parametrize("frozen", [True, False])
def test_freezing(frozen):
    made = GPT2Classifier(GPT2Backbone(**SMALL, dropout=0.5), LABELS, freeze_backbone=frozen)
    assert len(made.trainable_variables) == (1 if frozen else 1 + 2 + 2 * 12 + 2)
    before = [variable.numpy() for variable in made.variables]
    made.compile(
        optimizer=keras.optimizers.SGD(1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    made.fit(np.array([ROW]), np.array([1]), verbose=0)
    changed = [not np.array_equal(a, b) for a, b in zip(before, made.variables)]
    assert changed[-1] and any(changed[:-1]) == (not frozen)
    same = np.array_equal(made(np.array([ROW]), training=True), made(np.array([ROW])))
    assert same == frozen  # a frozen backbone drops nothing
    assert GPT2Classifier.from_config(made.get_config()).freeze_backbone == frozen
