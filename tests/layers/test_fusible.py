"""Which functions a chooser of kernels gets to see, and where it ends."""

import threading

import numpy as np
import pytest

from tfgpt.layers import TransformerDecoderBlock
from tfgpt.layers.fusible import fusible, kernels


@fusible
def scaled(x, factor):
    return factor * x


def recording(seen):
    def choose(function, **constants):
        seen.append((function.__name__, constants))
        return lambda *tensors: function(*tensors, **constants)

    return choose


def test_a_fusible_function_is_itself_by_default():
    assert scaled(2, factor=3) == 6
    with kernels(None):
        assert scaled(2, factor=3) == 6


def test_the_chooser_gets_function_and_constants_and_goes_at_the_end_of_its_context():
    seen = []
    with pytest.raises(RuntimeError), kernels(recording(seen)):
        assert scaled(2, factor=3) == 6
        raise RuntimeError
    assert scaled(2, factor=5) == 10
    assert seen == [("scaled", {"factor": 3})]


def test_another_thread_has_no_chooser():
    seen = []
    with kernels(recording(seen)):
        thread = threading.Thread(target=scaled, args=(2,), kwargs={"factor": 3})
        thread.start()
        thread.join()
    assert seen == []


def test_what_is_fusible_in_a_block():
    block, x, seen = TransformerDecoderBlock(2, 32), np.ones((1, 5, 8), "float32"), []
    expected = block(x)
    with kernels(recording(seen)):
        np.testing.assert_array_equal(block(x), expected)
    assert [name for name, _ in seen] == [
        *("normalize", "affine", "attention_weights", "affine"),
        *("normalize", "affine", "gelu_tanh", "affine"),
    ]
    with kernels(lambda function, **constants: lambda *tensors: 0 * function(*tensors, **constants)):
        np.testing.assert_array_equal(block(x), x)  # nothing but the residual stream passes
