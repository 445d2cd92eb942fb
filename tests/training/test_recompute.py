"""Blocks that compute their activations again: the same gradients, from a graph that has the forward pass twice."""

import functools
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfgpt.cli.main import main
from tfgpt.models import GPT2Backbone
from tfgpt.training.kernels import fused_kernel, step_kernel
from tfgpt.training.losses import TokenLoss
from tfgpt.training.optimizer import make_optimizer
from tfgpt.training.recompute import recompute_blocks
from tfgpt.training.run_config import RunConfig
from tfgpt.training.train_step import TrainingCausalLM

ROOT = pathlib.Path(__file__).parents[2]
LAYERS = 3
SHAPE = {
    "vocabulary_size": 30,
    "num_layers": LAYERS,
    "num_heads": 2,
    "hidden_dim": 16,
    "max_sequence_length": 8,
    "initializer_range": 0.2,
}


def gradients_of(recompute, jit_compile=False, dtype=None):
    """A compiled function of token ids: the backbone's gradients for the sum of its squared output."""
    keras.utils.set_random_seed(0)
    backbone = GPT2Backbone(**SHAPE, dtype=dtype)
    if recompute:
        recompute_blocks(backbone)

    @tf.function(jit_compile=jit_compile, autograph=False)
    def gradients(token_ids):
        with tf.GradientTape() as tape:
            y = tf.cast(backbone(token_ids, training=True), "float32")
            loss = tf.reduce_mean(y**2 * tf.sin(tf.range(16.0)))
        found = tape.gradient(loss, [v.value for v in backbone.trainable_variables])
        return [loss, *map(tf.convert_to_tensor, found)]

    return gradients


@pytest.fixture(scope="module")
def token_ids():
    return tf.constant(np.random.default_rng(0).integers(0, 30, (2, 8)))


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("mixed_bfloat16", 0.05)])
def test_gradients_are_those_without(token_ids, jit_compile, dtype, tolerance):
    expected = gradients_of(False)(token_ids)
    found = gradients_of(True, jit_compile, dtype)(token_ids)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1e-2))


@pytest.mark.parametrize("recompute, times", [(False, 1), (True, 2)])
def test_xla_computes_the_forward_pass_twice(token_ids, recompute, times):
    # It would find equal operators, and keep what they give, but that the gradient goes into them.
    hlo = gradients_of(recompute, jit_compile=True).experimental_get_compiler_ir(token_ids)(stage="optimized_hlo")
    assert len(re.findall(r" tanh\(", hlo)) == times * LAYERS


def test_a_call_with_a_cache_is_as_it_was(token_ids):
    keras.utils.set_random_seed(0)
    backbone = GPT2Backbone(**SHAPE)

    def cached():
        return backbone(token_ids, cache=backbone.empty_cache(2), position_ids=tf.range(8))

    expected, expected_cache = cached()
    recompute_blocks(backbone)
    found, cache = tf.function(cached, autograph=False)()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(cache[-1][0], expected_cache[-1][0], atol=1e-5)


def trained(recompute, chosen=None, accumulate_steps=1, jit_compile=False):
    keras.utils.set_random_seed(0)
    model = TrainingCausalLM(GPT2Backbone(**SHAPE), kernels=chosen, accumulate_steps=accumulate_steps)
    if recompute:
        recompute_blocks(model.backbone)
    config = RunConfig(data=["x"], out="y", steps=6, warmup_steps=0, learning_rate=0.01, epsilon=1e-4)
    optimizer = make_optimizer(config, model.trainable_variables, fused=chosen is not None)
    model.compile(optimizer, TokenLoss(), jit_compile=jit_compile)
    ids = np.random.default_rng(0).integers(0, 30, (4, 9))
    logs = [model.train_on_batch(ids[:, :-1], ids[:, 1:]) for _ in range(3)]
    return model, [*logs, model.test_on_batch(ids[:, :-1], ids[:, 1:])]


@pytest.fixture(scope="module")
def plain():
    return trained(False)


@pytest.mark.parametrize("chosen", [None, fused_kernel])
@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_steps_are_those_without(plain, chosen, accumulate_steps):
    model, losses = trained(True, chosen, accumulate_steps)
    assert losses == pytest.approx(plain[1], rel=1e-5)
    for a, b in zip(model.trainable_variables, plain[0].trainable_variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-5, err_msg=a.path)


def test_compiled_steps_with_bfloat16_products_are_those_without():
    chosen = functools.partial(step_kernel, bfloat16_products=True)
    _, expected = trained(False, chosen, jit_compile=True)
    _, found = trained(True, chosen, jit_compile=True)
    assert found == pytest.approx(expected, rel=1e-5)


def test_what_is_computed_again_has_the_kernels_too():
    seen = []
    trained(True, lambda f, **c: seen.append(f.__name__) or fused_kernel(f, **c))
    steps = seen.count("loss_and_gradient")  # one a trace of the training step
    validations = seen.count("normalize") - steps * (4 * LAYERS + 1)
    assert steps and validations == 2 * LAYERS + 1
    assert seen.count("gelu_tanh") == steps * 2 * LAYERS + LAYERS


PEAK = """
import sys, keras, tensorflow as tf
from tfgpt.models import GPT2Backbone
from tfgpt.training.losses import TokenLoss
from tfgpt.training.recompute import recompute_blocks
from tfgpt.training.train_step import TrainingCausalLM
model = TrainingCausalLM(GPT2Backbone(50, 8, 4, 64, max_sequence_length=512))
if sys.argv[1] == "recompute":
    recompute_blocks(model.backbone)
model.compile(keras.optimizers.SGD(), TokenLoss(), jit_compile=False)
ids = tf.ones((8, 512), tf.int32)
model.train_on_batch(ids[:, :64], ids[:, :64])
def peak():  # of this process; getrusage's has that of the one which began it
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
model.train_on_batch(ids, ids)
print(peak() - before)
"""


@pytest.mark.slow
def test_the_peak_is_clearly_lower():
    def peak(way):
        done = subprocess.run([sys.executable, "-c", PEAK, way], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return int(done.stdout) / 1024

    plain, recompute = peak("plain"), peak("recompute")  # MB
    # Attention weights alone are 8 x 4 x 512 x 512 x 4 bytes = 34 MB a block, of which one block's are there at once.
    assert plain > 8 * 34
    assert recompute < plain / 2, (plain, recompute)


def test_dropout_is_refused_in_one_sentence(tmp_path, capsys):
    (tmp_path / "foxes.txt").write_text("the quick brown fox jumps over the lazy dog. " * 50)
    out = tmp_path / "model"
    code = main(
        ["train", "--data", str(tmp_path / "foxes.txt"), "--out", str(out), "--preset", "gpt2-test"]
        + ["--tokenizer", "character", "--recompute", "--dropout", "0.1"]
    )
    said = capsys.readouterr().err
    assert code == 2
    assert "dropout is 0.1, expected 0 with recompute: it would drop other places the second time" in said
    assert not out.exists()
