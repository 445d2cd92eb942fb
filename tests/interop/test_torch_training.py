"""PyTorch's optimizers, schedulers and losses as witnesses of ours."""

import keras
import numpy as np
import pytest

from tfgpt.training.losses import token_losses
from tfgpt.training.optimizer import make_optimizer
from tfgpt.training.run_config import RunConfig
from tfgpt.training.schedules import WarmupDecay

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.interop

RATE, DECAY = 0.02, 0.3


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_losses_and_their_gradients(label_smoothing):
    import tensorflow as tf

    rng = np.random.default_rng(0)
    logits, targets = rng.normal(0, 3, (6, 50)).astype("float32"), rng.integers(0, 50, 6)
    theirs = torch.tensor(logits, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(
        theirs, torch.tensor(targets), label_smoothing=label_smoothing, reduction="sum"
    )
    loss = loss + 1e-2 * torch.logsumexp(theirs, -1).square().sum()
    loss.backward()
    ours = tf.Variable(logits)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(token_losses(ours, targets, label_smoothing, 1e-2))
    assert float(total) == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(tape.gradient(total, ours), theirs.grad.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, fused", [("adamw", False), ("adamw", True), ("muon", False)])
def test_optimizers_with_clipping_and_a_schedule(name, fused):
    rng = np.random.default_rng(1)
    start = rng.normal(0, 1, (8, 6)).astype("float32")
    gradients = rng.normal(0, 1, (10, 8, 6)).astype("float32")
    config = RunConfig(
        data=["x"],
        out="y",
        steps=10,
        warmup_steps=3,
        learning_rate=RATE,
        min_learning_rate=0.0,
        schedule="linear",
        weight_decay=DECAY,
        clip_norm=1.0,
        beta_2=0.99,
        optimizer=name,
    )
    variable = keras.Variable(start, name="kernel")
    optimizer = make_optimizer(config, [variable], fused)
    weight = torch.nn.Parameter(torch.tensor(start))
    if name == "adamw":
        theirs = torch.optim.AdamW([weight], lr=RATE, betas=(0.9, 0.99), eps=1e-8, weight_decay=DECAY)
    else:
        theirs = torch.optim.Muon(
            [weight], lr=RATE, weight_decay=DECAY, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw"
        )
    scheduler = torch.optim.lr_scheduler.LambdaLR(theirs, lambda t: t / 3 if t < 3 else (10 - t) / 7)
    for gradient in gradients:
        optimizer.apply([keras.ops.array(gradient)], [variable])
        weight.grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        theirs.step()
        scheduler.step()
    # torch's Muon orthogonalizes in bfloat16.
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if name == "adamw" else {"rtol": 0, "atol": 0.01}
    assert np.abs(variable.numpy() - start).max() > 0.05
    np.testing.assert_allclose(variable.numpy(), weight.detach().numpy(), **tolerance)


def test_the_cosine_schedule():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-3)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1e-9, total_iters=10)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=90, eta_min=1e-4)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], milestones=[10])
    ours = WarmupDecay(1e-3, 1e-4, warmup_steps=10, steps=100)
    for step in range(100):
        assert float(ours(step)) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-4, abs=1e-8)
        optimizer.step()
        scheduler.step()
