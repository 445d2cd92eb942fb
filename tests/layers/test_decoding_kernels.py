import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tfgpt.layers.decoding_kernels import matmul, softmax, write_slots

RNG = np.random.default_rng(0)
BUFFER = RNG.normal(size=(2, 3, 7, 4)).astype(np.float32)


def new_slots(count):
    return RNG.normal(size=(2, 3, count, 4)).astype(np.float32)


def expected(new, index):
    buffer = BUFFER.copy()
    buffer[:, :, index : index + new.shape[2]] = new
    return buffer


# === write_slots ===


@pytest.mark.parametrize("count, index", [(1, 0), (1, 3), (1, 6), (3, 0), (3, 4), (7, 0)])
def test_slots_are_written_and_the_others_stay(count, index):
    new = new_slots(count)
    np.testing.assert_array_equal(write_slots(BUFFER, new, index), expected(new, index))


def test_the_buffer_that_was_given_stays_as_it_was():
    buffer = tf.constant(BUFFER)
    write_slots(buffer, new_slots(2), 1)
    np.testing.assert_array_equal(buffer, BUFFER)


@pytest.mark.parametrize("shape", [[2, 3, 7, 4], [None, 3, None, 4]], ids=["static", "dynamic"])
def test_in_a_graph_with_a_traced_index(shape):
    new_shape = [shape[0], 3, None, 4]
    specifications = [tf.TensorSpec(shape), tf.TensorSpec(new_shape), tf.TensorSpec([], tf.int32)]
    function = tf.function(write_slots, input_signature=specifications, autograph=False)
    for count, index in ((1, 0), (1, 6), (2, 3), (7, 0)):
        new = new_slots(count)
        np.testing.assert_array_equal(function(BUFFER, new, index), expected(new, index))


@pytest.mark.parametrize("count", [1, 2])
def test_in_a_loop_it_is_keras_slice_update(count):
    """As the decoding loop writes: the buffer is a loop variable, the index its counter."""
    steps = 7 // count
    new = tf.constant(RNG.normal(size=(steps, 2, 3, count, 4)).astype(np.float32))

    def filled(write):
        @tf.function(autograph=False)
        def loop(buffer):
            def body(step, buffer):
                return step + 1, write(buffer, new[step], step * count)

            return tf.while_loop(lambda step, _: step < steps, body, (0, buffer))[1]

        return loop(tf.constant(BUFFER)).numpy()

    found = filled(write_slots)
    np.testing.assert_array_equal(found, filled(lambda b, n, index: ops.slice_update(b, (0, 0, index, 0), n)))
    np.testing.assert_array_equal(found[:, :, -1], new[-1][:, :, -1] if steps * count == 7 else BUFFER[:, :, -1])


def test_half_precision():
    new = new_slots(2).astype(np.float16)
    found = write_slots(BUFFER.astype(np.float16), new, 5)
    assert found.dtype == tf.float16
    np.testing.assert_array_equal(found[:, :, 5:], new)


def test_the_operator_is_not_xlas():
    specifications = [tf.TensorSpec(BUFFER.shape), tf.TensorSpec([2, 3, 1, 4]), tf.TensorSpec([], tf.int32)]
    graph = tf.function(write_slots, input_signature=specifications, autograph=False).get_concrete_function().graph
    found = {operation.type for operation in graph.get_operations()}
    assert "TensorStridedSliceUpdate" in found
    assert not [name for name in found if name.startswith("Xla")]


# === matmul and softmax ===


@pytest.mark.parametrize("transpose_b", [False, True])
def test_matmul(transpose_b):
    a = RNG.normal(size=(2, 3, 5, 4)).astype(np.float32)
    b = RNG.normal(size=(2, 3, 6, 4) if transpose_b else (2, 3, 4, 6)).astype(np.float32)
    product = a @ (np.swapaxes(b, -1, -2) if transpose_b else b)
    np.testing.assert_allclose(matmul(tf.constant(a), tf.constant(b), transpose_b=transpose_b), product, rtol=1e-5)


def test_softmax():
    x = np.array([[1e4, 1e4, -1e9, 0.0], [-1e9] * 4, [3.0, 1.0, 2.0, -80.0]], np.float32)
    found = softmax(tf.constant(x)).numpy()
    np.testing.assert_allclose(found, ops.softmax(x), rtol=1e-6)
    np.testing.assert_allclose(found[0], [0.5, 0.5, 0, 0])
    np.testing.assert_allclose(found[1], [0.25] * 4)
