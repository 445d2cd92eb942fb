import keras
import numpy as np
import pytest

from tests.models import gpt2_numpy
from tfgpt.layers import Dense
from tfgpt.models import GPT2Backbone, GPT2CausalLM
from tfgpt.models.gpt2.hugging_face import named_variables

SMALL = {"vocabulary_size": 50, "num_layers": 3, "num_heads": 2, "hidden_dim": 16, "max_sequence_length": 24}
WEIGHTS = gpt2_numpy.random_weights(3, 16, 50, 24)
IDS = np.random.default_rng(0).integers(0, 50, (2, 9))


def made(config=SMALL, weights=WEIGHTS, **options):
    model = GPT2CausalLM(GPT2Backbone(**config, **options))
    for name, variable in named_variables(model.backbone).items():
        variable.assign(weights[name])
    return model


@pytest.fixture(scope="module")
def model():
    return made()


# === Logits ===


@pytest.mark.parametrize("epsilon", [1e-5, 0.1])
def test_logits_are_those_of_the_paper(epsilon):
    weights = {name: w.astype("float64") for name, w in WEIGHTS.items()}
    expected = gpt2_numpy.forward(weights, IDS, num_heads=2, epsilon=epsilon)
    assert gpt2_numpy.relative_error(made(layer_norm_epsilon=epsilon)(IDS), expected) < 1e-5


@pytest.mark.parametrize("change", ["gelu", "epsilon", "scale", "heads", "positions", "tying"])
def test_the_witness_sees_every_detail(model, change):
    """A model that differs in one detail from the paper's leaves the tolerance of the test above."""
    altered, ids = dict(WEIGHTS), IDS
    if change == "gelu":
        found = made(activation="gelu")(ids)
    elif change == "epsilon":
        found = made(layer_norm_epsilon=1e-3)(ids)
    elif change == "heads":
        found = made(SMALL | {"num_heads": 4})(ids)
    elif change == "scale":
        altered = {name: w * 1.001 if "c_attn.weight" in name else w for name, w in WEIGHTS.items()}
        found = made(weights=altered)(ids)
    elif change == "positions":
        found = model.logits(model.backbone(ids, position_ids=np.arange(1, 10)))
    else:
        found = Dense(50, use_bias=False)(model.backbone(ids))
    assert gpt2_numpy.relative_error(found, gpt2_numpy.forward(WEIGHTS, IDS, num_heads=2)) > 3e-5


@pytest.mark.slow
def test_logits_of_the_124_million_preset_are_those_of_the_paper():
    weights = gpt2_numpy.random_weights(12, 768, 50257, 1024)
    model = GPT2CausalLM.from_preset("gpt2", load_weights=False, seed=0)
    assert model.count_params() == 124_439_808
    for name, variable in named_variables(model.backbone).items():
        variable.assign(weights[name])
    ids = np.random.default_rng(0).integers(0, 50257, (1, 64))
    assert gpt2_numpy.relative_error(model(ids), gpt2_numpy.forward(weights, ids, num_heads=12)) < 1e-4


@pytest.mark.parametrize("policy, tolerance", [("mixed_bfloat16", 0.1), ("mixed_float16", 0.01)])
def test_logits_are_float32_under_every_policy(model, policy, tolerance):
    half = made(dtype=policy)
    logits = half(IDS)
    assert logits.dtype == "float32"
    assert half.predict(IDS, verbose=0).dtype == np.float32
    assert 0 < gpt2_numpy.relative_error(logits, model(IDS)) < tolerance


# === Cache ===


@pytest.mark.parametrize("steps", [[9], [1] * 9, [5, 1, 3]])
@pytest.mark.parametrize("preallocated", [False, True])
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.filterwarnings("ignore:You are using a softmax over axis")  # of a single key: right so
def test_cache_equals_one_pass(model, steps, preallocated, padding):
    mask = np.ones((2, 9), "int32")
    mask[1, :padding] = 0  # on the left, as for generation
    position_ids = np.maximum(mask.cumsum(1) - 1, 0)
    expected = model({"token_ids": IDS, "padding_mask": mask})

    slots = 12 if preallocated else 0
    cache, start = model.backbone.empty_cache(2, slots), 0
    keys_mask = np.concatenate([mask, np.zeros((2, 3), "int32")], axis=1) if preallocated else mask
    for step in steps:
        stop = start + step
        logits, cache = model.call_with_cache(
            IDS[:, start:stop],
            keys_mask if preallocated else keys_mask[:, :stop],
            cache,
            position_ids[:, start:stop],
            cache_index=start if preallocated else None,
        )
        real = mask[:, start:stop] == 1
        np.testing.assert_allclose(logits[real], expected[:, start:stop][real], atol=1e-5)
        start = stop
    assert cache[0][0].shape == (2, 2, slots or 9, 8)


def test_last_logits_alone(model):
    arguments = (IDS, np.ones_like(IDS), model.backbone.empty_cache(2), np.tile(np.arange(9), (2, 1)))
    logits, _ = model.call_with_cache(*arguments, last_only=True)
    assert logits.shape == (2, 1, 50)
    np.testing.assert_allclose(logits, model(IDS)[:, -1:], atol=1e-5)


def test_no_dropout_with_a_cache():
    model = made(dropout=0.5)
    arguments = (IDS, np.ones_like(IDS), model.backbone.empty_cache(2), np.tile(np.arange(9), (2, 1)))
    np.testing.assert_allclose(model.call_with_cache(*arguments)[0], model(IDS), atol=1e-5)


# === An ordinary Keras model ===


def test_fit_evaluate_predict():
    model = GPT2CausalLM(GPT2Backbone(**SMALL))
    model.compile(
        optimizer=keras.optimizers.Adam(1e-2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    windows = np.tile(np.arange(10) + np.arange(8)[:, None], (4, 1))  # the next id is one more
    x, y = windows[:, :-1], windows[:, 1:]
    before = model.evaluate(x, y, verbose=0, return_dict=True)
    assert before["loss"] == pytest.approx(np.log(50), rel=0.05)
    history = model.fit(x, y, batch_size=8, epochs=12, verbose=0)
    after = model.evaluate(x, y, verbose=0, return_dict=True)
    assert history.history["loss"][-1] < 1 and after["loss"] < 1 and after["accuracy"] > 0.8
    predictions = model.predict(x, batch_size=8, verbose=0)
    assert predictions.shape == (32, 9, 50)
    np.testing.assert_allclose(predictions, model(x), atol=1e-4)
    assert (predictions.argmax(-1) == y).mean() == pytest.approx(after["accuracy"], abs=1e-6)


def test_fit_with_padding_and_sample_weights():
    model = made()
    model.compile(
        optimizer=keras.optimizers.SGD(0.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum"),
    )
    mask = np.ones((2, 8), "float32")
    mask[0, 5:] = 0
    x = {"token_ids": IDS[:, :-1], "padding_mask": mask}
    loss = model.fit(x, IDS[:, 1:], sample_weight=mask, verbose=0).history["loss"][0]
    log_probabilities = keras.ops.log_softmax(model(IDS[:, :-1])).numpy()
    chosen = np.take_along_axis(log_probabilities, IDS[:, 1:, None], axis=2)[..., 0]
    assert loss == pytest.approx(-(chosen * mask).sum(), rel=1e-4)


def test_every_weight_has_a_gradient():
    import tensorflow as tf

    model = made()
    with tf.GradientTape() as tape:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(IDS[:, 1:], model(IDS[:, :-1]))
    for variable, gradient in zip(model.trainable_variables, tape.gradient(loss, model.trainable_variables)):
        assert gradient is not None and np.abs(tf.convert_to_tensor(gradient)).max() > 0, variable.path


def test_summary_and_count(model):
    lines = []
    model.summary(print_fn=lambda line, **_: lines.append(line))
    assert model.count_params() == sum(w.size for w in WEIGHTS.values())
    assert f"{model.count_params():,}" in "\n".join(lines)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_keras_file_round_trip(policy, tmp_path):
    model = made(dtype=policy, dropout=0.1)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, GPT2CausalLM)
    assert loaded.get_config() == model.get_config()
    assert loaded.dtype_policy == model.dtype_policy == loaded.backbone.dtype_policy
    for name, variable in named_variables(loaded.backbone).items():
        np.testing.assert_array_equal(variable, WEIGHTS[name], name)
    np.testing.assert_array_equal(loaded(IDS), model(IDS))


def test_keras_file_of_a_compiled_model_continues(tmp_path):
    model = made()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss, jit_compile=False)
    model.fit(IDS[:, :-1], IDS[:, 1:], verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        each.fit(IDS[:, :-1], IDS[:, 1:], verbose=0)
    assert loaded.optimizer.iterations == 2
    np.testing.assert_allclose(loaded(IDS), model(IDS), atol=1e-5)


def test_a_layer_of_another_model(model):
    inputs = keras.Input((None,), dtype="int32")
    outer = keras.Model(inputs, keras.layers.Softmax()(model(inputs)))
    assert outer.output_shape == (None, None, 50)
    np.testing.assert_allclose(outer(IDS), keras.ops.softmax(model(IDS)), atol=1e-6)
