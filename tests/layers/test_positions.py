import keras
import numpy as np
import pytest

from tfgpt.layers import LearnedPositions, SinusoidalPositions

random = np.random.default_rng(0)


def sinusoids(positions, width, wavelength=10_000):
    out = np.empty((*positions.shape, width))
    for i in range(width // 2):
        out[..., 2 * i] = np.sin(positions / wavelength ** (2 * i / width))
        out[..., 2 * i + 1] = np.cos(positions / wavelength ** (2 * i / width))
    return out


@pytest.mark.parametrize("shape", [(7,), (2, 7)])
def test_learned(shape):
    layer = LearnedPositions(16, 4)
    ids = random.integers(0, 16, shape)
    np.testing.assert_array_equal(layer(ids), layer.embeddings.numpy()[ids])
    assert layer.embeddings.shape == (16, 4)


@pytest.mark.parametrize("positions", [np.arange(50), np.arange(24).reshape(2, 12), np.array([0, 1000, 4095])])
def test_sinusoidal(positions):
    expected = sinusoids(positions, 8)
    # float32 holds an angle of some thousand radians to about 2e-4
    tolerance = 1e-6 * max(1, positions.max())
    np.testing.assert_allclose(SinusoidalPositions(8)(positions), expected, atol=tolerance)


def test_sinusoidal_wavelength():
    expected = sinusoids(np.arange(20), 6, wavelength=100)
    np.testing.assert_allclose(SinusoidalPositions(6, max_wavelength=100)(np.arange(20)), expected, atol=1e-5)


def test_sinusoidal_in_half_precision_tells_far_positions_apart():
    positions = np.arange(1000, 1004)
    waves = SinusoidalPositions(8, dtype="mixed_bfloat16")(positions)
    assert waves.dtype == "bfloat16"
    np.testing.assert_allclose(keras.ops.cast(waves, "float32"), sinusoids(positions, 8), atol=5e-3)


def test_sinusoidal_width_is_even():
    with pytest.raises(ValueError, match="even hidden dim, found 7"):
        SinusoidalPositions(7)
