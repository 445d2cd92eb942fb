"""The run that trains a classifier: what it is told beside what every run is."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tfgpt.errors import UserError
from tfgpt.training.fit_config import FitConfig

MODELS = ("encoder", "gpt2")
BATCHING = ("bucketed", "padded")
SELECTIONS = ("loss", "accuracy", "macro_f1")
BALANCED = "balanced"


@dataclasses.dataclass(kw_only=True)
class ClassificationConfig(FitConfig):
    """A run that trains a sequence classifier on labelled texts.

    Args:
        data: .tsv, .csv or .jsonl files, each perhaps with .gz.
        validation_data: the same, to validate on; by default a part of `data`.
        validation_fraction: of the texts, held out where there is no `validation_data`.
        text_column: the column with the text, by name, or where a file has no header by number; by default text,
            sentence or the like, and without a header the first of two.
        label_column: the column with the label; by default label, class or the like, and without a header the second.
        truncate: take the first tokens of texts longer than the window, rather than refuse them.
        model: "encoder", or "gpt2" with a head on the last token.
        init: the model directory of a pretrained GPT-2, which is fine-tuned and whose sizes and tokenizer are taken.
        freeze_backbone: train the head of a pretrained GPT-2 alone.
        preset: the size of a GPT-2 without `init`, which the fields from `num_layers` to `initializer_range` override.
        tokenizer: "bpe" and "character" are trained on the texts; a directory with tokenizer.json, or vocab.json and
            merges.txt, is read. By default that of `init`, or "bpe".
        vocabulary_size: of a tokenizer that is trained with "bpe".
        num_layers: L; 2 in an encoder, as for the next by default.
        num_heads: H; 4.
        hidden_dim: D; 128.
        intermediate_dim: F; by default 4 D.
        max_sequence_length: the window, in tokens; 128.
        dropout: rate at embeddings, attention weights and sublayers' outputs; 0.1, and with `init` the model's own.
        initializer_range: standard deviation of the initial weights; 0.02.
        normalization: of an encoder, "pre" or "post".
        positions: of an encoder, "learned", "sinusoidal" or "none".
        pooling: of an encoder, the "mean" of the tokens or the "first" one.
        classifier_dropout: rate on the vector that the head reads.
        token_dropout: rate at which tokens of a text are left out in training, others each time it is drawn.
        batching: "bucketed" puts texts of about one length into a batch, "padded" pads all to the window.
        class_weights: "balanced", or label=weight for each label: how much its texts count in training.
        select_by: what the best weights are best in on validation: loss, accuracy or macro_f1.
    """

    task: str = "classification"
    data: list[str]
    validation_data: list[str] | None = None
    validation_fraction: float = 0.1
    text_column: str | None = None
    label_column: str | None = None
    truncate: bool = False
    model: str = "encoder"
    init: str | None = None
    freeze_backbone: bool = False
    preset: str = "gpt2-mini"
    tokenizer: str | None = None
    vocabulary_size: int = 8192
    num_layers: int | None = None
    num_heads: int | None = None
    hidden_dim: int | None = None
    intermediate_dim: int | None = None
    max_sequence_length: int | None = None
    dropout: float | None = None
    initializer_range: float | None = None
    normalization: str = "pre"
    positions: str = "learned"
    pooling: str = "mean"
    classifier_dropout: float = 0.0
    token_dropout: float = 0.0
    batching: str = "bucketed"
    class_weights: list[str] | None = None
    select_by: str = "loss"

    examples: ClassVar[str] = "texts"

    def __post_init__(self):
        """Checks ranges, and fills in what follows from other fields."""
        for name in ("data", "validation_data"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, [getattr(self, name)])
        if not self.data:
            raise UserError("data is empty, expected .tsv, .csv or .jsonl files")
        super().__post_init__()
        self._expect("validation_fraction", 0 < self.validation_fraction < 1, "between 0 and 1")
        for name, choices in (("model", MODELS), ("batching", BATCHING), ("select_by", SELECTIONS)):
            self._expect(name, getattr(self, name) in choices, f"one of {', '.join(choices)}")
        for name in ("num_layers", "num_heads", "hidden_dim", "intermediate_dim", "max_sequence_length"):
            self._expect(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        self._expect("initializer_range", self.initializer_range is None or self.initializer_range > 0, "above 0")
        for name in ("dropout", "classifier_dropout", "token_dropout"):
            self._expect(name, getattr(self, name) is None or 0 <= getattr(self, name) < 1, "from 0 to below 1")
        if self.init is not None:
            self._expect("model", self.model == "gpt2", "gpt2 with init, which names a pretrained one")
            for name in ("num_layers", "num_heads", "hidden_dim", "intermediate_dim", "max_sequence_length"):
                self._expect(name, getattr(self, name) is None, "none with init, whose sizes are taken")
        self._expect("freeze_backbone", not self.freeze_backbone or self.init, "a pretrained backbone, named by init")
        self.weights_by_label()  # for its checks

    def weights_by_label(self):
        """The class weights as they were given: by label, "balanced", or None.

        Raises:
            UserError: if they are neither.
        """
        if not self.class_weights or self.class_weights == [BALANCED]:
            return self.class_weights[0] if self.class_weights else None
        weights = {}
        for entry in self.class_weights:
            label, equals, weight = entry.rpartition("=")
            try:
                weights[label] = float(weight)
            except ValueError:
                weights[label] = -1.0
            if not equals or not 0 < weights[label] < float("inf"):
                raise UserError(
                    f"class_weights has {entry!r}, expected balanced, or label=weight with a weight above 0"
                )
        return weights

    def model_overrides(self):
        """The backbone's arguments that the run sets."""
        names = ("num_layers", "num_heads", "hidden_dim", "intermediate_dim", "max_sequence_length", "dropout")
        names += ("initializer_range",)
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}
