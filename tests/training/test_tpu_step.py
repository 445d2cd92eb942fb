"""What a TPU asks of a training step, shown without one: it compiles for fixed shapes and needs nothing of the host."""

import re

import keras
import pytest
import tensorflow as tf

from tfgpt.text import CharacterTokenizer
from tfgpt.training.distributed_fit import distributed_model_class
from tfgpt.training.language_modeling import make_model
from tfgpt.training.run_config import RunConfig

B, T = 4, 16

# Operations that run on the host, or whose result has as many elements as their input says.
HOST = re.compile(r"PyFunc|String|Print|Assert|Iterator|HostCompute|ReadFile|WriteFile|Summary")
DYNAMIC = re.compile(r"^(Where|Unique|UniqueV2|NonMaxSuppression.*|DynamicPartition|BooleanMask|Ragged.*)$")


@pytest.fixture(scope="module")
def model():
    config = RunConfig(data=["x"], out="y", precision="mixed_bfloat16", compile="none")
    shape = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "max_sequence_length": T, "dropout": 0.1}
    return make_model(config, shape, CharacterTokenizer.train(["the quick brown fox"]))


def compiled_step(step):
    specs = (tf.TensorSpec((B, T), tf.int32), tf.TensorSpec((B, T), tf.int32))
    return tf.function(step, jit_compile=True, autograph=False).get_concrete_function(specs)


def operations(function):
    """Every operation of a function and of those that it calls."""
    found, graphs, seen = [], [function.graph], set()
    while graphs:
        graph = graphs.pop()
        found += graph.get_operations()
        inner = {name: called for name, called in graph._functions.items() if name not in seen}
        seen |= set(inner)
        graphs += [called.graph for called in inner.values()]
    return found


def objections(function):
    """What a TPU could not compile."""
    wrong = []
    for operation in operations(function):
        if HOST.search(operation.type) or DYNAMIC.match(operation.type):
            wrong.append(operation.type)
        wrong += [f"{t.name} {t.shape}" for t in operation.outputs if not t.shape.is_fully_defined()]
        wrong += [f"{t.name} {t.dtype}" for t in operation.outputs if t.dtype == tf.string]
    return wrong


def test_the_training_step_is_static_and_needs_no_host(model):
    function = compiled_step(model.train_step)
    assert len(operations(function)) > 300
    assert objections(function) == []


def test_the_training_step_compiles_and_multiplies_in_bfloat16(model):
    step = tf.function(model.train_step, jit_compile=True, autograph=False)
    tokens = tf.ones((B, T), tf.int32)
    hlo = step.experimental_get_compiler_ir((tokens, tokens))(stage="hlo")
    products = re.findall(r"= (\w+)\[[^\]]*\]\S* dot\(", hlo)
    assert len(products) > 20 and products.count("bf16") > len(products) // 2
    assert not re.search(r"custom-call.*(callback|host)|\[<=\d+", hlo)  # [<=n] is a bounded dynamic shape
    before = float(step((tokens, tokens))["loss"])
    for _ in range(20):
        after = step((tokens, tokens))["loss"]
    assert float(after) < before


@pytest.mark.parametrize(
    "bad",
    [
        lambda x: tf.numpy_function(lambda a: a, [x], tf.int32),
        lambda x: tf.boolean_mask(x, x > 0),
        lambda x: tf.strings.length(tf.strings.as_string(x)),
        lambda x: tf.map_fn(lambda row: tf.unique(row)[0][:1], x),
    ],
)
def test_host_operations_and_dynamic_shapes_are_found(bad):
    specs = [tf.TensorSpec((B, T), tf.int32)]
    assert objections(tf.function(bad, autograph=False).get_concrete_function(*specs))


def test_without_a_strategy_the_model_is_as_it_was():
    assert distributed_model_class(keras.Model) is keras.Model
