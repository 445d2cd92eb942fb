"""The task of `tfgpt train --task classification`: an encoder or a GPT-2 that tells the classes of texts."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import tensorflow as tf

from tfgpt.atomic import write_text
from tfgpt.errors import UserError
from tfgpt.json_file import read_json
from tfgpt.models.classifier import EncoderBackbone, GPT2Classifier
from tfgpt.models.classifier.model_directory import read_weights, write_model_files
from tfgpt.models.gpt2 import preset_config
from tfgpt.models.gpt2.model_directory import WEIGHTS
from tfgpt.text import (
    LabelledSampler,
    class_numbers,
    collect_labels,
    encode_labelled,
    load_tokenizer,
    make_tokenizer,
    read_labelled,
    training_batches,
    validation_batches,
)
from tfgpt.text.corpus import TextString
from tfgpt.training.classification_config import BALANCED
from tfgpt.training.classification_report import report
from tfgpt.training.classifier_fit import TrainingEncoderClassifier, TrainingGPT2Classifier
from tfgpt.training.data_files import check_files, hold_out, remember_files
from tfgpt.training.distributed_fit import distributed_model_class
from tfgpt.training.kernels import choose_kernels
from tfgpt.training.losses import TokenLoss
from tfgpt.training.run_directory import replace_run
from tfgpt.training.task import Task, check_heads, compile_for_fit

ENCODER = {"num_layers": 2, "num_heads": 4, "hidden_dim": 128, "max_sequence_length": 128, "dropout": 0.1}


class Classification(Task):
    """Cross-entropy of classes, on labelled texts.

    Args:
        config: a `ClassificationConfig`.
    """

    validation_columns = ("validation_accuracy", "validation_macro_f1")

    @property
    def hidden_dim(self):
        config = self.config
        if config.init is not None:
            return read_json(pathlib.Path(config.init) / "config.json").get("n_embd", 0)
        if config.model == "encoder":
            return config.hidden_dim or ENCODER["hidden_dim"]
        return (preset_config(config.preset) | config.model_overrides())["hidden_dim"]

    # === Data and model ===

    def begin(self, config, observer, distribution):
        self.config = config
        directory = pathlib.Path(config.out)
        observer.stage("reading texts")
        train, validation = self._read()
        labels = collect_labels(train if config.validation_data else [*train, *validation])
        observer.stage("tokenizing")
        tokenizer = self._tokenizer(train)
        with distribution.scope():
            model = self._model(tokenizer, labels)
        self._open(model, tokenizer, train, validation)
        replace_run(directory)
        tokenizer.save(directory / "training" / "tokenizer")
        remember_files(directory / "training", self._files(), labels=labels)
        held_out = [json.dumps({"text": one.text, "label": one.label}, ensure_ascii=False) for one in validation]
        write_text(directory / "training" / "validation.jsonl", "\n".join(held_out) + "\n")  # which an export checks by
        write_text(directory / "training" / "config.json", json.dumps(dataclasses.asdict(config), indent=2) + "\n")
        return model

    def reopen(self, config, observer, distribution):
        self.config = config
        training = pathlib.Path(config.out) / "training"
        observer.stage("checking the texts of the unfinished run")
        before = check_files(training, self._files(), config.out)
        tokenizer = load_tokenizer(training / "tokenizer")
        with distribution.scope():
            model = self._model(tokenizer, before["labels"])
        self._open(model, tokenizer, *self._read())
        return model

    def _read(self):
        """The texts to train on, and those to validate on."""
        config = self.config
        columns = config.text_column, config.label_column
        texts = read_labelled(config.data, *columns)
        if config.validation_data:
            return texts, read_labelled(config.validation_data, *columns)
        return hold_out(texts, config.validation_fraction, config.seed, config.data)

    def _tokenizer(self, train):
        config = self.config
        if config.tokenizer is None and config.init is not None:
            return load_tokenizer(config.init)
        documents = [TextString(text.text) for text in train]
        return make_tokenizer(config.tokenizer or "bpe", documents, config.vocabulary_size)

    def _model(self, tokenizer, labels):
        """The model, compiled, under the run's seed."""
        config = self.config
        options = {"dropout": config.classifier_dropout, "kernels": choose_kernels(config)}
        if config.model == "encoder":
            sizes = ENCODER | config.model_overrides()
            check_heads(sizes)
            kinds = {"normalization": config.normalization, "positions": config.positions}
            backbone = EncoderBackbone(tokenizer.vocabulary_size, **sizes, **kinds, dtype=config.dtype_policy)
            made = TrainingEncoderClassifier
            options["pooling"] = config.pooling
        else:
            backbone = self._gpt2(tokenizer, labels).backbone
            made = TrainingGPT2Classifier
            options["freeze_backbone"] = config.freeze_backbone
        model = distributed_model_class(made)(backbone, labels, tokenizer, **options)
        # The sum over a batch counts each text by its class's weight, whatever the batch's other texts weigh.
        return compile_for_fit(model, config, TokenLoss(config.label_smoothing, reduction="sum_over_batch_size"))

    def _gpt2(self, tokenizer, labels):
        config, overrides = self.config, self.config.model_overrides()
        if config.init is not None:
            made = GPT2Classifier.from_preset(config.init, labels, dtype=config.dtype_policy, **overrides)
            if tokenizer.vocabulary_size > made.backbone.vocabulary_size:
                raise UserError(
                    f"the tokenizer has {tokenizer.vocabulary_size} tokens, expected at most the "
                    f"{made.backbone.vocabulary_size} of {config.init}"
                )
            return made
        sizes = {"vocabulary_size": tokenizer.vocabulary_size} | overrides
        check_heads(preset_config(config.preset) | sizes)
        return GPT2Classifier.from_preset(config.preset, labels, load_weights=False, dtype=config.dtype_policy, **sizes)

    def _open(self, model, tokenizer, train, validation):
        config, window = self.config, model.backbone.max_sequence_length
        self.width = window if config.batching == "padded" else None
        rows = encode_labelled(tokenizer, train, window, config.truncate)
        classes = class_numbers(train, model.labels)
        self.sampler = LabelledSampler(
            rows,
            classes,
            config.batch_size,
            config.seed,
            width=self.width,
            bucket=config.batching == "bucketed",
            token_dropout=config.token_dropout,
        )
        self.rows = encode_labelled(tokenizer, validation, window, config.truncate)
        self.classes = class_numbers(validation, model.labels)
        self.weights = self._class_weights(model.labels, np.array(classes))
        self.tokens_per_step = config.batch_size * float(self.sampler.lengths.mean())

    def _class_weights(self, labels, classes):
        """How much each class counts, float32 (C,), or None: "balanced" is N / (C × texts of the class)."""
        given = self.config.weights_by_label()
        if given is None:
            return None
        if given == BALANCED:
            counts = np.bincount(classes, minlength=len(labels))
            return (len(classes) / (len(labels) * np.maximum(counts, 1))).astype(np.float32)
        if set(given) != set(labels):
            raise UserError(
                f"class_weights are of {', '.join(given)}, expected one for each of the labels {', '.join(labels)}"
            )
        return np.array([given[label] for label in labels], np.float32)

    def _files(self):
        return [*self.config.data, *(self.config.validation_data or ())]

    # === What the trainer asks for ===

    def training(self, step=0, num_pipelines=1, pipeline=0):
        batches = training_batches(self.sampler, step, num_pipelines, pipeline)
        if self.weights is None:
            return batches
        weights = tf.constant(self.weights)
        return batches.map(lambda inputs, classes: (inputs, classes, tf.gather(weights, classes)))

    def validation(self, num_pipelines=1, pipeline=0):
        return validation_batches(self.rows, self.classes, self.config.batch_size, self.width, num_pipelines, pipeline)

    def write(self, model, directory):
        write_model_files(model, directory)

    def read_weights(self, model, directory):
        read_weights(model, directory / WEIGHTS)

    def score(self, logs):
        return logs["val_loss"] if self.config.select_by == "loss" else -logs[f"val_{self.config.select_by}"]

    def report(self, directory, model, callbacks, utilization, interrupted):
        return report(directory, model, self.rows, self.classes, callbacks, len(self.sampler.rows), interrupted)
