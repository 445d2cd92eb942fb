"""The runs: each network from the same initial numbers, on the same batches, with the same learning rates."""

import itertools
import math
import os
import time

import keras
import numpy as np
import tensorflow as tf

from tfgpt.atomic import atomic_directory, expect_free
from tfgpt.errors import UserError
from tfgpt.experiments.ablation.figures import draw_figures
from tfgpt.experiments.ablation.network import VARIANTS, AblationNetwork
from tfgpt.experiments.ablation.records import Ablation, Run, write_ablation
from tfgpt.experiments.ablation.report import write_report
from tfgpt.experiments.pictures import expect_matplotlib
from tfgpt.text import TokenSplit, WindowSampler, find_documents, make_tokenizer
from tfgpt.text.corpus import TextString
from tfgpt.training.gradients import layer_norms
from tfgpt.training.losses import token_losses
from tfgpt.training.schedules import WarmupDecay

TEXT_CHARACTERS = 2**20  # of the corpus are read; a run sees a fraction of them
HELD_OUT = 0.1
HELD_OUT_WINDOWS = 64
BETA_1, BETA_2 = 0.9, 0.98  # of Adam, as in Vaswani et al. 2017, section 5.3
COMPILE_STEPS = 300  # what compiling a network costs, in its steps; for the progress bar


def run_ablation(
    out,
    data=("stdlib",),
    depths=(2, 6, 12, 24),
    variants=tuple(VARIANTS),
    steps=300,
    warmup_steps=100,
    learning_rate=3e-3,
    hidden_dim=64,
    num_heads=4,
    window=64,
    batch_size=8,
    tokenizer="character",
    vocabulary_size=512,
    seed=0,
    overwrite=False,
    on_progress=None,
):
    """Trains every variant at every depth, with and without warm-up and residual scaling; writes data, figures, report.

    Residual scaling is left out where there is no residual stream.

    Args:
        out: a new directory, which appears whole or not at all.
        data: files, folders, globs, or "stdlib"; their first 2^20 characters are read.
        depths: numbers of blocks.
        variants: names in `VARIANTS`.
        steps: of each run.
        warmup_steps: of the runs with warm-up. The learning rate then falls linearly to 0 in all runs.
        learning_rate: the highest, of Adam, without clipping or weight decay, which would hide what is looked for.
        hidden_dim: D.
        num_heads: H.
        window: T.
        batch_size: B.
        tokenizer, vocabulary_size: as in `tfgpt.text.make_tokenizer`.
        seed: of initial weights and batches.
        overwrite: replace what `out` holds.
        on_progress: called with the share of the work that is done.

    Returns:
        The `Ablation`.

    Raises:
        UserError: for bad input.
    """
    settings = {name: value for name, value in locals().items() if name not in ("out", "overwrite", "on_progress")}
    sources = [data] if isinstance(data, (str, os.PathLike)) else data
    settings |= {"data": list(map(str, sources)), "depths": list(depths), "variants": list(variants)}
    _check(settings)
    expect_matplotlib()
    expect_free(out, overwrite)
    start = time.perf_counter()
    train, held_out, size = _read_corpus(settings)
    entropy = unigram_entropy(held_out[:, 1:])
    settings |= {"tokens": train.num_tokens, "held_out_tokens": held_out[:, 1:].size, "vocabulary": size}
    settings["training_unigram_entropy"] = unigram_entropy(train.arrays[0])
    sampler = WindowSampler(train, window, batch_size, seed)
    runs, on_progress = [], on_progress or (lambda fraction: None)
    total = sum(_cost(variant, depth, steps) for variant in variants for depth in depths)
    done = 0
    with atomic_directory(out, overwrite) as temporary:
        for depth, variant in itertools.product(depths, variants):
            for run in _runs_of_network(variant, depth, size, settings, sampler, held_out):
                runs.append(run)
                fraction = len([r for r in runs if r.key[:2] == (variant, depth)]) / _number_of_runs(variant)
                on_progress((done + fraction * _cost(variant, depth, steps)) / total)
            done += _cost(variant, depth, steps)
        settings["seconds"] = round(time.perf_counter() - start, 1)
        ablation = Ablation(settings, entropy, runs)
        write_ablation(ablation, temporary)
        draw_figures(ablation, temporary)
        write_report(ablation, temporary)
    return ablation


def unigram_entropy(tokens):
    """The entropy, in nats, of the tokens' own frequencies.

    Example:

    >>> round(unigram_entropy(np.array([0, 0, 1, 1])), 4)
    0.6931
    """
    _, counts = np.unique(tokens, return_counts=True)
    frequencies = counts / counts.sum()
    return float(-(frequencies * np.log(frequencies)).sum())


def recorded_steps(steps):
    """The steps whose norms are kept: 0, 1, 2, 5, 10, 20, 50, ... and the last.

    Example:

    >>> recorded_steps(30)
    [0, 1, 2, 5, 10, 20, 29]
    """
    series = [digit * 10**power for power in range(math.ceil(math.log10(steps)) + 1) for digit in (1, 2, 5)]
    return [0, *(step for step in series if step < steps - 1), steps - 1]


class Step:
    """A training step of a network, compiled once for all of its runs.

    Args:
        network: an `AblationNetwork`.
    """

    def __init__(self, network):
        self.network = network
        self._optimizer = keras.optimizers.Adam(1.0, beta_1=BETA_1, beta_2=BETA_2)
        self._optimizer.build(network.trainable_variables)
        kernels = [block.feed_forward.sublayer.output_dense.kernel for block in network.blocks]
        places = {id(variable): i for i, variable in enumerate(network.trainable_variables)}
        self._second_kernels = [places[id(kernel)] for kernel in kernels]
        self._step = tf.function(self._step, jit_compile=True, autograph=False)

    def begin(self, weights):
        """Sets the initial weights and forgets the runs before."""
        self.network.set_weights(weights)
        for variable in self._optimizer.variables:
            variable.assign(tf.zeros_like(variable))

    def __call__(self, windows, rate):
        """The loss of a batch (B, T + 1), its norms, and an update by them.

        Returns:
            The loss; per layer, 0 to L, a row (gradient norm, second kernel's gradient norm, activation norm).
        """
        loss, norms = self._step(tf.constant(windows), tf.constant(rate, tf.float32))
        return float(loss), norms.numpy()

    def _step(self, windows, rate):
        with tf.GradientTape() as tape:
            logits, states = self.network(windows[:, :-1])
            loss = tf.reduce_mean(token_losses(logits, windows[:, 1:]))
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, self.network.trainable_variables)]
        by_layer = layer_norms(self.network, gradients)
        nan = tf.constant(math.nan)  # the embeddings' gradient is the output projection's, too: no layer's
        norms = [
            tf.stack([nan, *(by_layer[block.name] for block in self.network.blocks)]),
            tf.stack([nan, *(tf.norm(gradients[i]) for i in self._second_kernels)]),
            tf.stack([tf.sqrt(tf.reduce_mean(tf.reduce_sum(tf.square(x), axis=-1))) for x in states]),
        ]
        self._optimizer.learning_rate.assign(rate)
        self._optimizer.apply(gradients, self.network.trainable_variables)
        return loss, tf.stack(norms, axis=1)


def _check(settings):
    for name in ("depths", "variants"):
        values = settings[name]
        if not values or len(set(values)) < len(values):
            raise UserError(f"{name} are {values}, expected one or more, each once")
    for variant in settings["variants"]:
        if variant not in VARIANTS:
            raise UserError(f"variant is {variant!r}, expected one of {', '.join(VARIANTS)}")
    for depth in settings["depths"]:
        if depth < 1:
            raise UserError(f"depth is {depth}, expected 1 block or more")
    if settings["steps"] < 2:
        raise UserError(f"steps is {settings['steps']}, expected 2 or more")
    if not 1 <= settings["warmup_steps"] < settings["steps"]:
        raise UserError(f"warmup_steps is {settings['warmup_steps']}, expected 1 to {settings['steps'] - 1}")
    if not (math.isfinite(settings["learning_rate"]) and settings["learning_rate"] > 0):
        raise UserError(f"learning_rate is {settings['learning_rate']}, expected a number above 0")
    dim, heads = settings["hidden_dim"], settings["num_heads"]
    if heads < 1 or dim < 2 or dim % heads or dim % 2:
        raise UserError(f"hidden_dim is {dim}, expected an even multiple of num_heads {heads}")


def _read_corpus(settings):
    """The training split, the held-out windows (N, T + 1) and the vocabulary's size."""
    text = ""
    for document in find_documents(settings["data"]):
        for block in document.blocks():
            text += block
            if len(text) >= TEXT_CHARACTERS:
                break
        if len(text) >= TEXT_CHARACTERS:
            break
    text = text[:TEXT_CHARACTERS]
    tokenizer = make_tokenizer(settings["tokenizer"], [TextString(text)], settings["vocabulary_size"])
    tokens = np.array(tokenizer.encode(text), np.int32)
    cut = len(tokens) - int(HELD_OUT * len(tokens))
    name = ", ".join(settings["data"])
    splits = [TokenSplit(split, name, (part,), len(part), 0) for split, part in
              (("train", tokens[:cut]), ("validation", tokens[cut:]))]  # fmt: skip
    held_out = WindowSampler(splits[1], settings["window"], HELD_OUT_WINDOWS, seed=0)
    return splits[0], held_out.batch(0)[: held_out.windows_per_epoch], tokenizer.vocabulary_size


def _number_of_runs(variant):
    return 4 if VARIANTS[variant]["residual"] else 2


def _cost(variant, depth, steps):
    return depth * (COMPILE_STEPS + _number_of_runs(variant) * steps)


def _runs_of_network(variant, depth, size, settings, sampler, held_out):
    """The runs of one compiled step, one after the other."""
    step = None
    for scaling in (False, True) if VARIANTS[variant]["residual"] else (False,):
        keras.utils.set_random_seed(settings["seed"])  # kernels of all variants of a depth begin with the same numbers
        network = AblationNetwork(variant, size, depth, settings["num_heads"], settings["hidden_dim"], scaling)
        weights = network.get_weights()
        step = step or Step(network)
        for warmup in (True, False):
            run = Run(variant, depth, warmup, scaling, parameters=network.count_params())
            step.begin(weights)
            _train(run, step, settings, sampler, held_out)
            yield run


def _train(run, step, settings, sampler, held_out):
    steps = settings["steps"]
    warmup_steps = settings["warmup_steps"] if run.warmup else 0
    schedule = WarmupDecay(settings["learning_rate"], 0.0, warmup_steps, steps, name="linear")
    rates = schedule(tf.range(steps)).numpy()
    recorded = set(recorded_steps(steps))
    for number in range(steps):
        loss, norms = step(sampler.batch(number), rates[number])
        run.losses.append(loss)
        if number in recorded:
            run.norms += [(number, layer, *map(float, row)) for layer, row in enumerate(norms)]
        if not math.isfinite(loss):
            return
    logits, _ = step.network(held_out[:, :-1])
    loss = float(tf.reduce_mean(token_losses(logits, held_out[:, 1:])))
    run.final_loss = loss if math.isfinite(loss) else math.nan
