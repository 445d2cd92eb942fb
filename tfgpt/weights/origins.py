"""Where a checkpoint is from, and the way from any origin to any other."""

from __future__ import annotations

import json
import os
import pathlib

from tfgpt.atomic import atomic_directory, expect_free
from tfgpt.errors import UserError
from tfgpt.models.gpt2.model_directory import check_vocabulary
from tfgpt.text import load_tokenizer
from tfgpt.weights import hugging_face, keras_hub, nanogpt, openai
from tfgpt.weights.downloads import download

# By the names that `tfgpt convert --to` takes. tfgpt's model directory is Hugging Face's.
ORIGINS = {
    "tfgpt": hugging_face,
    "hugging_face": hugging_face,
    "openai": openai,
    "keras_hub": keras_hub,
    "nanogpt": nanogpt,
}


def detect(path):
    """The module of the origin that a path is from.

    Args:
        path: a directory, or nanoGPT's .pt file.

    Raises:
        UserError: if it is from none of them.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist, expected a model of {', '.join(ORIGINS)}")
    if path.suffix == ".pt" or (path / nanogpt.FILE).exists():
        return nanogpt
    if (path / "hparams.json").exists():
        return openai
    if (path / "config.json").exists():
        return keras_hub if _is_keras_config(path / "config.json") else hugging_face
    raise UserError(
        f"{path} is of no known origin, expected a directory with config.json (Hugging Face, tfgpt, keras-hub), "
        f"hparams.json (OpenAI) or {nanogpt.FILE} (nanoGPT), or such a file"
    )


def _is_keras_config(path):
    try:
        return "class_name" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False  # its reader says what is wrong


def read(path_or_uri, tokenizer=None):
    """The `Checkpoint` of any origin.

    Args:
        path_or_uri: see `load`.
        tokenizer: of another place, instead of the checkpoint's own; see `tfgpt.text`.

    Returns:
        The checkpoint and the module of its origin.

    Raises:
        UserError: as the origins' readers do, and if the tokenizer has more tokens than the embedding.
    """
    path = download(str(path_or_uri))
    origin = detect(path)
    checkpoint = origin.read(path)
    if tokenizer is not None:
        checkpoint.tokenizer, checkpoint.end_token_id = tokenizer, tokenizer.end_token_id
    check_vocabulary(checkpoint.tokenizer, checkpoint.config["vocabulary_size"], path_or_uri)
    return checkpoint, origin


def load(path_or_uri, dtype=None):
    """A `GPT2CausalLM`, with its tokenizer where there is one, of any origin.

    Args:
        path_or_uri: a model directory of tfgpt or Hugging Face, OpenAI's checkpoint directory, keras-hub's preset,
            nanoGPT's ckpt.pt or its directory, hf://user/repository, kaggle://owner/model/keras/variant, or keras-hub's
            `GPT2CausalLM` itself.
        dtype: a dtype or Keras policy of the computation; variables are float32 unless it says otherwise.

    Raises:
        UserError: if it is of no known origin, not whole, or asks for something that tfgpt does not do.
    """
    if not isinstance(path_or_uri, (str, os.PathLike)):
        return keras_hub.checkpoint_of(path_or_uri).to_model(dtype)
    checkpoint, _ = read(path_or_uri)
    return checkpoint.to_model(dtype)


def convert(source, destination, to="tfgpt", tokenizer=None, overwrite=False):
    """Reads a checkpoint of any origin and writes it as another's, in the dtype that it is stored in.

    Args:
        source: see `load`.
        destination: the directory to be made.
        to: one of `ORIGINS`.
        tokenizer: a directory whose tokenizer the model gets, for checkpoints that have none.
        overwrite: replace what `destination` holds.

    Returns:
        The `Checkpoint` that went over, and the name of its origin.

    Raises:
        UserError: if the source cannot be read, or if what is to be written would compute something else.
    """
    if to not in ORIGINS:
        raise UserError(f"--to is {to!r}, expected one of {', '.join(ORIGINS)}")
    expect_free(destination, overwrite)
    checkpoint, origin = read(source, None if tokenizer is None else read_tokenizer(tokenizer))
    with atomic_directory(destination, overwrite=overwrite) as temporary:
        ORIGINS[to].write(checkpoint, temporary)
    return checkpoint, origin.NAME


def read_tokenizer(directory):
    """A directory's tokenizer, in Hugging Face's files or OpenAI's.

    Raises:
        UserError: if it holds none.
    """
    return openai.read_tokenizer(pathlib.Path(directory)) or load_tokenizer(directory)
