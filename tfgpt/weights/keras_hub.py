"""keras-hub's GPT-2: its `GPT2CausalLM` objects, and the presets that they are saved to."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import pathlib
import tempfile

import numpy as np

from tfgpt.errors import UserError
from tfgpt.json_file import read_json
from tfgpt.models.gpt2.hugging_face import tensor_shapes
from tfgpt.text import BytePairTokenizer
from tfgpt.text.tokenizer import END_OF_TEXT
from tfgpt.weights.checkpoint import DEFAULTS, DTYPES, Checkpoint, check_tensors, expect_byte_pairs, expect_values

NAME = "keras-hub preset"

SIZES = (
    "vocabulary_size",
    "num_layers",
    "num_heads",
    "hidden_dim",
    "intermediate_dim",
    "max_sequence_length",
    "dropout",
)


def read(directory):
    """The `Checkpoint` of a directory that `save_to_preset` wrote.

    Raises:
        UserError: if it is no GPT-2, or not whole.
    """
    keras_hub = _import_keras_hub(f"to read {directory}")
    directory = pathlib.Path(directory)
    dtype = _stored_dtype(directory / "config.json")
    try:
        # Not the task, whose own file may name any class of Keras; it has nothing that the backbone lacks.
        backbone = keras_hub.models.GPT2Backbone.from_preset(str(directory), dtype=dtype)
    except Exception as error:  # keras-hub, Keras and h5py have no class of their own in common
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"keras-hub cannot open {directory}: {said}") from error
    checkpoint = checkpoint_of(backbone)
    if (directory / "tokenizer.json").exists():
        assets = directory / "assets" / "tokenizer"
        checkpoint = dataclasses.replace(
            checkpoint, tokenizer=BytePairTokenizer.from_files(assets / "vocabulary.json", assets / "merges.txt")
        )
    return checkpoint


def _stored_dtype(path):
    """The dtype of the variables in a preset; asked for nothing, keras-hub would cast them to Keras' default."""
    contents = read_json(path)
    if contents.get("class_name") != "GPT2Backbone":
        raise UserError(f"{path} has class_name {contents.get('class_name')!r}, expected 'GPT2Backbone'")
    config = contents.get("config")
    dtype = config.get("dtype", "float32") if isinstance(config, dict) else None
    if isinstance(dtype, dict):
        dtype = dtype["config"].get("name") if dtype.get("class_name") == "DTypePolicy" else None
    variable_dtype = "float32" if str(dtype).startswith("mixed_") else dtype
    if variable_dtype not in DTYPES:
        raise UserError(f"{path} has dtype {dtype!r}, expected one of {', '.join(DTYPES)} or mixed with float32")
    return variable_dtype


def write(checkpoint, directory):
    """Saves keras-hub's preset into an existing directory.

    Raises:
        UserError: if keras-hub's code would compute something else.
    """
    model = model_of(checkpoint)
    with _quiet():
        model.save_to_preset(str(directory))


def checkpoint_of(model):
    """The `Checkpoint` of a keras-hub `GPT2CausalLM` or `GPT2Backbone`, in the dtype of its variables.

    Raises:
        UserError: if it is another class's.
    """
    backbone = getattr(model, "backbone", model)
    if type(backbone).__name__ != "GPT2Backbone" or not hasattr(backbone, "transformer_layers"):
        raise UserError(f"the model is a {type(model).__name__}, expected keras-hub's GPT2CausalLM")
    config = DEFAULTS | {name: getattr(backbone, name) for name in SIZES}
    shapes = tensor_shapes(config)
    tensors = {}
    for name, variables in _their_variables(backbone).items():
        # Heads are an axis of their own there, and Q, K and V three kernels.
        parts = [np.asarray(variable).reshape(_part_shape(name, shapes[name])) for variable in variables]
        tensors[name] = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
    check_tensors(tensors, shapes, f"the model {model.name}")
    preprocessor = getattr(model, "preprocessor", None)
    return Checkpoint(config, tensors, None if preprocessor is None else _read_tokenizer(preprocessor.tokenizer))


def model_of(checkpoint):
    """keras-hub's `GPT2CausalLM` of a `Checkpoint`, its variables in the dtype of the tensors.

    Raises:
        UserError: if keras-hub's code would compute something else.
    """
    keras_hub = _import_keras_hub("to make its GPT2CausalLM")
    config = checkpoint.config
    expect_values(config, "keras-hub's code", activation="gelu_tanh", layer_norm_epsilon=1e-5)
    tokenizer = checkpoint.tokenizer
    expect_byte_pairs(tokenizer, "keras-hub's GPT-2")
    if tokenizer is not None and tokenizer.end_token_id is None:
        raise UserError(f"the tokenizer lacks {END_OF_TEXT}, expected it: keras-hub's GPT-2 needs it")
    backbone = keras_hub.models.GPT2Backbone(**{name: config[name] for name in SIZES}, dtype=checkpoint.dtype)
    for name, variables in _their_variables(backbone).items():
        for variable, part in zip(variables, np.split(checkpoint.tensors[name], len(variables), axis=-1)):
            variable.assign(part.reshape(variable.shape))
    preprocessor = None
    if tokenizer is not None:
        preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(
            _their_tokenizer(keras_hub, tokenizer), sequence_length=config["max_sequence_length"]
        )
    return keras_hub.models.GPT2CausalLM(backbone=backbone, preprocessor=preprocessor)


def _their_variables(backbone):
    """keras-hub's variables for each of Hugging Face's names: one, or three for Q, K and V."""
    variables = {
        "transformer.wte.weight": [backbone.token_embedding.embeddings],
        "transformer.wpe.weight": [backbone.position_embedding.position_embeddings],
    }

    def add(name, *layers):
        is_norm = hasattr(layers[0], "gamma")
        variables[f"{name}.weight"] = [layer.gamma if is_norm else layer.kernel for layer in layers]
        variables[f"{name}.bias"] = [layer.beta if is_norm else layer.bias for layer in layers]

    for i, block in enumerate(backbone.transformer_layers):
        attention = block._self_attention_layer
        add(f"transformer.h.{i}.ln_1", block._self_attention_layer_norm)
        add(f"transformer.h.{i}.attn.c_attn", attention.query_dense, attention.key_dense, attention.value_dense)
        add(f"transformer.h.{i}.attn.c_proj", attention.output_dense)
        add(f"transformer.h.{i}.ln_2", block._feedforward_layer_norm)
        add(f"transformer.h.{i}.mlp.c_fc", block._feedforward_intermediate_dense)
        add(f"transformer.h.{i}.mlp.c_proj", block._feedforward_output_dense)
    add("transformer.ln_f", backbone.layer_norm)
    return variables


def _part_shape(name, shape):
    return (*shape[:-1], shape[-1] // 3) if ".c_attn." in name else shape


def _read_tokenizer(tokenizer):
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_assets(folder)
        return BytePairTokenizer.from_files(f"{folder}/vocabulary.json", f"{folder}/merges.txt")


def _their_tokenizer(keras_hub, tokenizer):
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        vocabulary = json.loads(pathlib.Path(folder, "vocab.json").read_text(encoding="utf-8"))
        merges = pathlib.Path(folder, "merges.txt").read_text(encoding="utf-8").splitlines()
    return keras_hub.models.GPT2Tokenizer(vocabulary=vocabulary, merges=merges[1:])  # the first names a version


def _import_keras_hub(purpose):
    try:
        import keras_hub
    except ImportError as error:
        raise UserError(f"keras-hub is not installed, expected it {purpose}: pip install keras-hub") from error
    return keras_hub


@contextlib.contextmanager
def _quiet():
    """Without absl's warnings on layers that have no assets."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
