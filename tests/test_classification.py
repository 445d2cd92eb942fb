import numpy as np
import pytest

from tfgpt.classification import classifications, logits_of_rows, pad_right, probabilities_of


def test_rows_come_back_in_their_order_whatever_the_batches():
    rows = [[3] * n for n in (5, 1, 4, 2, 2, 9, 1)]
    widths = []

    def logits(token_ids, padding_mask):
        widths.append(token_ids.shape)
        return np.stack([padding_mask.sum(axis=1), (token_ids * padding_mask).sum(axis=1)], axis=1)

    found = logits_of_rows(logits, rows, batch_size=3)
    assert found.tolist() == [[n, 3 * n] for n in (5, 1, 4, 2, 2, 9, 1)]
    assert widths == [(3, 2), (3, 5), (1, 9)]  # neighbours in length share a batch


def test_probabilities_of_large_logits_are_finite():
    np.testing.assert_allclose(probabilities_of(np.array([[1e4, 1e4 - 1.0]])), [[0.7310586, 0.2689414]], atol=1e-7)


def test_classifications():
    [result] = classifications(np.array([[0.25, 0.75]]), ["no", "yes"])
    assert (result.label, result.probability) == ("yes", 0.75)
    assert result.probabilities == {"no": 0.25, "yes": 0.75}


def test_pad_right_to_a_width():
    token_ids, mask = pad_right([[1], [2, 3]], width=4)
    assert token_ids.tolist() == [[1, 0, 0, 0], [2, 3, 0, 0]] and mask.sum() == 3
    with pytest.raises(ValueError, match="broadcast"):
        pad_right([[1, 2, 3]], width=2)
