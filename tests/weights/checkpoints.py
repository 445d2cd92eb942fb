"""GPT-2 checkpoints of every origin for tests, written without `tfgpt.weights`."""

import json
import re

import ml_dtypes
import numpy as np
import safetensors.numpy
import tensorflow as tf

from tests.models import gpt2_numpy
from tfgpt.text import BytePairTokenizer

LAYERS, HEADS, WIDTH, VOCABULARY, WINDOW = 2, 2, 8, 300, 16
CONFIG = {
    "model_type": "gpt2",
    "vocab_size": VOCABULARY,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_embd": WIDTH,
    "n_positions": WINDOW,
}
HPARAMS = {"n_vocab": VOCABULARY, "n_ctx": WINDOW, "n_embd": WIDTH, "n_head": HEADS, "n_layer": LAYERS}
TOKENIZER = BytePairTokenizer.train(["the cat sat on the mat, the cat ate the rat"] * 3, vocabulary_size=270)
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def weights(dtype="float32", seed=0):
    """Random weights under Hugging Face's names."""
    random = gpt2_numpy.random_weights(LAYERS, WIDTH, VOCABULARY, WINDOW, seed)
    return {name: tensor.astype(DTYPES[dtype]) for name, tensor in random.items()}


def write_hugging_face(directory, tensors, file="model.safetensors", config=CONFIG):
    """config.json and one file of weights; more files with `add=True`."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(t) for name, t in tensors.items()}, directory / file, {"format": "pt"}
    )
    return directory


def write_shards(directory, tensors, count=3):
    """The tensors in several files with an index, as transformers names them."""
    names, weight_map = sorted(tensors), {}
    for i in range(count):
        file = f"model-{i + 1:05}-of-{count:05}.safetensors"
        write_hugging_face(directory, {name: tensors[name] for name in names[i::count]}, file)
        weight_map |= dict.fromkeys(names[i::count], file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


# OpenAI's names, spelled out from the variables of github.com/openai/gpt-2, src/model.py.
OPENAI = {
    r"transformer\.(wte|wpe)\.weight": r"model/\1",
    r"transformer\.h\.(\d+)\.(ln_\d)\.weight": r"model/h\1/\2/g",
    r"transformer\.h\.(\d+)\.(ln_\d)\.bias": r"model/h\1/\2/b",
    r"transformer\.h\.(\d+)\.(attn|mlp)\.(\w+)\.weight": r"model/h\1/\2/\3/w",
    r"transformer\.h\.(\d+)\.(attn|mlp)\.(\w+)\.bias": r"model/h\1/\2/\3/b",
    r"transformer\.ln_f\.weight": "model/ln_f/g",
    r"transformer\.ln_f\.bias": "model/ln_f/b",
}


def openai_tensors(tensors):
    """Under OpenAI's names; the kernels of its convolutions of width 1 are (1, in, out)."""
    theirs = {}
    for name, tensor in tensors.items():
        [(pattern, replacement)] = [item for item in OPENAI.items() if re.fullmatch(item[0], name)]
        theirs[re.sub(pattern, replacement, name)] = tensor[None] if replacement.endswith("/w") else tensor
    return theirs


def write_openai(directory, tensors, hparams=HPARAMS, tokenizer=None):
    """A name-based TensorFlow checkpoint, what TF1's Saver wrote."""
    directory.mkdir(exist_ok=True)
    (directory / "hparams.json").write_text(json.dumps(hparams))
    (directory / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n')
    tf.raw_ops.SaveV2(
        prefix=str(directory / "model.ckpt"),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(tensor) for tensor in tensors.values()],
    )
    if tokenizer is not None:
        tokenizer.save(directory)
        (directory / "vocab.json").rename(directory / "encoder.json")
        (directory / "merges.txt").rename(directory / "vocab.bpe")
        (directory / "tokenizer.json").unlink()
        (directory / "tokenizer_config.json").unlink()
    return directory


def same(found, expected):
    """Asserts that two checkpoints' tensors are equal in every bit and in dtype."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert np.ascontiguousarray(found[name]).tobytes() == np.ascontiguousarray(tensor).tobytes(), name
