"""The run that trains a GPT-2: what it is told beside what every run is."""

from __future__ import annotations

import dataclasses

from tfgpt.errors import UserError
from tfgpt.training.fit_config import FitConfig, divides


@dataclasses.dataclass(kw_only=True)
class RunConfig(FitConfig):
    """A run that trains a causal language model on text.

    Args:
        data: files, folders, globs, or "stdlib" for the Python standard library's source; or directories that
            `tfgpt prepare` has made.
        init: the model directory of a GPT-2 to go on from, whose sizes, weights and tokenizer are taken: fine-tuning.
        preset: without `init`, the size that the fields below override ("gpt2", "gpt2-mini", ...).
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
        accumulate_steps: micro-batches that `batch_size` is split into, to need less memory; it divides `batch_size`.
        z_loss: coefficient of log² of the softmax's denominator, in training only; PaLM has 1e-4.
        recompute: compute activations inside blocks again for the gradient instead of keeping them, which takes a
            third longer and leaves one tensor a block of the activations' memory.
        validation_batches: batches of a validation during the run, spread over the split; when the run has ended, the
            whole split is evaluated.
        validation_fraction: of the text, held out.
        max_bytes: of the text, read; by default all.
        sample_prompt: continued at each validation; by default the beginning of the validation split.
        sample_tokens: length of that continuation; 0 takes no samples.
        log_gradients: also log the norms of gradients, of each layer and of all, and with accumulate_steps the noise
            scale; weight histograms at each validation.
        measure_peak: measure this machine's matrix products first, under a second, and report the model FLOPs
            utilization against them.
    """

    task: str = "language_modeling"
    data: list[str]
    data_weights: list[float] | None = None
    init: str | None = None
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
    accumulate_steps: int = 1
    z_loss: float = 0.0
    recompute: bool = False
    validation_batches: int = 20
    validation_fraction: float = 0.1
    max_bytes: int | None = None
    sample_prompt: str | None = None
    sample_tokens: int = 64
    log_gradients: bool = False
    measure_peak: bool = False

    def __post_init__(self):
        """Checks ranges, and fills in what follows from other fields."""
        if isinstance(self.data, str):
            self.data = [self.data]
        if not self.data:
            raise UserError("data is empty, expected files, folders, globs or 'stdlib'")
        super().__post_init__()
        if self.init is not None:
            self._check_init()
        self._expect("validation_batches", self.validation_batches >= 1, "at least 1")
        for name in ("num_layers", "num_heads", "hidden_dim", "intermediate_dim", "max_sequence_length", "max_bytes"):
            self._expect(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        self._expect("initializer_range", self.initializer_range is None or self.initializer_range > 0, "above 0")
        self._expect("dropout", self.dropout is None or 0 <= self.dropout < 1, "from 0 to below 1")
        for name in ("sample_tokens", "z_loss"):
            self._expect(name, getattr(self, name) >= 0, "0 or more")
        whole = divides(self.accumulate_steps, self.batch_size)
        self._expect("accumulate_steps", whole, f"a divisor of the batch_size {self.batch_size}")
        self._expect("validation_fraction", 0 < self.validation_fraction < 1, "between 0 and 1")

    def _check_init(self):
        names = ("vocabulary_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim", "max_sequence_length")
        for name in names:
            self._expect(name, getattr(self, name) is None, "none with init, whose sizes are taken")
        self._expect("tokenizer", self.tokenizer in ("bpe", self.init), "none with init, whose tokenizer is taken")
        self.tokenizer = self.init

    def model_overrides(self):
        """The `GPT2Backbone` arguments that the run sets."""
        names = ("num_layers", "num_heads", "hidden_dim", "intermediate_dim", "max_sequence_length", "dropout")
        names += ("initializer_range",)
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}
