"""What a training run is: the arguments of `tfgpt train`, and the keys of its YAML files."""

from __future__ import annotations

import dataclasses

from tfgpt.errors import UserError

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
TOKENIZERS = ("bpe", "character")


@dataclasses.dataclass
class RunConfig:
    """A training run.

    Args:
        data: files, folders, globs, or "stdlib" for the Python standard library's source.
        out: the model directory to be made.
        preset: the size that the fields below override ("gpt2", "gpt2-mini", ...).
        tokenizer: "bpe" and "character" are trained on the data; a directory with vocab.json and merges.txt is read.
        vocabulary_size: of a tokenizer that is trained with "bpe"; by default the preset's.
        num_layers: L; by default the preset's, as for the next six.
        num_heads: H.
        hidden_dim: D.
        intermediate_dim: F; by default 4 D.
        max_sequence_length: the context window, in tokens.
        dropout: rate at GPT-2's three places.
        initializer_range: standard deviation of the initial weights.
        steps: optimizer steps.
        batch_size: windows a step.
        learning_rate: the highest, after warm-up.
        min_learning_rate: the last, at the end of the cosine.
        warmup_steps: of linear warm-up from 0; by default 100, or a tenth of a short run.
        weight_decay: of matrices; biases and normalization are never decayed.
        beta_1: of AdamW.
        beta_2: of AdamW.
        epsilon: of AdamW.
        clip_norm: the global gradient norm; 0 does not clip.
        precision: "float32", "mixed_bfloat16" or "mixed_float16" (with loss scaling).
        jit_compile: compile the step with XLA; by default so, except for mixed_bfloat16 on a CPU.
        steps_per_execution: steps in one call of the compiled function; by default as many as fit the log.
        evaluate_every: steps between validations; divides `steps`. By default a tenth of them.
        validation_batches: batches of a validation during the run, spread over the split; when the run has ended, the
            whole split is evaluated.
        patience: validations without improvement before the run stops early; 0 never stops it.
        log_every: steps between rows of training/metrics.csv; divides `evaluate_every`. By default about 10.
        validation_fraction: of the text, held out.
        max_bytes: of the text, read; by default all.
        sample_prompt: continued at each validation; by default the beginning of the validation split.
        sample_tokens: length of that continuation; 0 takes no samples.
        tensorboard: write TensorBoard logs (the `plots` extra).
        seed: of weights, windows, dropout and samples.
        overwrite: replace a model that `out` holds, or start an unfinished run there anew.
        checkpoint_every: steps between checkpoints, from which the same command continues a run that was ended; a
            multiple of steps_per_execution. By default one at each validation.
        keep_checkpoints: how many of the newest to keep.
    """

    data: list[str]
    out: str
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
    precision: str = "float32"
    jit_compile: bool | None = None
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
    seed: int = 0
    overwrite: bool = False
    # Fault tolerance: see resume.py.
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2

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
        self._expect("validation_fraction", 0 < self.validation_fraction < 1, "between 0 and 1")
        self._expect("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
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

    def model_overrides(self):
        """The `GPT2Backbone` arguments that the run sets."""
        names = ("num_layers", "num_heads", "hidden_dim", "intermediate_dim", "max_sequence_length", "dropout")
        names += ("initializer_range",)
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def _check_checkpoints(self):
        if self.checkpoint_every is None:
            self.checkpoint_every = self.evaluate_every
        multiple = self._divides(self.steps_per_execution, self.checkpoint_every) and self.checkpoint_every >= 1
        self._expect("checkpoint_every", multiple, f"a multiple of the {self.steps_per_execution} steps_per_execution")
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
