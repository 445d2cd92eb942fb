"""The task of `tfgpt train --task instruction_tuning`: a GPT-2 that learns the answers of prompts, not the prompts."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib

import numpy as np
import tensorflow as tf

from tfgpt.atomic import write_text
from tfgpt.text import load_tokenizer, make_tokenizer
from tfgpt.text.corpus import TextString
from tfgpt.text.prompts import encode_prompted, prompted_training, prompted_validation, read_prompted
from tfgpt.training.data_files import check_files, hold_out, remember_files
from tfgpt.training.evaluation import Evaluation
from tfgpt.training.language_modeling import LanguageModeling
from tfgpt.training.losses import token_losses
from tfgpt.training.run_directory import replace_run
from tfgpt.training.run_report import report


class InstructionTuning(LanguageModeling):
    """Next-token prediction on examples of a prompt and its answer, the loss being on the answers alone.

    Args:
        config: an `InstructionConfig`.
    """

    def begin(self, config, observer, distribution):
        self.config = config
        training = pathlib.Path(config.out) / "training"
        observer.stage("reading examples")
        learned, held_out = self._read()
        observer.stage("tokenizing")
        documents = [TextString(text) for example in learned for text in (example.prompt, example.answer) if text]
        size = config.vocabulary_size or self._model_config()["vocabulary_size"]
        tokenizer = make_tokenizer(config.tokenizer, documents, size)
        model = self._make_model(config, tokenizer, distribution, initialize=True)
        self._open_examples(model, tokenizer, learned, held_out)
        replace_run(pathlib.Path(config.out))
        tokenizer.save(training / "tokenizer")
        remember_files(training, self._files())
        write_text(training / "config.json", json.dumps(dataclasses.asdict(config), indent=2) + "\n")
        return model

    def reopen(self, config, observer, distribution):
        self.config = config
        training = pathlib.Path(config.out) / "training"
        observer.stage("checking the examples of the unfinished run")
        check_files(training, self._files(), config.out)
        tokenizer = load_tokenizer(training / "tokenizer")
        model = self._make_model(config, tokenizer, distribution, initialize=False)
        self._open_examples(model, tokenizer, *self._read())
        return model

    def _files(self):
        return [*self.config.data, *(self.config.validation_data or ())]

    def _read(self):
        config = self.config
        templates = config.prompt_template, config.answer_template
        examples = read_prompted(config.data, *templates)
        if config.validation_data:
            return examples, read_prompted(config.validation_data, *templates)
        return hold_out(examples, config.validation_fraction, config.seed, config.data)

    def _open_examples(self, model, tokenizer, learned, held_out):
        config = self.config
        self.window = model.backbone.max_sequence_length
        self.learned, self.held_out = (
            encode_prompted(tokenizer, examples, self.window, config.truncate) for examples in (learned, held_out)
        )
        self.first_prompt = held_out[0].prompt
        answers = sum(map(len, self.learned.token_ids)) - sum(self.learned.num_prompt_tokens)
        self.tokens_per_step = config.batch_size * answers / len(learned)

    def training(self, step=0, num_pipelines=1, pipeline=0):
        config = self.config
        return prompted_training(
            self.learned, self.window, config.batch_size, config.seed, step, num_pipelines, pipeline
        )

    def validation(self, num_pipelines=1, pipeline=0):
        config = self.config
        return prompted_validation(
            self.held_out, self.window, config.batch_size, config.validation_batches, num_pipelines, pipeline
        )

    def sample(self, model):
        config, prompt = self.config, self.config.sample_prompt or self.first_prompt
        if not config.sample_tokens or len(model.tokenizer.encode(prompt)) > self.window:
            return None
        return model.generate(prompt, max_new_tokens=config.sample_tokens)

    def report(self, directory, model, callbacks, utilization, interrupted):
        evaluation = evaluate_answers(model, self.held_out, self.window, self.config.batch_size)
        return report(directory, model, evaluation, callbacks, utilization, interrupted)


def evaluate_answers(model, tokens, width, batch_size):
    """The `Evaluation` of a model on the answers of examples, each token of them predicted once.

    Args:
        model: a `GPT2CausalLM`.
        tokens: `PromptedTokens`.
        width: of the batches.
        batch_size: examples at once.
    """

    @tf.function(autograph=False)
    def sums(inputs, targets, weights):
        logits = model(inputs, training=False)
        right = tf.cast(tf.argmax(logits, axis=-1, output_type=targets.dtype) == targets, tf.float32)
        return tf.stack([tf.reduce_sum(x * weights) for x in (token_losses(logits, targets), right, 1.0)])

    batches = prompted_validation(tokens, width, batch_size)
    loss, right, count = np.sum([sums(*batch).numpy().astype(np.float64) for batch in batches], axis=0)
    return Evaluation(
        loss=float(loss / count),
        perplexity=math.exp(min(loss / count, 700.0)),
        bits_per_byte=float(loss / math.log(2) / max(tokens.num_answer_bytes, 1)),
        accuracy=float(right / count),
        tokens=int(count),
        bytes=tokens.num_answer_bytes,
    )
