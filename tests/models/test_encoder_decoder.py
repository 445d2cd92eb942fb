import json

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import encoder_decoder_numpy as witness
from tests.models.gpt2_numpy import relative_error
from tfgpt.errors import UserError
from tfgpt.models import ENCODER_DECODER_PRESETS, EncoderDecoderBackbone, EncoderDecoderTransformer
from tfgpt.models.encoder_decoder.model_directory import named_variables

SMALL = {
    "vocabulary_size": 40,
    "num_encoder_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 24,
    "max_sequence_length": 24,
}
RANDOM = np.random.default_rng(0)
SOURCE, TARGET = RANDOM.integers(0, 40, 7), RANDOM.integers(0, 40, 5)
VARIANTS = {
    "pre": {},
    "post": {"normalization": "post"},
    "learned": {"positions": "learned"},
    "separate": {"share_embeddings": False},
    "unscaled": {"scale_embeddings": False},
    "epsilon": {"layer_norm_epsilon": 0.1},
}


def made(**options):
    """A model with weights as training leaves them, and these weights."""
    model = EncoderDecoderTransformer(EncoderDecoderBackbone(**(SMALL | options)))
    variables = named_variables(model.backbone)
    weights = witness.randomized({name: variable.shape for name, variable in variables.items()})
    for name, variable in variables.items():
        variable.assign(weights[name])
    return model, weights


@pytest.fixture(scope="module")
def model():
    return made()[0]


def logits(model, source, target, mask=None):
    inputs = {"source_ids": np.atleast_2d(source), "target_ids": np.atleast_2d(target)}
    if mask is not None:
        inputs["source_padding_mask"] = np.atleast_2d(mask)
    return np.asarray(model(inputs))


def expected(weights, options):
    epsilon, pre_norm = options.get("layer_norm_epsilon", 1e-5), options.get("normalization", "pre") == "pre"
    scale = options.get("scale_embeddings", True)
    return witness.forward(weights, SOURCE, TARGET, SMALL["num_heads"], pre_norm, scale, epsilon)


# === Logits ===


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_paper(variant):
    model, weights = made(**VARIANTS[variant])
    assert relative_error(logits(model, SOURCE, TARGET)[0], expected(weights, VARIANTS[variant])) < 1e-5


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "pre"])
def test_variants_are_told_apart(variant, model):
    """Weights of the variant in a model without it, as far as it has them, give other logits."""
    other, weights = made(**VARIANTS[variant])
    weights = {"embedding.weight": weights.get("decoder.embedding.weight"), **weights}
    plain, _ = made()
    for name, variable in named_variables(plain.backbone).items():
        if name in weights:
            variable.assign(weights[name])
    assert relative_error(logits(plain, SOURCE, TARGET), logits(other, SOURCE, TARGET)) > 1e-3


def test_the_output_projection_is_the_targets_embedding():
    model, _ = made(share_embeddings=False)
    before = logits(model, SOURCE, TARGET)
    unused = next(i for i in range(40) if i not in SOURCE and i not in TARGET)
    source, target = model.backbone.source_embedding.embeddings, model.backbone.target_embedding.embeddings
    source.assign(np.where(np.arange(40)[:, None] == unused, 0, source))
    np.testing.assert_array_equal(logits(model, SOURCE, TARGET), before)
    target.assign(np.where(np.arange(40)[:, None] == unused, 0, target))
    after = logits(model, SOURCE, TARGET)
    assert (after[..., unused] == 0).all() and (before[..., unused] != 0).all()


@pytest.mark.parametrize("policy, tolerance", [("mixed_bfloat16", 0.1), ("mixed_float16", 0.01)])
def test_logits_are_float32_under_every_policy(model, policy, tolerance):
    found = made(dtype=policy)[0]({"source_ids": SOURCE[None], "target_ids": TARGET[None]})
    assert found.dtype == "float32"
    assert 0 < relative_error(found, logits(model, SOURCE, TARGET)) < tolerance


# === Masks ===


@pytest.mark.filterwarnings("ignore:You are using a softmax over axis")  # of a single key: right so
@given(st.data())
@settings(max_examples=15, deadline=None)
def test_outputs_stay_when_padding_grows_batch_mates_change_and_the_future_changes(model, data):
    """The first pair's logits, in float32, whatever stands around it."""
    ids = st.integers(0, 39)
    source = data.draw(st.lists(ids, min_size=1, max_size=9))
    target = data.draw(st.lists(ids, min_size=1, max_size=6))
    mate = data.draw(st.lists(ids, min_size=1, max_size=9))
    width = max(len(source), len(mate)) + data.draw(st.integers(0, 6))
    filling, future = data.draw(ids), data.draw(st.lists(ids, max_size=6))
    alone = logits(model, source, target)[0]
    rows = [row + [filling] * (width - len(row)) for row in (source, mate)]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in (source, mate)]
    targets = [target + future, data.draw(st.lists(ids, min_size=len(target + future), max_size=len(target + future)))]
    together = logits(model, rows, targets, mask)[0, : len(target)]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_real_tokens_do_matter(model):
    """The property above is not one of a model that reads nothing."""
    before = logits(model, SOURCE, TARGET)
    for change in range(len(SOURCE)):
        source = np.where(np.arange(len(SOURCE)) == change, (SOURCE + 1) % 40, SOURCE)
        assert np.abs(logits(model, source, TARGET) - before).max(axis=(0, 2)).min() > 1e-3
    target = np.concatenate([[(TARGET[0] + 1) % 40], TARGET[1:]])
    assert np.abs(logits(model, SOURCE, target) - before).max(axis=(0, 2)).min() > 1e-3


# === Caches ===


@pytest.mark.parametrize("steps", [[5], [1] * 5, [3, 1, 1]])
@pytest.mark.parametrize("preallocated", [False, True])
@pytest.mark.parametrize("variant", ["pre", "post", "learned"])
@pytest.mark.filterwarnings("ignore:You are using a softmax over axis")  # of a single key: right so
def test_caches_equal_one_pass(variant, steps, preallocated):
    model, _ = made(**VARIANTS[variant])
    sources, mask = np.stack([SOURCE, SOURCE[::-1]]), np.array([[1] * 7, [1] * 4 + [0] * 3])
    targets = np.stack([TARGET, TARGET[::-1]])
    memory_cache = model.memory_cache(model.encode(sources, mask))
    cache = model.backbone.empty_cache(2, 6 if preallocated else 0)
    found, start = [], 0
    for count in steps:
        index = start if preallocated else None
        part, cache = model.call_with_cache(targets[:, start : start + count], memory_cache, mask, cache, index)
        found.append(part)
        start += count
    np.testing.assert_allclose(np.concatenate(found, axis=1), logits(model, sources, targets, mask), atol=1e-5)
    assert cache[0][0].shape == (2, 2, 6 if preallocated else 5, 8)


def test_last_logits_alone(model):
    memory_cache = model.memory_cache(model.encode(SOURCE[None]))
    found, _ = model.call_with_cache(TARGET[None], memory_cache, None, model.backbone.empty_cache(1), last_only=True)
    np.testing.assert_allclose(found[:, 0], logits(model, SOURCE, TARGET)[:, -1], atol=1e-5)


def test_score_is_the_sum_of_log_probabilities():
    model, weights = made()
    scores = expected(weights, {})[:-1]
    log_probabilities = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    wanted = log_probabilities[np.arange(4), TARGET[1:]].sum()
    np.testing.assert_allclose(model.score(SOURCE[None], TARGET[None]), [wanted], rtol=1e-5)
    padded = np.array([[*TARGET, 0, 3]])
    found = model.score(SOURCE[None], padded, target_padding_mask=[[1] * 5 + [0] * 2])
    np.testing.assert_allclose(found, [wanted], rtol=1e-5)


# === An ordinary Keras model ===


def test_fit_learns_to_copy():
    keras.utils.set_random_seed(0)
    model = EncoderDecoderTransformer(EncoderDecoderBackbone(**(SMALL | {"hidden_dim": 32})))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(3e-3), loss=loss, metrics=["accuracy"])
    sources = np.random.default_rng(0).integers(1, 12, (256, 4))
    targets = np.pad(sources, ((0, 0), (1, 0)))  # 0 begins each target
    inputs = {"source_ids": sources, "target_ids": targets[:, :-1]}
    model.fit(inputs, targets[:, 1:], batch_size=32, epochs=15, verbose=0)
    assert model.evaluate(inputs, targets[:, 1:], verbose=0, return_dict=True)["accuracy"] > 0.9


def test_dropout_is_on_in_training_alone():
    model, _ = made(dropout=0.5)
    inputs = {"source_ids": SOURCE[None], "target_ids": TARGET[None]}
    np.testing.assert_array_equal(model(inputs), model(inputs))
    assert np.abs(model(inputs, training=True) - model(inputs, training=True)).max() > 1e-2


def test_every_weight_has_a_gradient():
    import tensorflow as tf

    for options in VARIANTS.values():
        model, _ = made(**options)
        with tf.GradientTape() as tape:
            loss = -tf.reduce_sum(model.score(SOURCE[None], TARGET[None]))
        for variable, gradient in zip(model.trainable_variables, tape.gradient(loss, model.trainable_variables)):
            assert np.abs(tf.convert_to_tensor(gradient)).max() > 0, variable.path


@pytest.mark.parametrize("variant", VARIANTS)
def test_keras_file_round_trip(variant, tmp_path):
    model, weights = made(dropout=0.1, **VARIANTS[variant])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == model.get_config()
    for name, variable in named_variables(loaded.backbone).items():
        np.testing.assert_array_equal(variable, weights[name], name)
    np.testing.assert_array_equal(logits(loaded, SOURCE, TARGET), logits(model, SOURCE, TARGET))


# === The model directory ===


@pytest.mark.parametrize("variant", VARIANTS)
def test_model_directory_round_trip(variant, tmp_path):
    model, _ = made(dropout=0.1, attention_dropout=0.2, **VARIANTS[variant])
    model.save_to_preset(tmp_path / "model")
    loaded = EncoderDecoderTransformer.from_preset(tmp_path / "model")
    config, found = model.backbone.get_config(), loaded.backbone.get_config()
    assert found == config | {"name": found["name"]}
    np.testing.assert_array_equal(logits(loaded, SOURCE, TARGET), logits(model, SOURCE, TARGET))


def test_every_variable_is_stored_once(model):
    names = named_variables(model.backbone)
    assert {id(variable) for variable in names.values()} == {id(variable) for variable in model.variables}
    assert len(names) == len(model.variables)


@pytest.mark.parametrize(
    "key, value, sentence",
    [
        ("model_type", "gpt2", "model_type 'gpt2', expected 'tfgpt_encoder_decoder'"),
        ("vocab_size", 0, "vocab_size 0, expected a positive integer"),
        ("encoder_layers", "2", "encoder_layers '2', expected a positive integer"),
        ("decoder_attention_heads", 4, "decoder_attention_heads 4, expected 2 as in encoder_attention_heads"),
        ("positions", "rotary", "positions 'rotary', expected one of sinusoidal, learned"),
        ("normalization", None, "normalization None, expected one of pre, post, none"),
        ("activation_function", "abs", "activation_function 'abs', expected one of"),
        ("dropout", 1.5, "dropout 1.5, expected a number from 0 to below 1"),
        ("scale_embedding", "yes", "scale_embedding 'yes', expected true or false"),
        ("d_model", 17, "d_model 17, expected a multiple of the 2 heads"),
    ],
)
def test_a_broken_config_is_one_sentence(model, tmp_path, key, value, sentence):
    model.save_to_preset(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError) as error:
        EncoderDecoderTransformer.from_preset(tmp_path / "model")
    assert str(error.value).startswith(f"{path} has {sentence}") and "\n" not in str(error.value)


def test_weights_of_another_model_are_refused(model, tmp_path):
    model.save_to_preset(tmp_path / "model")
    made(share_embeddings=False)[0].save_to_preset(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(tmp_path / "model" / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks embedding.weight and has unknown decoder.embedding.weight"):
        EncoderDecoderTransformer.from_preset(tmp_path / "model")


def test_presets():
    for name, config in ENCODER_DECODER_PRESETS.items():
        assert config["hidden_dim"] % config["num_heads"] == 0, name
    with pytest.raises(UserError, match="preset 'transformer-tiny' is a size without weights here"):
        EncoderDecoderTransformer.from_preset("transformer-tiny")
    with pytest.raises(UserError, match="unknown preset 'transformer-tinny'.*did you mean 'transformer-tiny'"):
        EncoderDecoderTransformer.from_preset("transformer-tinny", load_weights=False)


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_sequence_longer_than_the_window_is_refused(model, side):
    inputs = {"source_ids": SOURCE[None], "target_ids": TARGET[None], f"{side}_ids": np.ones((1, 25), int)}
    with pytest.raises(UserError, match=f"the {side} has 25 tokens, expected at most the window's 24"):
        model(inputs)
