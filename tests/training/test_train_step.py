import keras
import numpy as np
import pytest
import tensorflow as tf

from tfgpt.models import GPT2Backbone, GPT2CausalLM
from tfgpt.training.losses import TokenLoss
from tfgpt.training.optimizer import make_optimizer
from tfgpt.training.run_config import RunConfig
from tfgpt.training.train_step import TrainingCausalLM

SHAPE = {"vocabulary_size": 30, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "max_sequence_length": 8}
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 30, (8, 8)), rng.integers(0, 30, (8, 8))) for _ in range(6)]


def trained(batches, accumulate_steps, jit_compile=False, dtype=None, log_gradients=False, **fields):
    """A model after six updates, and the logs of each."""
    keras.utils.set_random_seed(0)
    model = TrainingCausalLM(
        GPT2Backbone(**SHAPE, initializer_range=0.2, dtype=dtype),
        accumulate_steps=accumulate_steps,
        log_gradients=log_gradients,
        label_smoothing=0.1,
        z_loss=1e-2,
    )
    defaults = {"steps": 6, "warmup_steps": 2, "learning_rate": 0.01, "weight_decay": 0.5, "epsilon": 1e-4}
    config = RunConfig(data=["x"], out="y", **(defaults | {"clip_norm": 0.3, "beta_2": 0.9} | fields))
    model.compile(make_optimizer(config, model.trainable_variables), TokenLoss(), jit_compile=jit_compile)
    logs = []
    for batch in batches:
        model.reset_metrics()
        logs.append(model.train_on_batch(*batch, return_dict=True))
    return model, logs


@pytest.fixture(scope="module")
def in_one_piece(batches):
    return trained(batches, 1, ema_decay=0.5)


@pytest.mark.parametrize("accumulate_steps, jit_compile", [(8, False), (2, True)])
def test_accumulation_equals_the_big_batch(batches, in_one_piece, accumulate_steps, jit_compile):
    # With clipping, a schedule, weight decay and a moving average, each of which must count updates.
    whole, whole_logs = in_one_piece
    parts, parts_logs = trained(batches, accumulate_steps, jit_compile, ema_decay=0.5)
    assert int(parts.optimizer.iterations) == 6
    for a, b in zip(whole_logs, parts_logs, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
    for a, b in zip(whole.optimizer.variables, parts.optimizer.variables, strict=True):
        np.testing.assert_allclose(b.numpy(), a.numpy(), **ROUNDING, err_msg=a.path)
    for a, b in zip(whole.trainable_variables, parts.trainable_variables, strict=True):
        np.testing.assert_allclose(b.numpy(), a.numpy(), **ROUNDING, err_msg=a.path)


def test_one_piece_is_what_keras_own_step_does(batches, in_one_piece):
    ours, _ = in_one_piece
    keras.utils.set_random_seed(0)
    keras_own = GPT2CausalLM(GPT2Backbone(**SHAPE, initializer_range=0.2))
    keras_own.compile(make_optimizer(ours_config(), keras_own.trainable_variables), TokenLoss(0.1, 1e-2))
    for batch in batches:
        keras_own.train_on_batch(*batch)
    for a, b in zip(keras_own.get_weights(), ours.get_weights(), strict=True):
        np.testing.assert_allclose(b, a, **ROUNDING)


def ours_config():
    fields = {"steps": 6, "warmup_steps": 2, "learning_rate": 0.01, "weight_decay": 0.5, "epsilon": 1e-4}
    return RunConfig(data=["x"], out="y", clip_norm=0.3, beta_2=0.9, **fields)


def test_weights_count_however_they_fall_into_micro_batches(batches):
    rng = np.random.default_rng(1)
    weighted = [(*batch, rng.integers(0, 2, (8, 8)).astype("float32")) for batch in batches[:3]]
    whole, _ = trained(weighted, 1)
    parts, _ = trained(weighted, 4)
    for a, b in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_allclose(b, a, **ROUNDING)


def test_gradient_norms_and_noise_scale_against_a_loop_over_the_parts(batches):
    _, logs = trained(batches[:1], 4, log_gradients=True)
    keras.utils.set_random_seed(0)
    start = GPT2CausalLM(GPT2Backbone(**SHAPE, initializer_range=0.2))
    loss = TokenLoss(0.1, 1e-2)

    def gradients(rows):
        with tf.GradientTape() as tape:
            value = loss(batches[0][1][rows], start(batches[0][0][rows]))
        found = tape.gradient(value, [v.value for v in start.trainable_variables])
        return {v.path: tf.convert_to_tensor(g).numpy() for v, g in zip(start.trainable_variables, found)}

    def square(found):
        return sum((g.astype(np.float64) ** 2).sum() for g in found)

    whole = gradients(slice(None))
    small = np.mean([square(gradients(slice(i, i + 2)).values()) for i in range(0, 8, 2)])
    big = square(whole.values())
    assert logs[0]["gradient_norm"] == pytest.approx(big**0.5, rel=1e-4)
    for layer in ("token_embedding", "block_1", "final_norm"):
        expected = square(g for path, g in whole.items() if layer in path) ** 0.5
        assert expected > 0
        assert logs[0][f"gradient_norm/{layer}"] == pytest.approx(expected, rel=1e-4)
    # McCandlish et al. 2018, appendix A.1, with B_small = 2 and B_big = 8 windows.
    assert logs[0]["noise_trace"] == pytest.approx((small - big) / (1 / 2 - 1 / 8), rel=1e-3)
    assert logs[0]["squared_gradient"] == pytest.approx((8 * big - 2 * small) / 6, rel=1e-3, abs=1e-4)


def test_the_noise_scale_of_known_noise():
    # Gradients drawn around a known mean with a known variance: the estimates' mean is both.
    from tfgpt.training.gradients import noise_scale_parts

    rng = np.random.default_rng(0)
    draws = rng.normal(0.3, 2.0, (4000, 8, 5))  # 8 examples a big batch, of 5 parameters
    small = (draws.reshape(4000, 4, 2, 5).mean(2) ** 2).sum(-1).mean(-1)
    big = (draws.mean(1) ** 2).sum(-1)
    trace, squared_gradient = noise_scale_parts(small, big, 2, 8)
    assert np.mean(trace) == pytest.approx(5 * 2.0**2, rel=0.03)
    assert np.mean(squared_gradient) == pytest.approx(5 * 0.3**2, rel=0.2)


def test_float16_logs_unscaled_norms_and_survives_overflow(batches):
    model, logs = trained(batches[:2], 2, dtype="mixed_float16", log_gradients=True)
    _, reference_logs = trained(batches[:2], 2, log_gradients=True)
    assert logs[0]["gradient_norm"] == pytest.approx(reference_logs[0]["gradient_norm"], rel=0.02)
    before = model.get_weights()
    model.optimizer.dynamic_scale.assign(2.0**120)
    model.reset_metrics()
    overflown = model.train_on_batch(*batches[0], return_dict=True)
    assert overflown["gradient_norm"] == 0 and float(model.optimizer.dynamic_scale) == 2.0**119
    assert int(model.optimizer.iterations) == 2
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_that_does_not_ask_computes_no_norms(batches):
    _, logs = trained(batches[:1], 1)
    assert set(logs[0]) == {"loss"}


def test_micro_batches_that_do_not_divide_the_batch(batches):
    with pytest.raises(ValueError, match="8 windows, expected a multiple of accumulate_steps 3"):
        trained(batches[:1], 3)
