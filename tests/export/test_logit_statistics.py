import numpy as np
import pytest

from tfgpt.export.logit_statistics import CHUNK, log_softmax, logit_statistics, losses


@pytest.mark.parametrize("length", [1, CHUNK, 2 * CHUNK + 5])
def test_statistics_are_those_of_their_definitions(length):
    rng = np.random.default_rng(length)
    reference, found = rng.normal(0, 3, (2, length, 11)).astype(np.float32)
    following = rng.integers(0, 11, length)
    statistics = logit_statistics(reference, found, following)
    for row in range(length):
        p, q = (np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum() for x in (reference[row], found[row]))
        best, second = sorted(reference[row], reverse=True)[:2]
        expected = {
            "largest": max(abs(found[row] - reference[row])),
            "mean": sum(abs(found[row] - reference[row])) / 11,
            "divergence": sum(p * np.log(p / q)),
            "top": list(reference[row]).index(best),
            "found_top": list(found[row]).index(max(found[row])),
            "margin": best - second,
            "reference_loss": -np.log(p[following[row]]),
            "loss": -np.log(q[following[row]]),
        }
        for name, value in expected.items():
            assert getattr(statistics, name)[row] == pytest.approx(value, rel=1e-5), name
    np.testing.assert_array_equal(losses(found, following), statistics.loss)


def test_what_is_no_number_is_an_infinite_difference():
    reference, found = np.zeros((2, 3), np.float32), np.array([[0, np.nan, 0], [0, 1, 0]], np.float32)
    statistics = logit_statistics(reference, found, np.array([0, 0]))
    assert statistics.largest.tolist() == [np.inf, 1]
    assert np.isnan(statistics.loss[0]) and np.isfinite(statistics.loss[1])


def test_large_logits_do_not_overflow():
    found = log_softmax(np.array([[1000, 0, -1000]], np.float32))
    np.testing.assert_allclose(found, [[0, -1000, -2000]])
