import keras
import numpy as np
import pytest

from tests.models import gpt2_numpy
from tfgpt.models import PRESETS, GPT2Backbone
from tfgpt.models.gpt2.backbone import positions_from_mask
from tfgpt.models.gpt2.hugging_face import named_variables

SMALL = {"vocabulary_size": 50, "num_layers": 3, "num_heads": 2, "hidden_dim": 16, "max_sequence_length": 24}
IDS = np.random.default_rng(0).integers(0, 50, (2, 9))


@pytest.fixture(scope="module")
def backbone():
    backbone = GPT2Backbone(**SMALL)
    weights = gpt2_numpy.random_weights(3, 16, 50, 24)
    for name, variable in named_variables(backbone).items():
        variable.assign(weights[name])
    return backbone


@pytest.fixture
def without_memory():
    """A scope in which variables have shapes but no values: the largest preset's would fill 6 GB."""
    with keras.StatelessScope(initialize_variables=False):
        yield
    keras.backend.clear_session()  # else the next scope would fill them


# === Sizes ===


@pytest.mark.parametrize(
    "name, count",
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("gpt2-small-cpu", 13_891_584),
        ("gpt2-mini", 1_334_016),
        ("gpt2-test", 36_096),
    ],
)
def test_parameter_counts(name, count, without_memory):
    config = PRESETS[name]
    backbone = GPT2Backbone(**config)
    assert backbone.count_params() == count
    sizes = [config[key] for key in ("num_layers", "hidden_dim", "vocabulary_size", "max_sequence_length")]
    found = {name: tuple(variable.shape) for name, variable in named_variables(backbone).items()}
    assert found == gpt2_numpy.shapes(*sizes)
    assert len(found) == len(backbone.weights) == len(backbone.trainable_weights)


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_published_sizes_have_heads_of_64(name):
    config = PRESETS[name]
    assert config["hidden_dim"] == 64 * config["num_heads"]
    assert (config["vocabulary_size"], config["max_sequence_length"], config["dropout"]) == (50257, 1024, 0.1)


def test_every_preset_is_counted():
    (counted,) = (mark for mark in test_parameter_counts.pytestmark if mark.name == "parametrize")
    assert {name for name, _ in counted.args[1]} == set(PRESETS)


def test_intermediate_dim_is_four_times_the_width_by_default():
    assert GPT2Backbone(**SMALL).intermediate_dim == 64
    assert GPT2Backbone(**SMALL, intermediate_dim=20).blocks[0].feed_forward.sublayer.output_dense.input_dim == 20


# === Initialization ===


@pytest.mark.parametrize("stddev", [None, 0.1])
def test_initialization(stddev):
    config = SMALL | {"hidden_dim": 128, "vocabulary_size": 300, "max_sequence_length": 100}
    backbone = GPT2Backbone(**config, **({"initializer_range": stddev} if stddev else {}))
    stddev = stddev or 0.02
    for name, variable in named_variables(backbone).items():
        values = variable.numpy()
        if "ln_" in name and name.endswith("weight"):
            assert (values == 1).all(), name
        elif name.endswith("bias"):
            assert (values == 0).all(), name
        else:
            expected = stddev / np.sqrt(2 * 3) if name.endswith("c_proj.weight") else stddev
            assert values.std() == pytest.approx(expected, rel=0.03), name
            assert abs(values.mean()) < 0.05 * expected, name


def test_no_two_matrices_have_the_same_numbers():
    backbone = GPT2Backbone(**SMALL)
    firsts = [float(v[0, 0]) / float(np.std(v)) for v in backbone.weights if len(v.shape) == 2]
    assert len(set(np.round(firsts, 4))) == len(firsts) == 2 + 4 * 3


def test_initialization_follows_the_seed():
    def weights(seed):
        keras.utils.set_random_seed(seed)
        return GPT2Backbone(**SMALL).get_weights()

    first, again, other = weights(1), weights(1), weights(2)
    for before, after in zip(first, again, strict=True):
        np.testing.assert_array_equal(before, after)
    assert not np.array_equal(first[0], other[0])


# === Padding ===


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.filterwarnings("ignore:You are using a softmax over axis")  # of a single key: right so
def test_padded_rows_equal_unpadded_ones(backbone, side):
    lengths = (9, 4, 1)
    ids, mask = np.full((3, 12), 7), np.zeros((3, 12), "int32")
    rows = [IDS[0, :length] for length in lengths]
    places = [slice(12 - n, 12) if side == "left" else slice(0, n) for n in lengths]
    for row, place in enumerate(places):
        ids[row, place], mask[row, place] = rows[row], 1
    for dtype in ("int32", "bool"):
        y = backbone({"token_ids": ids, "padding_mask": mask.astype(dtype)})
        assert np.isfinite(y).all()
        for row, place in enumerate(places):
            np.testing.assert_allclose(y[row, place], backbone(rows[row][None])[0], atol=1e-5)


def test_neighbours_change_nothing(backbone):
    y = backbone(IDS)
    other = IDS.copy()
    other[:, 5:] = (other[:, 5:] + 1) % 50
    np.testing.assert_allclose(backbone(other)[:, :5], y[:, :5], atol=1e-5)  # the future
    assert np.abs(backbone(other)[:, 5:] - y[:, 5:]).max() > 0.1
    np.testing.assert_allclose(backbone(IDS[1:]), y[1:], atol=1e-5)  # batch mates
    np.testing.assert_allclose(backbone({"token_ids": IDS}), y, atol=1e-6)
    everything = {"token_ids": IDS, "padding_mask": np.ones_like(IDS)}
    np.testing.assert_allclose(backbone(everything), y, atol=1e-5)


def test_positions_of_ones_own(backbone):
    shifted = backbone(IDS, position_ids=np.arange(3, 12))
    assert np.abs(shifted - backbone(IDS)).max() > 0.1
    np.testing.assert_allclose(backbone(IDS, position_ids=np.arange(9)), backbone(IDS), atol=1e-6)
    np.testing.assert_allclose(backbone(IDS, position_ids=np.tile(np.arange(9), (2, 1))), backbone(IDS), atol=1e-6)


def test_positions_from_mask():
    mask = np.array([[0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]])
    for dtype in ("int32", "bool"):
        found = positions_from_mask(mask.astype(dtype))
        np.testing.assert_array_equal(found, [[0, 0, 0, 1], [0, 1, 1, 1], [0, 1, 2, 3]])


# === Cache ===


def test_empty_cache(backbone):
    for length in (0, 5):
        cache = backbone.empty_cache(4, length)
        assert len(cache) == 3
        assert {tuple(tensor.shape) for pair in cache for tensor in pair} == {(4, 2, length, 8)}
    half = GPT2Backbone(**SMALL, dtype="mixed_bfloat16").empty_cache(4)
    assert half[0][0].dtype == "bfloat16"


def test_a_cache_needs_positions(backbone):
    with pytest.raises(ValueError, match="needs position_ids"):
        backbone(IDS, cache=backbone.empty_cache(2))


# === Dropout, dtypes, saving ===


def test_dropout_only_in_training():
    backbone = GPT2Backbone(**SMALL, dropout=0.3)
    np.testing.assert_array_equal(backbone(IDS), backbone(IDS, training=False))
    assert not np.allclose(backbone(IDS, training=True), backbone(IDS), atol=1e-3)
    rates = {layer.rate for layer in backbone._flatten_layers() if isinstance(layer, keras.layers.Dropout)}
    assert rates == {0.3}
    for layer in backbone._flatten_layers():
        if isinstance(layer, keras.layers.Dropout) and layer is not backbone.embeddings_dropout:
            layer.rate = 0.0
    assert not np.allclose(backbone(IDS, training=True), backbone(IDS), atol=1e-3)


@pytest.mark.parametrize("policy, dtype", [("mixed_bfloat16", "bfloat16"), ("mixed_float16", "float16")])
def test_mixed_precision(backbone, policy, dtype):
    half = GPT2Backbone(**SMALL, dtype=policy)
    half.set_weights(backbone.get_weights())
    y = half(IDS)
    assert y.dtype == dtype and all(w.dtype == "float32" for w in half.weights)
    error = np.abs(keras.ops.cast(y, "float32") - backbone(IDS))
    assert 0 < error.mean() < 0.05  # of values whose standard deviation is about 1


def test_configuration_round_trip():
    options = {"dropout": 0.1, "activation": "relu", "layer_norm_epsilon": 0.01, "initializer_range": 0.1}
    backbone = GPT2Backbone(**SMALL, **options, intermediate_dim=20, dtype="mixed_bfloat16", name="of_its_own")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(backbone))
    assert again.get_config() == backbone.get_config()
    assert again.dtype_policy == backbone.dtype_policy
    for name, value in {**SMALL, **options, "intermediate_dim": 20, "name": "of_its_own"}.items():
        assert getattr(again, name) == value
    again.set_weights(backbone.get_weights())
    np.testing.assert_array_equal(keras.ops.cast(again(IDS), "float32"), keras.ops.cast(backbone(IDS), "float32"))


def test_keras_file_round_trip(backbone, tmp_path):
    backbone.save(tmp_path / "backbone.keras")
    loaded = keras.saving.load_model(tmp_path / "backbone.keras")
    np.testing.assert_array_equal(loaded(IDS), backbone(IDS))


def test_a_sequence_past_the_window_is_one_sentence():
    model = GPT2Backbone(vocabulary_size=10, num_layers=1, num_heads=1, hidden_dim=4, max_sequence_length=8)
    with pytest.raises(ValueError, match="the sequence has 9 tokens, expected at most the window's 8"):
        model(np.zeros((1, 9), "int32"))
