import numpy as np
import pytest
import tensorflow as tf

from tfgpt.layers import causal_mask, decoder_mask, padding_mask_to_attention_mask


@pytest.mark.parametrize("queries, keys, offset", [(4, 4, 0), (1, 1, 0), (2, 6, 4), (3, 8, 2), (1, 5, 4)])
def test_causal_mask(queries, keys, offset):
    mask = causal_mask(queries, keys, offset).numpy()
    assert mask.shape == (queries, keys) and mask.dtype == bool
    for query in range(queries):
        for key in range(keys):
            assert mask[query, key] == (key <= offset + query)


def test_causal_mask_takes_tensors():
    @tf.function
    def mask(queries, keys, offset):
        return causal_mask(queries, keys, offset)

    sizes = (3, 8, 2)
    np.testing.assert_array_equal(mask(*map(tf.constant, sizes)), causal_mask(*sizes))


@pytest.mark.parametrize("dtype", ["bool", "int32", "int64", "float32"])
def test_padding_mask(dtype):
    padding = np.array([[1, 1, 0], [0, 1, 1]])
    mask = padding_mask_to_attention_mask(padding.astype(dtype)).numpy()
    assert mask.shape == (2, 1, 1, 3) and mask.dtype == bool
    np.testing.assert_array_equal(mask[:, 0, 0], padding == 1)


def test_decoder_mask():
    np.testing.assert_array_equal(decoder_mask(3, 3), np.tri(3, dtype=bool))
    padding = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 1]])
    mask = decoder_mask(2, 5, padding, offset=3).numpy()
    assert mask.shape == (2, 1, 2, 5)
    expected = [[[0, 0, 1, 1, 0], [0, 0, 1, 1, 1]], [[1, 1, 1, 0, 0], [1, 1, 1, 0, 1]]]
    np.testing.assert_array_equal(mask[:, 0], np.array(expected, bool))
