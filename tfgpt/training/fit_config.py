"""What every training run is told, whatever its task: arguments of `tfgpt train`, and keys of its YAML files."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tfgpt.errors import UserError

PRECISIONS = ("auto", "float32", "bfloat16_products", "mixed_bfloat16", "mixed_float16")
COMPILATIONS = ("auto", "step", "kernels", "none")
OPTIMIZERS = ("adamw", "adafactor", "lion", "muon")
SCHEDULES = ("cosine", "linear", "constant", "wsd", "inverse_sqrt")
STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu", "parameter_server")


@dataclasses.dataclass(kw_only=True)
class FitConfig:
    """A training run, of whatever task: the subclass of a task adds fields of its own.

    Args:
        task: what is learned.
        out: the model directory to be made.
        steps: updates by the optimizer.
        batch_size: of an update, over all replicas: windows of text, or what the task says.
        learning_rate: the highest, after warm-up.
        min_learning_rate: the last, at the end of the decay.
        warmup_steps: of linear warm-up from 0; by default 100, or a tenth of a short run.
        weight_decay: of matrices; biases and normalization are never decayed.
        beta_1: of AdamW, Lion and Muon's AdamW.
        beta_2: of AdamW, Lion and Muon's AdamW.
        epsilon: of AdamW and Muon's AdamW.
        clip_norm: the global gradient norm; 0 does not clip.
        optimizer: "adamw", "adafactor", "lion" (which wants a third of AdamW's rate or less) or "muon".
        schedule: after the warm-up: "cosine", "linear", "constant", "wsd" (constant with a linear decay at the end) or
            "inverse_sqrt".
        decay_fraction: of all steps, which the decay of "wsd" takes.
        ema_decay: of a moving average of the weights, which then is what is validated, sampled from and written, but
            for training/last; about 1 / (1 - ema_decay) updates are averaged, 0 has none.
        label_smoothing: of the targets, in training only.
        precision: "float32"; "bfloat16_products", float32 but for products with weights, whose factors are rounded to
            bfloat16 and whose sums are float32; Keras' "mixed_bfloat16" or "mixed_float16" (with loss
            scaling); "auto" chooses for the device and the model's width (see `tfgpt.training.arrangement`).
        compile: with XLA, the whole "step", small "kernels" between products (a CPU's best for wide models), or
            "none"; "auto" chooses likewise.
        steps_per_execution: steps in one call of the compiled function; by default as many as fit the log.
        evaluate_every: steps between validations; divides `steps`. By default a tenth of them.
        patience: validations without improvement before the run stops early; 0 never stops it.
        log_every: steps between rows of training/metrics.csv, where a run can be ended; divides `evaluate_every`. By
            default about 10.
        tensorboard: write TensorBoard logs (the `plots` extra).
        wandb: a Weights & Biases project to log to (the `wandb` extra); WANDB_MODE=offline keeps it on this machine.
        seed: of weights, the order of the data, dropout and samples.
        overwrite: replace a model that `out` holds, or start an unfinished run there anew.
        checkpoint_every: steps between checkpoints, from which the same command continues a run that was ended; a
            multiple of log_every. By default one at each validation.
        keep_checkpoints: how many of the newest to keep.
        strategy: where the replicas are: "one_device", "mirrored" (this machine's GPUs), "multi_worker" (`TF_CONFIG`'s
            machines) or "tpu"; "auto" takes what there is.
    """

    task: str
    out: str
    steps: int = 1000
    batch_size: int = 16
    # Optimization.
    learning_rate: float = 1e-3
    min_learning_rate: float = 1e-4
    warmup_steps: int | None = None
    weight_decay: float = 0.1
    beta_1: float = 0.9
    beta_2: float = 0.95
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    optimizer: str = "adamw"
    schedule: str = "cosine"
    decay_fraction: float = 0.2
    ema_decay: float = 0.0
    label_smoothing: float = 0.0
    # How a step is computed.
    precision: str = "auto"
    compile: str = "auto"
    steps_per_execution: int | None = None
    # What is told of the run.
    evaluate_every: int | None = None
    patience: int = 0
    log_every: int | None = None
    tensorboard: bool = True
    wandb: str | None = None
    seed: int = 0
    # Fault tolerance: see resume.py.
    overwrite: bool = False
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    # Distribution.
    strategy: str = "auto"

    # What `batch_size` counts.
    examples: ClassVar[str] = "windows"
    # Of a task whose configuration has no such field.
    accumulate_steps: ClassVar[int] = 1
    log_gradients: ClassVar[bool] = False
    measure_peak: ClassVar[bool] = False

    def __post_init__(self):
        """Checks ranges, and fills in what follows from other fields."""
        self._expect("task", self.task == type(self).task, repr(type(self).task))
        self._check_optimization()
        self._expect("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        self._expect("compile", self.compile in COMPILATIONS, f"one of {', '.join(COMPILATIONS)}")
        self.check_products()
        self._expect("strategy", self.strategy in STRATEGIES, f"one of {', '.join(STRATEGIES)}")
        self._expect("wandb", self.wandb is None or self.wandb, "the name of a project")
        self._expect("seed", 0 <= self.seed < 2**32, "from 0 to 2^32 - 1")
        self._expect("patience", self.patience >= 0, "0 or more")
        self._fill_in_intervals()

    @property
    def dtype_policy(self):
        """The name of the Keras policy of the model's layers."""
        return "float32" if self.precision == "bfloat16_products" else self.precision

    def check_products(self):
        """Raises a `UserError` if the products need XLA, which is not to compile them."""
        if self.precision == "bfloat16_products" and self.compile not in ("auto", "step"):
            raise UserError(f"precision is 'bfloat16_products', expected compile 'step' with it, not {self.compile!r}")

    def _check_optimization(self):
        for name in ("steps", "batch_size"):
            self._expect(name, getattr(self, name) >= 1, "at least 1")
        if self.warmup_steps is None:
            self.warmup_steps = min(100, self.steps // 10)
        for name in ("learning_rate", "epsilon"):
            self._expect(name, getattr(self, name) > 0, "above 0")
        for name in ("min_learning_rate", "weight_decay", "clip_norm", "warmup_steps"):
            self._expect(name, getattr(self, name) >= 0, "0 or more")
        for name in ("beta_1", "beta_2", "ema_decay", "label_smoothing"):
            self._expect(name, 0 <= getattr(self, name) < 1, "from 0 to below 1")
        self._expect("optimizer", self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}")
        self._expect("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
        self._expect("decay_fraction", 0 < self.decay_fraction <= 1, "above 0 and at most 1")
        self._expect("warmup_steps", self.warmup_steps <= self.steps, f"at most the {self.steps} steps")

    def _fill_in_intervals(self):
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
        self._expect("evaluate_every", divides(self.evaluate_every, self.steps), f"a divisor of {self.steps}")
        for name, whole in (("log_every", self.evaluate_every), ("steps_per_execution", self.log_every)):
            self._expect(name, divides(getattr(self, name), whole), f"a divisor of {whole}")
        if self.checkpoint_every is None:
            self.checkpoint_every = self.evaluate_every
        multiple = divides(self.log_every, self.checkpoint_every) and self.checkpoint_every >= 1
        self._expect("checkpoint_every", multiple, f"a multiple of log_every {self.log_every}")
        self._expect("keep_checkpoints", self.keep_checkpoints >= 1, "at least 1")

    def _expect(self, name, valid, expected):
        if not valid:
            raise UserError(f"{name} is {getattr(self, name)!r}, expected {expected}")


def divides(part, whole):
    """Whether a number, at least 1, divides another."""
    return part >= 1 and whole % part == 0


def _divisor(whole, near):
    """The largest divisor of `whole` that is at most `near`."""
    return next(d for d in range(max(min(near, whole), 1), 0, -1) if whole % d == 0)
