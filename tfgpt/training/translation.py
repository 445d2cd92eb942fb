"""The task of `tfgpt train --task translation`: an encoder–decoder Transformer that learns from sentence pairs."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import keras
import numpy as np
import tensorflow as tf

from tfgpt.atomic import write_text
from tfgpt.errors import UserError
from tfgpt.json_file import read_json
from tfgpt.layers.fusible import kernels
from tfgpt.models.encoder_decoder import (
    EncoderDecoderBackbone,
    EncoderDecoderTransformer,
    encoder_decoder_preset_config,
    model_directory,
)
from tfgpt.models.gpt2.model_directory import WEIGHTS
from tfgpt.text import PairSampler, load_tokenizer, sequential_pairs, training_pairs
from tfgpt.training.averaging import averaged_weights
from tfgpt.training.kernels import choose_kernels
from tfgpt.training.losses import TokenLoss, token_losses
from tfgpt.training.run_directory import replace_run
from tfgpt.training.task import Task, compile_for_fit
from tfgpt.training.translation_data import TranslationData
from tfgpt.training.translation_report import report
from tfgpt.training.translation_scores import score_translations

SAMPLES = 3  # translations that show what the model can do by now


class Translation(Task):
    """Sentences and their translations.

    Args:
        config: a `TranslationConfig`.
    """

    @property
    def validation_columns(self):
        return ("validation_bleu", "validation_chrf") if self.config.validation_sentences else ()

    @property
    def hidden_dim(self):
        return self._model_config()["hidden_dim"]

    def begin(self, config, observer, distribution):
        training = pathlib.Path(config.out) / "training"
        observer.stage("reading text")
        data = TranslationData(config)
        observer.stage("tokenizing")
        tokenizer = data.tokenizer(config.vocabulary_size or self._model_config()["vocabulary_size"])
        model = self._make_model(config, tokenizer)
        self._open(config, model, data, observer)
        replace_run(pathlib.Path(config.out))  # nothing that was given can be wrong any more
        tokenizer.save(training / "tokenizer")
        for side in ("source", "target"):  # by which an export proves itself
            lines = getattr(data.validation, f"{side}s")
            write_text(training / f"validation.{side}.txt", "".join(f"{line}\n" for line in lines))
        write_text(training / "data.json", json.dumps(data.fingerprints, indent=2) + "\n")
        write_text(training / "config.json", json.dumps(dataclasses.asdict(config), indent=2) + "\n")
        return model

    def reopen(self, config, observer, distribution):
        training = pathlib.Path(config.out) / "training"
        observer.stage("reading text")
        data = TranslationData(config)
        stored = read_json(training / "data.json")
        for name, fingerprint in data.fingerprints.items():
            if stored.get(name) != fingerprint:
                raise UserError(
                    f"the {name} pairs have changed since the unfinished run in {config.out} began, expected the same "
                    "text; --overwrite starts anew"
                )
        model = self._make_model(config, load_tokenizer(training / "tokenizer"))
        self._open(config, model, data, observer)
        return model

    def _open(self, config, model, data, observer):
        """Encodes the data, and sets what the trainer asks for."""
        window = model.backbone.max_sequence_length
        self.config, self.held_out = config, data.validation
        self.train_pairs, self.validation_pairs = data.encode(model.tokenizer, window)
        self.sampler = PairSampler(self.train_pairs.lengths, config.batch_size, config.seed, config.num_buckets)
        self.validation()  # for its checks
        # Of targets, padding not counted, in the mean.
        pairs_per_step = len(self.train_pairs) / self.sampler.batches_per_epoch
        self.tokens_per_step = pairs_per_step * (self.train_pairs.num_target_tokens / len(self.train_pairs))
        if self.train_pairs.skipped:
            observer.note(f"{self.train_pairs.skipped} pairs with a sentence longer than {window} tokens are left out")

    def _model_config(self):
        return encoder_decoder_preset_config(self.config.preset) | self.config.model_overrides()

    def _make_model(self, config, tokenizer):
        """The model, randomly initialized under the run's seed and compiled."""
        model_config = self._model_config() | {"vocabulary_size": tokenizer.vocabulary_size}
        width, heads = model_config["hidden_dim"], model_config["num_heads"]
        if width % heads:
            raise UserError(f"hidden_dim is {width}, expected a multiple of num_heads {heads}")
        backbone = EncoderDecoderBackbone(**model_config, dtype=config.dtype_policy)
        model = TrainingTransformer(backbone, tokenizer, config.label_smoothing, kernels=choose_kernels(config))
        return compile_for_fit(model, config, TokenLoss())  # of validation: training smooths labels

    def training(self, step=0, num_pipelines=1, pipeline=0):
        return training_pairs(self.train_pairs, self.sampler, step)

    def validation(self, num_pipelines=1, pipeline=0):
        return sequential_pairs(self.validation_pairs, self.config.batch_size, num_buckets=3)

    def write(self, model, directory):
        model_directory.write_model_files(model, directory)

    def read_weights(self, model, directory):
        model_directory.read_weights(model.backbone, directory / WEIGHTS)

    def score(self, logs):
        return -logs["val_bleu"] if "val_bleu" in logs else logs["val_loss"]

    def callbacks(self, model, observer):
        if not self.config.validation_sentences:
            return []
        count = min(self.config.validation_sentences, len(self.held_out))
        chosen = np.linspace(0, len(self.held_out) - 1, count).round().astype(int)
        return [ValidationScores(self, chosen)]

    def sample(self, model):
        sources, references = self.held_out.sources[:SAMPLES], self.held_out.targets[:SAMPLES]
        found = model.translate(sources, num_beams=1)
        return "\n\n".join("\n".join(texts) for texts in zip(sources, found, references, strict=True))

    def translation_scores(self, model, numbers, **settings):
        """BLEU and chrF of validation pairs.

        Args:
            model: with the weights to be scored.
            numbers: of the pairs.
            **settings: of `translate`.
        """
        sources, references = ([side[i] for i in numbers] for side in (self.held_out.sources, self.held_out.targets))
        return score_translations(model.translate(sources, **settings), references, model.tokenizer.lowercases)

    def report(self, directory, model, callbacks, utilization, interrupted):
        return report(self, directory, model, callbacks, interrupted)


class ValidationScores(keras.callbacks.Callback):
    """Translates validation sentences greedily after each validation, and adds `val_bleu` and `val_chrf` to its logs.

    Args:
        task: the run's `Translation`.
        numbers: of the pairs.
    """

    def __init__(self, task, numbers):
        super().__init__()
        self.task, self.numbers = task, numbers

    def on_epoch_end(self, epoch, logs=None):
        if "val_loss" in logs:
            with averaged_weights(self.model):
                scores = self.task.translation_scores(self.model, self.numbers, num_beams=1)
            logs["val_bleu"], logs["val_chrf"] = scores.bleu, scores.chrf


class TrainingTransformer(EncoderDecoderTransformer):
    """An `EncoderDecoderTransformer` whose `fit` smooths labels in training, and in training alone.

    Losses of batches count by their tokens, which differ from batch to batch.

    Args:
        backbone: an `EncoderDecoderBackbone`.
        tokenizer: kept beside the model.
        label_smoothing: of the training loss.
        kernels: what computes fusible functions in `fit` (see `tfgpt.layers.fusible`); None for themselves.
    """

    def __init__(self, backbone, tokenizer=None, label_smoothing=0.0, kernels=None):
        super().__init__(backbone, tokenizer=tokenizer)
        self.label_smoothing, self.kernels = label_smoothing, kernels

    def train_step(self, data):
        inputs, targets, weights = data
        total = tf.reduce_sum(weights)
        variables = self.trainable_variables
        with kernels(self.kernels):
            with tf.GradientTape() as tape:
                losses = token_losses(self(inputs, training=True), targets, self.label_smoothing)
                loss = tf.reduce_sum(losses * weights) / total
                scaled = self.optimizer.scale_loss(loss)  # of float16's gradients
            gradients = tape.gradient(scaled, [variable.value for variable in variables])
        self._loss_tracker.update_state(loss, sample_weight=total)
        self.optimizer.apply([tf.convert_to_tensor(gradient) for gradient in gradients], variables)
        return self.get_metrics_result()

    def test_step(self, data):
        inputs, targets, weights = data
        with kernels(self.kernels):
            losses = token_losses(self(inputs, training=False), targets)
        total = tf.reduce_sum(weights)
        loss = tf.math.divide_no_nan(tf.reduce_sum(losses * weights), total)
        self._loss_tracker.update_state(loss, sample_weight=total)
        return self.get_metrics_result()
