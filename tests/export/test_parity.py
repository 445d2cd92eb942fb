import numpy as np
import pytest

from tfgpt.export.parity import (
    RunnerReport,
    check_parity,
    compare_continuations,
    ragged_batches,
)
from tfgpt.export.tolerances import TOLERANCES
from tfgpt.runtime.runner import Runner

CONFIG = {"n_positions": 16, "vocab_size": 7, "n_layer": 1, "n_head": 1, "n_embd": 4}


@pytest.mark.parametrize("window, vocabulary_size", [(1024, 50257), (128, 4096), (64, 65), (256, 8192)])
def test_batches_are_ragged_and_padded_on_both_sides_at_every_size(window, vocabulary_size):
    batches = ragged_batches(np.arange(10_000) % 65, window, vocabulary_size)
    assert len(batches) >= 2
    for batch in batches:
        assert len(set(batch.padding_mask.sum(axis=1))) > 1
    left, right = (any((b.padding_mask[:, column] == 0).any() for b in batches) for column in (0, -1))
    assert left and right
    assert max(batch.token_ids.shape[1] for batch in batches) == window


class Fixed(Runner):
    """A model whose logits are the same after every token."""

    name = "fixed"

    def __init__(self, logits):
        super().__init__(CONFIG)
        self.fixed = np.array(logits, np.float32)

    def step(self, token_ids, padding_mask, position_ids, cache):
        return np.tile(self.fixed, (*np.shape(token_ids), 1)), cache


def continuation_report(expected, found, logits):
    report = RunnerReport("other")
    compare_continuations(report, Fixed(logits), [[1]], [expected], [found], TOLERANCES["float32"])
    return report


def test_a_near_tie_is_one_between_the_two_tokens_themselves():
    tied = [0, 0, 0, 5, 5, 0, 0]
    assert continuation_report([3, 3], [3, 4], tied).near_ties == 1
    assert continuation_report([3, 3], [3, 6], tied).breaches
    assert continuation_report([3, 3], [3], tied).breaches  # ended early
    assert continuation_report([3, 3], [3, 4], [0, 0, 0, 5, 4.9, 0, 0]).breaches


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_reference_that_is_not_finite_proves_nothing(wrong):
    reference = Fixed([0, wrong, 0, 5, 1, 0, 0])
    [report] = check_parity(reference, [Fixed([0, 1, 2, 3, 4, 5, 6])], np.arange(200) % 7)
    assert not report.passed


def test_the_same_model_passes_and_a_runtime_that_fails_is_a_breach():
    class Failing(Fixed):
        def step(self, *arguments):
            raise RuntimeError("no such operator\nat line 7")

    logits = [0, 1, 2, 3, 4, 5, 6]
    same, failing = check_parity(Fixed(logits), [Fixed(logits), Failing(logits)], np.arange(200) % 7)
    assert same.passed
    assert "the runtime failed: no such operator" in str(failing.breaches[0])
