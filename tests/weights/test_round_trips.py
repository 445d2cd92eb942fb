"""From every origin to every other and back: no bit of a tensor changes, and its dtype stays."""

import itertools
import pathlib
import tempfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.weights.checkpoints import TOKENIZER, same
from tfgpt.models.gpt2.hugging_face import tensor_shapes
from tfgpt.weights import Checkpoint, convert
from tfgpt.weights.origins import ORIGINS, read

PAIRS = list(itertools.product(("tfgpt", "openai", "keras_hub"), repeat=2))
TORCH_PAIRS = [pair for pair in itertools.product((*ORIGINS,), repeat=2) if "nanogpt" in pair]


@st.composite
def checkpoints(draw):
    """Small models of random sizes, every bit pattern of a finite or infinite number among their weights."""
    heads = draw(st.integers(1, 3))
    width = heads * draw(st.integers(1, 4))
    config = {
        "vocabulary_size": draw(st.integers(TOKENIZER.vocabulary_size, TOKENIZER.vocabulary_size + 50)),
        "num_layers": draw(st.integers(1, 3)),
        "num_heads": heads,
        "hidden_dim": width,
        "intermediate_dim": 4 * width,
        "max_sequence_length": draw(st.integers(1, 12)),
        "dropout": 0.1,
        "activation": "gelu_tanh",
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
    }
    dtype = draw(st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        size = np.dtype(dtype).itemsize
        bits = random.integers(0, 256, (*shape[:-1], shape[-1] * size), dtype=np.uint8).view(dtype)
        tensors[name] = np.where(np.isnan(bits.astype("float32")), np.zeros((), dtype), bits).astype(dtype)
    return Checkpoint(config, tensors, draw(st.sampled_from([None, TOKENIZER])))


def check_round_trip(checkpoint, origin, other):
    with tempfile.TemporaryDirectory() as folder:
        start, there, back = (pathlib.Path(folder, name) for name in ("start", "there", "back"))
        start.mkdir()
        ORIGINS[origin].write(checkpoint, start)
        assert convert(start, there, to=other)[1] == ORIGINS[origin].NAME
        assert convert(there, back, to=origin)[1] == ORIGINS[other].NAME
        found, _ = read(back)
        same(found.tensors, checkpoint.tensors)
        assert found.config == checkpoint.config
        assert (found.tokenizer is None) == (checkpoint.tokenizer is None)
        if checkpoint.tokenizer is not None:
            assert found.tokenizer.fingerprint == checkpoint.tokenizer.fingerprint


@pytest.mark.parametrize("origin, other", PAIRS)
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(checkpoint=checkpoints())
def test_there_and_back(origin, other, checkpoint):
    check_round_trip(checkpoint, origin, other)


@pytest.mark.interop
@pytest.mark.parametrize("origin, other", TORCH_PAIRS)
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(checkpoint=checkpoints())
def test_there_and_back_by_way_of_torch(origin, other, checkpoint):
    check_round_trip(checkpoint, origin, other)
