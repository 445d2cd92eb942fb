"""What a training run is: the arguments of `tfgpt train`, and the keys of its YAML files."""

from __future__ import annotations

import dataclasses

from tfgpt.errors import UserError

PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")
COMPILATIONS = ("auto", "step", "kernels", "none")
OPTIMIZERS = ("adamw", "adafactor", "lion", "muon")
SCHEDULES = ("cosine", "linear", "constant", "wsd")
STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu", "parameter_server")


@dataclasses.dataclass
class RunConfig:
    """A training run.

    Args:
        data: files, folders, globs, or "stdlib" for the Python standard library's source; or directories that
            `tfgpt prepare` has made.
        out: the model directory to be made.
        preset: the size that the fields below override ("gpt2", "gpt2-mini", ...).
        data_weights: how often windows come from each of several prepared directories, in any unit; by default as many
            as they have tokens.
        tokenizer: "bpe" and "character" are trained on the data; a directory with tokenizer.json, or vocab.json and
            merges.txt, is read. Prepared data comes with its own; a directory's must be equal to that.
        vocabulary_size: of a tokenizer that is trained with "bpe"; by default the preset's.
        num_layers: L; by default the preset's, as for the next six.
        num_heads: H.
        hidden_dim: D.
        intermediate_dim: F; by default 4 D.
        max_sequence_length: the context window, in tokens.
        dropout: rate at GPT-2's three places.
        initializer_range: standard deviation of the initial weights.
        steps: updates by the optimizer.
        batch_size: windows an update, over all replicas.
        learning_rate: the highest, after warm-up.
        min_learning_rate: the last, at the end of the decay.
        warmup_steps: of linear warm-up from 0; by default 100, or a tenth of a short run.
        weight_decay: of matrices; biases and normalization are never decayed.
        beta_1: of AdamW, Lion and Muon's AdamW.
        beta_2: of AdamW, Lion and Muon's AdamW.
        epsilon: of AdamW and Muon's AdamW.
        clip_norm: the global gradient norm; 0 does not clip.
        optimizer: "adamw", "adafactor", "lion" (which wants a third of AdamW's rate or less) or "muon".
        schedule: after the warm-up: "cosine", "linear", "constant" or "wsd", constant with a linear decay at the end.
        decay_fraction: of all steps, which the decay of "wsd" takes.
        accumulate_steps: micro-batches that `batch_size` is split into, to need less memory; it divides `batch_size`.
        ema_decay: of a moving average of the weights, which then is what is validated, sampled from and written, but
            for training/last; about 1 / (1 - ema_decay) updates are averaged, 0 has none.
        label_smoothing: of the targets, in training only.
        z_loss: coefficient of log² of the softmax's denominator, in training only; PaLM has 1e-4.
        precision: "float32", "mixed_bfloat16" or "mixed_float16" (with loss scaling); "auto" chooses for the device
            and the model's width (see `tfgpt.training.arrangement`).
        compile: with XLA, the whole "step", small "kernels" between products (a CPU's best for wide models), or
            "none"; "auto" chooses likewise.
        recompute: compute activations inside blocks again for the gradient instead of keeping them, which takes a
            third longer and leaves one tensor a block of the activations' memory.
        steps_per_execution: steps in one call of the compiled function; by default as many as fit the log.
        evaluate_every: steps between validations; divides `steps`. By default a tenth of them.
        validation_batches: batches of a validation during the run, spread over the split; when the run has ended, the
            whole split is evaluated.
        patience: validations without improvement before the run stops early; 0 never stops it.
        log_every: steps between rows of training/metrics.csv, where a run can be ended; divides `evaluate_every`. By
            default about 10.
        validation_fraction: of the text, held out.
        max_bytes: of the text, read; by default all.
        sample_prompt: continued at each validation; by default the beginning of the validation split.
        sample_tokens: length of that continuation; 0 takes no samples.
        tensorboard: write TensorBoard logs (the `plots` extra).
        log_gradients: also log the norms of gradients, of each layer and of all, and with accumulate_steps the noise
            scale; weight histograms at each validation.
        measure_peak: measure this machine's matrix products first, under a second, and report the model FLOPs
            utilization against them.
        wandb: a Weights & Biases project to log to (the `wandb` extra); WANDB_MODE=offline keeps it on this machine.
        seed: of weights, windows, dropout and samples.
        overwrite: replace a model that `out` holds, or start an unfinished run there anew.
        checkpoint_every: steps between checkpoints, from which the same command continues a run that was ended; a
            multiple of log_every. By default one at each validation.
        keep_checkpoints: how many of the newest to keep.
        strategy: where the replicas are: "one_device", "mirrored" (this machine's GPUs), "multi_worker" (`TF_CONFIG`'s
            machines) or "tpu"; "auto" takes what there is.
    """

    data: list[str]
    out: str
    data_weights: list[float] | None = None
    preset: str = "gpt2-mini"
    tokenizer: str = "bpe"
    vocabulary_size: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    hidden_dim: int | None = None
    intermediate_dim: int | None = None
    max_sequence_length: int | None = None
    dropout: float | None = None
    initializer_range: float | None = None
    steps: int = 1000
    batch_size: int = 16
    learning_rate: float = 1e-3
    min_learning_rate: float = 1e-4
    warmup_steps: int | None = None
    weight_decay: float = 0.1
    beta_1: float = 0.9
    beta_2: float = 0.95
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    # Optimization.
    optimizer: str = "adamw"
    schedule: str = "cosine"
    decay_fraction: float = 0.2
    accumulate_steps: int = 1
    ema_decay: float = 0.0
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    precision: str = "auto"
    compile: str = "auto"
    recompute: bool = False
    steps_per_execution: int | None = None
    evaluate_every: int | None = None
    validation_batches: int = 20
    patience: int = 0
    log_every: int | None = None
    validation_fraction: float = 0.1
    max_bytes: int | None = None
    sample_prompt: str | None = None
    sample_tokens: int = 64
    tensorboard: bool = True
    # What is logged beside it.
    log_gradients: bool = False
    measure_peak: bool = False
    wandb: str | None = None
    seed: int = 0
    overwrite: bool = False
    # Fault tolerance: see resume.py.
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    # Distribution.
    strategy: str = "auto"

    def __post_init__(self):
        """Checks ranges, and fills in what follows from other fields."""
        if isinstance(self.data, str):
            self.data = [self.data]
        if not self.data:
            raise UserError("data is empty, expected files, folders, globs or 'stdlib'")
        for name in ("steps", "batch_size", "validation_batches"):
            self._expect(name, getattr(self, name) >= 1, "at least 1")
        if self.warmup_steps is None:
            self.warmup_steps = min(100, self.steps // 10)
        for name in ("num_layers", "num_heads", "hidden_dim", "intermediate_dim", "max_sequence_length", "max_bytes"):
            self._expect(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        for name in ("learning_rate", "epsilon"):
            self._expect(name, getattr(self, name) > 0, "above 0")
        for name in ("min_learning_rate", "weight_decay", "clip_norm", "warmup_steps", "patience", "sample_tokens"):
            self._expect(name, getattr(self, name) >= 0, "0 or more")
        for name in ("beta_1", "beta_2"):
            self._expect(name, 0 <= getattr(self, name) < 1, "from 0 to below 1")
        self._expect("initializer_range", self.initializer_range is None or self.initializer_range > 0, "above 0")
        self._expect("dropout", self.dropout is None or 0 <= self.dropout < 1, "from 0 to below 1")
        self._check_optimization()
        self._expect("validation_fraction", 0 < self.validation_fraction < 1, "between 0 and 1")
        self._expect("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        self._expect("compile", self.compile in COMPILATIONS, f"one of {', '.join(COMPILATIONS)}")
        self._expect("strategy", self.strategy in STRATEGIES, f"one of {', '.join(STRATEGIES)}")
        self._expect("warmup_steps", self.warmup_steps <= self.steps, f"at most the {self.steps} steps")
        self._expect("seed", 0 <= self.seed < 2**32, "from 0 to 2^32 - 1")
        if self.evaluate_every is None:
            self.evaluate_every = _divisor(self.steps, self.steps // 10)
            if self.steps >= 100 and self.evaluate_every < self.steps // 50:
                raise UserError(
                    f"steps is {self.steps}, whose divisors are too small to validate by, expected a rounder number "
                    f"such as {round(self.steps, -2) or 100}, or evaluate_every"
                )
        if self.log_every is None:
            self.log_every = _divisor(self.evaluate_every, 10)
        if self.steps_per_execution is None:
            self.steps_per_execution = self.log_every
        self._expect("evaluate_every", self._divides(self.evaluate_every, self.steps), f"a divisor of {self.steps}")
        for name, whole in (("log_every", self.evaluate_every), ("steps_per_execution", self.log_every)):
            self._expect(name, self._divides(getattr(self, name), whole), f"a divisor of {whole}")
        self._check_checkpoints()

    def _check_optimization(self):
        self._expect("optimizer", self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}")
        self._expect("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
        self._expect("decay_fraction", 0 < self.decay_fraction <= 1, "above 0 and at most 1")
        divides = self._divides(self.accumulate_steps, self.batch_size)
        self._expect("accumulate_steps", divides, f"a divisor of the batch_size {self.batch_size}")
        for name in ("ema_decay", "label_smoothing"):
            self._expect(name, 0 <= getattr(self, name) < 1, "from 0 to below 1")
        self._expect("z_loss", self.z_loss >= 0, "0 or more")
        self._expect("wandb", self.wandb is None or self.wandb, "the name of a project")

    def model_overrides(self):
        """The `GPT2Backbone` arguments that the run sets."""
        names = ("num_layers", "num_heads", "hidden_dim", "intermediate_dim", "max_sequence_length", "dropout")
        names += ("initializer_range",)
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def _check_checkpoints(self):
        if self.checkpoint_every is None:
            self.checkpoint_every = self.evaluate_every
        multiple = self._divides(self.log_every, self.checkpoint_every) and self.checkpoint_every >= 1
        self._expect("checkpoint_every", multiple, f"a multiple of log_every {self.log_every}")
        self._expect("keep_checkpoints", self.keep_checkpoints >= 1, "at least 1")

    def _expect(self, name, valid, expected):
        if not valid:
            raise UserError(f"{name} is {getattr(self, name)!r}, expected {expected}")

    @staticmethod
    def _divides(part, whole):
        return part >= 1 and whole % part == 0


def _divisor(whole, near):
    """The largest divisor of `whole` that is at most `near`."""
    return next(d for d in range(max(min(near, whole), 1), 0, -1) if whole % d == 0)
