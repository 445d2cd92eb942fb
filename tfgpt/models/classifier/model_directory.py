"""The model directory of a classifier, written and read: config.json, weights, tokenizer, labels."""

from __future__ import annotations

import json
import pathlib

import numpy as np

from tfgpt.atomic import write_text
from tfgpt.classification import ENCODER_CLASSIFIER, GPT2_CLASSIFIER, is_classifier
from tfgpt.errors import UserError
from tfgpt.json_file import read_json
from tfgpt.models.classifier import hugging_face
from tfgpt.models.classifier.gpt2_classifier import GPT2Classifier
from tfgpt.models.classifier.hugging_face import SCORE
from tfgpt.models.gpt2.hugging_face import canonical_names
from tfgpt.models.gpt2.model_directory import WEIGHTS, assign_stored, read_tokenizer, write_weights
from tfgpt.safetensors_file import SafetensorsFile


def write_model_files(model, directory):
    """Writes the files of a model directory, each atomically; config.json last: a directory that has one is whole.

    Args:
        model: an `EncoderClassifier` or a `GPT2Classifier`; its `tokenizer` is written if it has one.
        directory: an existing directory.

    Raises:
        UserError: if a file cannot be written.
    """
    directory = pathlib.Path(directory)
    if model.tokenizer is not None:
        model.tokenizer.save(directory, model.backbone.max_sequence_length, pads=True)
    tensors = {name: variable.numpy() for name, variable in hugging_face.named_variables(model).items()}
    tensors[SCORE] = np.ascontiguousarray(tensors[SCORE].T)
    write_weights(directory / WEIGHTS, tensors)
    write_text(directory / "config.json", json.dumps(hugging_face.to_config(model), indent=2) + "\n")


def load_classifier(directory, dtype=None, expected=None):
    """The classifier of a model directory, with its tokenizer.

    Args:
        directory: what `save_to_preset` or `tfgpt train --task classification` wrote, or Hugging Face's
            `GPT2ForSequenceClassification`.
        dtype: a dtype or policy of the computation; weights are float32 unless it says otherwise.
        expected: a class that the model must be of.

    Raises:
        UserError: if it is not a whole classifier.
    """
    directory = pathlib.Path(directory)
    path = directory / "config.json"
    config = read_json(path)
    if not is_classifier(config):
        names = f"{GPT2_CLASSIFIER} or {ENCODER_CLASSIFIER}"
        raise UserError(f"{path} has architectures {config.get('architectures')!r}, expected {names}")
    model = hugging_face.from_config(config, path, dtype)
    if expected is not None and not isinstance(model, expected):
        raise UserError(f"{directory} holds an {type(model).__name__}, expected a {expected.__name__}")
    model.tokenizer = read_tokenizer(directory, model.backbone.vocabulary_size)
    read_weights(model, directory / WEIGHTS)
    return model


def read_weights(model, path):
    """Assigns the tensors of a safetensors file to a classifier.

    Raises:
        UserError: if the file is missing, damaged, or its tensors are not this model's, naming them.
    """
    variables = hugging_face.named_variables(model)
    with SafetensorsFile(path) as file:
        names = {name: name for name in file.tensors if name.startswith("score.")}
        others = [name for name in file.tensors if name not in names]
        is_gpt2 = isinstance(model, GPT2Classifier)
        names |= canonical_names(others, path) if is_gpt2 else {name: name for name in others}
        assign_stored(variables, names, file, transposed=(SCORE,))
