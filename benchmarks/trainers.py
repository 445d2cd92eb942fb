"""One trainer's process: python -m benchmarks.trainers TASK.json RESULT.json, in the Python that has the trainer.

It imports its packages, makes GPT-2 with random weights and an optimizer, takes the steps of a shape on random tokens,
and writes what they took. All trainers get the same tokens, AdamW (1e-3, betas 0.9 and 0.99, decay 0.1), gradients
clipped to a global norm of 1, and no dropout.
"""

import dataclasses
import json
import math
import pathlib
import resource
import sys
import time
import types

import numpy as np

RATE, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.99), 0.1, 1.0


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model and its batches.

    Args:
        vocabulary: V.
        layers: L.
        heads: H.
        width: D.
        batch: B, rows.
        tokens: T of a row.
        steps: in a timed block.
        blocks: timed, in each process.
        execution: steps in one call of tfgpt's compiled function, as `tfgpt train` has by default for a run of `steps`.
    """

    vocabulary: int
    layers: int
    heads: int
    width: int
    batch: int
    tokens: int
    steps: int
    blocks: int
    execution: int = 1

    def __str__(self):
        return (
            f"{self.layers} layers, {self.width} wide, {self.vocabulary} tokens known, {self.batch} × {self.tokens} a "
            f"step, {self.steps} steps a block"
        )


SHAPES = {
    "small": Shape(65, 4, 4, 128, 12, 64, steps=200, blocks=3, execution=10),
    "gpt2": Shape(50257, 12, 12, 768, 4, 256, steps=4, blocks=2),
    "long": Shape(50257, 12, 12, 768, 4, 1024, steps=2, blocks=2),
    "tiny": Shape(65, 1, 2, 32, 2, 16, steps=20, blocks=2, execution=2),  # to try the benchmark out
}


def torch(shape, compiled, bfloat16):
    """transformers' model in PyTorch, eager or compiled, in float32 or with products in bfloat16."""
    import torch as package
    import transformers
    from torch.nn import functional

    package.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=shape.vocabulary,
        n_positions=shape.tokens,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )
    model = transformers.GPT2LMHeadModel(config).train()
    optimizer = package.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, weight_decay=DECAY, fused=True)
    forward = package.compile(model) if compiled else model

    def train(batches):
        losses = []
        for batch in package.from_numpy(batches).long():
            with package.autocast("cpu", package.bfloat16, enabled=bfloat16):
                logits = forward(batch[:, :-1]).logits
            loss = functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
            loss.backward()
            package.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return sum(losses) / len(losses)

    return train


def keras_hub(shape, jit_compile, policy, several_steps=False):
    """keras-hub's model by Keras' `fit`, its step a graph or compiled by XLA.

    `fit` takes one step in a call by default; with `several_steps` it takes as many as tfgpt does.
    """
    import keras
    from keras_hub import models

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    backbone = models.GPT2Backbone(
        vocabulary_size=shape.vocabulary,
        num_layers=shape.layers,
        num_heads=shape.heads,
        hidden_dim=shape.width,
        intermediate_dim=4 * shape.width,
        max_sequence_length=shape.tokens,
        dropout=0.0,
    )
    model = models.GPT2CausalLM(backbone)
    beta_1, beta_2 = BETAS
    model.compile(
        optimizer=keras.optimizers.AdamW(RATE, beta_1=beta_1, beta_2=beta_2, weight_decay=DECAY, global_clipnorm=CLIP),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[],
        jit_compile=jit_compile,
        steps_per_execution=shape.execution if several_steps else 1,
    )
    return fit(model, lambda token_ids: {"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)})


def tfgpt(shape, compile="auto", precision="auto", recompute=False):
    """tfgpt's model as `tfgpt train` makes it."""
    from tfgpt.cli.quiet import import_tensorflow

    import_tensorflow()
    import keras

    from tfgpt.models.gpt2 import preset_config
    from tfgpt.training.language_modeling import make_model
    from tfgpt.training.run_config import RunConfig

    keras.utils.set_random_seed(0)
    beta_1, beta_2 = BETAS
    config = RunConfig(
        data="random tokens",
        out="nowhere",
        preset="gpt2",
        num_layers=shape.layers,
        num_heads=shape.heads,
        hidden_dim=shape.width,
        max_sequence_length=shape.tokens,
        dropout=0.0,
        steps=shape.steps,
        steps_per_execution=shape.execution,
        batch_size=shape.batch,
        learning_rate=RATE,
        schedule="constant",
        warmup_steps=0,
        weight_decay=DECAY,
        beta_1=beta_1,
        beta_2=beta_2,
        clip_norm=CLIP,
        compile=compile,
        precision=precision,
        recompute=recompute,
    )
    tokenizer = types.SimpleNamespace(vocabulary_size=shape.vocabulary)
    return fit(make_model(config, preset_config(config.preset) | config.model_overrides(), tokenizer))


TRAINERS = {function.__name__: function for function in (torch, keras_hub, tfgpt)}


def fit(model, inputs=lambda token_ids: token_ids):
    """The training function of a compiled Keras model.

    Args:
        model: with its loss and optimizer.
        inputs: from token ids (steps, B, T) to what the model is called with.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False  # its thread can keep `fit` from returning, see RESULTS.md

    def train(batches):
        # Repeated, so that the last call of several steps does not look for a batch that is not there.
        data = tf.data.Dataset.from_tensor_slices((inputs(batches[..., :-1]), batches[..., 1:])).repeat().prefetch(2)
        history = model.fit(data.with_options(options), steps_per_epoch=len(batches), verbose=0, shuffle=False)
        return history.history["loss"][-1]

    return train


def token_batches(random, shape, steps):
    """Token ids (steps, B, T + 1), int32, each drawn by itself.

    Low ones are likelier: how much so is something that a model learns within a few steps, where equally likely ones
    have nothing to teach, and their loss need not fall.
    """
    size = steps, shape.batch, shape.tokens + 1
    return (shape.vocabulary * random.random(size) ** 3).astype(np.int32)


def measure(make_trainer, shape):
    """Makes a trainer, calls it twice to warm it up, and times blocks of steps.

    Args:
        make_trainer: a function of nothing that gives a function from token ids (steps, B, T + 1) to their mean loss.
        shape: a `Shape`.

    Returns:
        A dictionary of "first_step_seconds", from before the imports to the end of the first call; "block_seconds";
        "tokens_per_second" of the best block; and the mean losses of the first call and of the last block,
        "first_loss" and "loss".

    Raises:
        SystemExit: if the loss is not finite, or does not fall.
    """
    start = time.perf_counter()
    random = np.random.default_rng(0)
    train = make_trainer()
    first_loss = train(token_batches(random, shape, shape.execution))
    first_step_seconds = time.perf_counter() - start
    train(token_batches(random, shape, shape.execution))
    block_seconds = []
    for _ in range(shape.blocks):
        batches = token_batches(random, shape, shape.steps)
        start = time.perf_counter()
        loss = train(batches)
        block_seconds.append(time.perf_counter() - start)
    if not (math.isfinite(loss) and loss < first_loss):
        raise SystemExit(f"its loss went from {first_loss:.3f} to {loss:.3f}, expected finite numbers, the last below")
    return {
        "first_step_seconds": first_step_seconds,
        "block_seconds": block_seconds,
        "tokens_per_second": shape.steps * shape.batch * shape.tokens / min(block_seconds),
        "first_loss": float(first_loss),
        "loss": float(loss),
    }


def main(task_path, result_path):
    """Does what the task says."""
    task = json.loads(pathlib.Path(task_path).read_text(encoding="utf-8"))
    if task["memory_bytes"]:
        # What is allocated and written to, not files mapped: a trainer that needs more fails, and nothing beside it.
        resource.setrlimit(resource.RLIMIT_DATA, (task["memory_bytes"], task["memory_bytes"]))
    shape = SHAPES[task["shape"]]
    result = measure(lambda: TRAINERS[task["function"]](shape, **task["options"]), shape)
    pathlib.Path(result_path).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
