import types

import numpy as np
import pytest

from tfgpt.export.parity import (
    RunnerReport,
    check_parity,
    compare_continuations,
    ragged_batches,
)
from tfgpt.export.tolerances import TOLERANCES, Tolerance
from tfgpt.runtime.runner import Runner
from tfgpt.runtime.variants import VARIANTS

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


def continuation_report(expected, found, logits, tolerance=TOLERANCES["float32"]):
    report = RunnerReport("other")
    expectation = types.SimpleNamespace(reference=Fixed(logits), prompts=[[1]], continuations=[expected])
    compare_continuations(report, expectation, [found], tolerance)
    return report


def test_a_near_tie_is_one_between_the_two_tokens_themselves():
    tied = [0, 0, 0, 5, 5, 0, 0]
    assert continuation_report([3, 3], [3, 4], tied).near_ties == 1
    assert continuation_report([3, 3], [3, 6], tied).breaches
    assert continuation_report([3, 3], [3], tied).breaches  # ended early
    assert continuation_report([3, 3], [3, 4], [0, 0, 0, 5, 4.9, 0, 0]).breaches


def test_how_near_a_tie_is_depends_on_the_tolerance():
    near = [0, 0, 0, 5, 4.95, 0, 0]  # by 1 % of the largest logit
    assert continuation_report([3, 3], [3, 4], near).breaches
    report = continuation_report([3, 3], [3, 4], near, Tolerance("wider", logit=2e-2, same_text=True))
    assert (report.passed, report.near_ties) == (True, 1)


@pytest.mark.parametrize("precision", ["float16", "int8", "int8_weight_only", "int4"])
def test_continuations_of_lower_precisions_are_told_and_not_judged(precision):
    report = continuation_report([3, 3, 3], [3, 6, 3], [0, 0, 0, 5, 0, 0, 0], TOLERANCES[precision])
    assert report.passed
    assert (report.identical_greedy_tokens, report.greedy_tokens, report.near_ties) == (1, 3, 0)


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


# === Budgets ===

EVENLY = np.arange(500) % 7  # all 7 tokens are as frequent: a model that knows nothing has a perplexity of 7


def biased_report(bias, precision, reference=0.0):
    """Of a model that has every logit at 0 but the first, on evenly distributed tokens."""
    runner = Fixed([bias, 0, 0, 0, 0, 0, 0])
    runner.precision = precision
    [report] = check_parity(Fixed([reference, 0, 0, 0, 0, 0, 0]), [runner], EVENLY)
    return report


def increase(bias):
    return (np.exp(bias) + 6) / np.exp(bias / 7) / 7 - 1


@pytest.mark.parametrize(
    "bias, precision, breached",
    [
        (0.3, "int8", set()),  # 0.6 % above
        (0.46, "int8", {"perplexity"}),  # 1.4 %
        (0.46, "int8_weight_only", {"perplexity"}),
        (0.46, "int4", set()),
        (0.7, "int8", {"perplexity", "prefill then decode"}),  # 3.3 %: the cache may take 2 %
        (0.85, "int4", set()),  # 5 %
        (1.05, "int4", {"perplexity"}),  # 7.9 %
        (1.6, "int4", {"perplexity", "prefill then decode"}),  # 20 %: the cache may take 12 %
    ],
)
def test_the_perplexity_stays_within_its_budget(bias, precision, breached):
    report = biased_report(bias, precision)
    assert report.perplexity_increase == pytest.approx(increase(bias), abs=1e-3)
    assert report.perplexity == pytest.approx(7 * (1 + increase(bias)), abs=1e-2)
    assert {breach.check for breach in report.breaches} == breached
    assert report.mean_kl_divergence == pytest.approx(np.log1p(increase(bias)), rel=1e-3)


def test_a_breach_of_the_budget_in_words():
    report = biased_report(0.46, "int8")
    [breach] = report.breaches
    assert str(breach) == (
        f"fixed, perplexity, prompt 0, position 0: the perplexity is {report.perplexity:.4f}, "
        f"{report.perplexity_increase:.2%} above 7.0000, expected at most 1.0%"
    )
    assert breach.excess == pytest.approx(increase(0.46) / 0.01, rel=0.05)


@pytest.mark.parametrize("precision", ["float16", "int8_weight_only", "int4"])
@pytest.mark.parametrize("drift, breached", [(0.5, False), (2, True), (np.nan, True)])
def test_the_cache_stays_near_one_pass_of_the_artifact_itself(precision, drift, breached):
    """Also where the perplexity would not tell: the logit of a token that is in no text."""

    class Drifting(Fixed):
        def cached_logits(self, token_ids, padding_mask, prompt_length):
            logits = super().cached_logits(token_ids, padding_mask, prompt_length)
            logits[:, prompt_length:, 6] -= drift * TOLERANCES[precision].cache * 5
            return logits

    runner = Drifting([0, 1, 2, 3, 4, 5, -5])
    runner.precision = precision
    [report] = check_parity(Fixed([0, 1, 2, 3, 4, 5, -5]), [runner], np.arange(500) % 6)
    breaches = [breach for breach in report.breaches if breach.check == "cache"]
    assert bool(breaches) == breached
    for breach in breaches:
        assert "the cache moves a logit by " in breach.message
        assert breach.excess == np.inf  # nothing that more weights in float32 would mend


def test_float16_has_a_limit_for_logits_and_a_budget():
    assert biased_report(0.015, "float16").passed
    assert not biased_report(0.015, "float32").passed
    assert {breach.check for breach in biased_report(0.05, "float16").breaches} >= {"one pass", "prefill then decode"}
    assert "perplexity" in {breach.check for breach in biased_report(0.3, "float16").breaches}


@pytest.mark.parametrize("precision", TOLERANCES)
def test_a_quantized_model_that_is_not_a_number_is_a_breach(precision):
    assert not biased_report(np.nan, precision).passed


def test_perplexity_is_measured_on_the_text_itself():
    """Against the definition, on a text of which the last window is shorter."""
    rng = np.random.default_rng(0)
    tokens, logits = rng.integers(0, 7, 16 * 5 + 3), rng.normal(size=7).astype(np.float32)
    [report] = check_parity(Fixed(np.zeros(7)), [Fixed(logits)], tokens)
    predicted = np.concatenate([tokens[start : start + 16][1:] for start in range(0, len(tokens), 16)])
    losses = np.log(np.exp(logits).sum()) - logits[predicted]
    assert len(predicted) == 5 * 15 + 2
    assert report.perplexity == pytest.approx(np.exp(losses.mean()), rel=1e-6)


def test_limits_in_words():
    assert str(Tolerance("", logit=1e-4, same_text=True)) == (
        "|Δlogit| ≤ 1e-04 × max(1, max |logit|), the same greedy text"
    )
    assert str(Tolerance("", logit=2e-2, perplexity=0.002, cache=0.03)) == (
        "|Δlogit| ≤ 2e-02 × max(1, max |logit|), perplexity at most 0.2% above, cache within 3e-02"
    )
    assert str(Tolerance("", perplexity=0.06)) == "perplexity at most 6.0% above"


def test_every_variant_has_its_tolerance():
    assert set(TOLERANCES) == set(VARIANTS) - {"portable"}
    assert TOLERANCES["int8"].perplexity == 0.01 and TOLERANCES["int4"].perplexity == 0.06
