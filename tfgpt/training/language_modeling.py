"""The task of `tfgpt train` on plain text: a GPT-2 that predicts the next token."""

from __future__ import annotations

import dataclasses
import json
import pathlib

from tfgpt.atomic import write_text
from tfgpt.errors import UserError
from tfgpt.models.gpt2 import GPT2Backbone, model_directory, preset_config
from tfgpt.text import sequential_windows, training_windows
from tfgpt.training.arrangement import arrange
from tfgpt.training.distributed_fit import distributed_model_class
from tfgpt.training.evaluation import evaluate_tokens
from tfgpt.training.kernels import choose_kernels
from tfgpt.training.losses import TokenLoss
from tfgpt.training.recompute import recompute_blocks
from tfgpt.training.resume import open_tokens
from tfgpt.training.run_data import open_run_data
from tfgpt.training.run_directory import replace_run, staging
from tfgpt.training.run_report import report
from tfgpt.training.task import Task, check_heads, compile_for_fit
from tfgpt.training.train_step import TrainingCausalLM
from tfgpt.training.utilization import utilization_of


class LanguageModeling(Task):
    """Next-token prediction on windows of text.

    Args:
        config: a `RunConfig`.
    """

    @property
    def hidden_dim(self):
        return self._model_config()["hidden_dim"]

    def begin(self, config, observer, distribution):
        directory = pathlib.Path(config.out)
        training = directory / "training"
        observer.stage("reading text")
        data = open_run_data(config)
        model_config = self._model_config()
        observer.stage("tokenizing")
        tokenizer = data.tokenizer(config.vocabulary_size or model_config["vocabulary_size"])
        model = self._make_model(config, tokenizer, distribution, initialize=True)
        # Tokens come to their place, and an older model goes, only when nothing that was given can be wrong any more.
        with staging(directory) as tokens:
            self._open(config, model, *data.splits(tokenizer, tokens))
            self.training()  # for its checks, as the next
            self.validation()
            replace_run(directory, tokens)
        tokenizer.save(training / "tokenizer")
        data.remember(training)
        write_text(training / "config.json", json.dumps(dataclasses.asdict(config), indent=2) + "\n")
        return model

    def reopen(self, config, observer, distribution):
        observer.stage("checking the tokens of the unfinished run")
        tokenizer, train_split, validation_split = open_tokens(config, pathlib.Path(config.out) / "training")
        model = self._make_model(config, tokenizer, distribution, initialize=False)
        self._open(config, model, train_split, validation_split)
        return model

    def _make_model(self, config, tokenizer, distribution, initialize):
        """The model, with the weights of the one that is fine-tuned if there is one, unless others are to come."""
        with distribution.scope():
            model = make_model(config, self._model_config(), tokenizer)
            if initialize and config.init is not None:
                self.read_weights(model, pathlib.Path(config.init))
        return model

    def _open(self, config, model, train_split, validation_split):
        self.config = config
        self.train_split, self.validation_split = train_split, validation_split
        self.window = model.backbone.max_sequence_length
        self.tokens_per_step = config.batch_size * self.window

    def _model_config(self):
        config = self.config
        sizes = preset_config(config.preset) if config.init is None else model_directory.read_config(config.init)
        return sizes | config.model_overrides()

    def training(self, step=0, num_pipelines=1, pipeline=0):
        batch_size, seed = self.config.batch_size, self.config.seed
        return training_windows(self.train_split, self.window, batch_size, seed, step, num_pipelines, pipeline)

    def validation(self, num_pipelines=1, pipeline=0):
        batches = self.config.validation_batches
        split, batch_size = self.validation_split, self.config.batch_size
        return sequential_windows(split, self.window, batch_size, batches, num_pipelines, pipeline)

    def write(self, model, directory):
        model_directory.write_model_files(model, directory)

    def read_weights(self, model, directory):
        model_directory.read_weights(model.backbone, directory / model_directory.WEIGHTS)

    def sample(self, model):
        config = self.config
        if not config.sample_tokens:
            return None
        prompt = config.sample_prompt or model.tokenizer.decode(self.validation_split.read(0, 16).tolist())
        return model.generate(prompt, max_new_tokens=config.sample_tokens, temperature=0.8, seed=config.seed)

    def utilization(self, model):
        return utilization_of(model)

    def report(self, directory, model, callbacks, utilization, interrupted):
        split = self.validation_split
        tokens = split.read(0, split.num_tokens)
        evaluation = evaluate_tokens(model, tokens, split.num_bytes, stride=self.window)
        return report(directory, model, evaluation, callbacks, utilization, interrupted)


def make_model(config, model_config, tokenizer):
    """The model, randomly initialized under the run's seed and compiled.

    Args:
        config: a `RunConfig`.
        model_config: `GPT2Backbone`'s arguments; its vocabulary is the tokenizer's.
        tokenizer: see `tfgpt.text`.
    """
    check_heads(model_config)
    config = arrange(config, model_config["hidden_dim"])
    if config.init is None:
        model_config["vocabulary_size"] = tokenizer.vocabulary_size
        model_config["intermediate_dim"] = config.intermediate_dim or 4 * model_config["hidden_dim"]
    else:
        model_directory.check_vocabulary(tokenizer, model_config["vocabulary_size"], config.init)
    backbone = GPT2Backbone(**model_config, dtype=config.dtype_policy)
    if config.recompute:
        if backbone.dropout:
            raise UserError(
                f"dropout is {backbone.dropout}, expected 0 with recompute: it would drop other places the second time"
            )
        recompute_blocks(backbone)
    model = distributed_model_class(TrainingCausalLM)(
        backbone,
        tokenizer,
        label_smoothing=config.label_smoothing,
        z_loss=config.z_loss,
        kernels=choose_kernels(config),
        accumulate_steps=config.accumulate_steps,
        log_gradients=config.log_gradients,
    )
    return compile_for_fit(model, config, TokenLoss())  # of validation, whatever training adds to it
