"""The run that trains an encoder–decoder Transformer to translate: what it is told beside what every run is."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tfgpt.errors import UserError
from tfgpt.training.fit_config import FitConfig


@dataclasses.dataclass(kw_only=True)
class TranslationConfig(FitConfig):
    """A run that trains an encoder–decoder Transformer on sentences and their translations.

    `batch_size` counts tokens: rows times width of the padded sources, and of the targets.

    Args:
        source: a text file, a sentence a line; .gz is unpacked.
        target: the file of their translations, line by line.
        data: a file of lines `source TAB target`, instead of the two.
        validation_source: as `source`, to validate on.
        validation_target: as `target`, to validate on.
        validation_data: as `data`, to validate on.
        validation_fraction: of the pairs, held out at random where no validation files are given.
        preset: the size that the fields below override ("transformer-tiny", "transformer-base", ...).
        tokenizer: "bpe", trained on both sides of the data together, or a directory that holds such a tokenizer.
        vocabulary_size: of a tokenizer that is trained; by default the preset's.
        lowercase: a tokenizer that is trained lower-cases text, and BLEU and chrF do not tell cases apart.
        num_layers: of the encoder and of the decoder; by default the preset's, as for the next six.
        num_heads: H.
        hidden_dim: D.
        intermediate_dim: F; 4 D where D is given.
        max_length: the most tokens of a sentence, its end included.
        dropout: rate at the paper's places.
        attention_dropout: rate on the attention weights; by default `dropout`.
        normalization: "pre" or "post".
        positions: "sinusoidal" or "learned".
        activation: of the feed-forward networks.
        share_embeddings: one matrix for source, target and output; else the source has its own.
        skip_long: leave out pairs with a sentence longer than `max_length`, and count them, instead of refusing them.
        num_buckets: widths of batches, each of which is compiled: more of them mean less padding.
        average_checkpoints: the mean of the weights of so many of the last checkpoints is tried at the end, and is the
            model if it scores better on the validation pairs; 0 tries none.
        num_beams: of the translations that are scored at the end; those during the run are greedy.
        length_penalty: of that search, which ranks by log-probability / length ** length_penalty.
        validation_sentences: how many are translated at each validation, spread over all; 0 for none, then the loss
            says which weights are best, instead of BLEU. At the end, all are.
    """

    task: str = "translation"
    source: str | None = None
    target: str | None = None
    data: str | None = None
    validation_source: str | None = None
    validation_target: str | None = None
    validation_data: str | None = None
    validation_fraction: float = 0.02
    preset: str = "transformer-tiny"
    tokenizer: str = "bpe"
    vocabulary_size: int | None = None
    lowercase: bool = False
    num_layers: int | None = None
    num_heads: int | None = None
    hidden_dim: int | None = None
    intermediate_dim: int | None = None
    max_length: int | None = None
    dropout: float | None = None
    attention_dropout: float | None = None
    normalization: str = "pre"
    positions: str = "sinusoidal"
    activation: str = "relu"
    share_embeddings: bool = True
    skip_long: bool = False
    num_buckets: int = 6
    average_checkpoints: int = 0
    num_beams: int = 5
    length_penalty: float = 1.0
    validation_sentences: int = 1000
    # What differs from other tasks.
    batch_size: int = 4096
    min_learning_rate: float = 0.0
    weight_decay: float = 0.0
    beta_2: float = 0.98
    label_smoothing: float = 0.1
    schedule: str = "inverse_sqrt"

    examples: ClassVar[str] = "tokens"

    def __post_init__(self):
        """Checks ranges, and fills in what follows from other fields."""
        self._check_files("", self.source, self.target, self.data, required=True)
        validation = (self.validation_source, self.validation_target, self.validation_data)
        self._check_files("validation_", *validation, required=False)
        self._expect("validation_fraction", 0 < self.validation_fraction < 1, "between 0 and 1")
        names = ("num_layers", "num_heads", "hidden_dim", "intermediate_dim", "max_length", "vocabulary_size")
        for name in names:
            self._expect(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        for name in ("dropout", "attention_dropout"):
            self._expect(name, getattr(self, name) is None or 0 <= getattr(self, name) < 1, "from 0 to below 1")
        self._expect("normalization", self.normalization in ("pre", "post"), "one of pre, post")
        self._expect("positions", self.positions in ("sinusoidal", "learned"), "one of sinusoidal, learned")
        for name in ("num_buckets", "num_beams"):
            self._expect(name, getattr(self, name) >= 1, "at least 1")
        for name in ("average_checkpoints", "validation_sentences"):
            self._expect(name, getattr(self, name) >= 0, "0 or more")
        self._expect("strategy", self.strategy in ("auto", "one_device"), "one_device for translation")
        self.strategy = "one_device"
        super().__post_init__()
        self.keep_checkpoints = max(self.keep_checkpoints, self.average_checkpoints)

    def _check_files(self, prefix, source, target, data, required):
        pair = [f"{prefix}source", f"{prefix}target"]
        if data is not None and (source or target):
            raise UserError(f"{prefix}data is {data!r} beside {' or '.join(pair)}, expected one or the other")
        if data is None and (source is None) != (target is None):
            missing = pair[0] if source is None else pair[1]
            raise UserError(f"{missing} is missing, expected both {' and '.join(pair)}, or {prefix}data")
        if required and data is None and source is None:
            raise UserError("there is no data, expected source and target, or data")

    def model_overrides(self):
        """The `EncoderDecoderBackbone` arguments that the run sets."""
        values = {
            "num_encoder_layers": self.num_layers,
            "num_decoder_layers": self.num_layers,
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "intermediate_dim": self.intermediate_dim or (self.hidden_dim and 4 * self.hidden_dim),
            "max_sequence_length": self.max_length,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "normalization": self.normalization,
            "positions": self.positions,
            "activation": self.activation,
            "share_embeddings": self.share_embeddings,
        }
        return {name: value for name, value in values.items() if value is not None}
