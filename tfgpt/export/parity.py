"""Is the artifact the model that was trained? The same tokens in, the same logits and the same text out."""

from __future__ import annotations

import contextlib
import dataclasses
import math

import numpy as np

from tfgpt.export.tolerances import TOLERANCES, Tolerance
from tfgpt.runtime.runner import Runner

GREEDY_PROMPTS = 20
GREEDY_TOKENS = 128
CACHED_STEPS = 16  # how many tokens the cache check decodes one by one


@dataclasses.dataclass(frozen=True)
class Batch:
    """Pieces of real text of unequal length, padded on one side."""

    token_ids: np.ndarray  # (B, T)
    padding_mask: np.ndarray  # (B, T)
    prompts: tuple[int, ...]  # the number of each row's text, for messages


@dataclasses.dataclass(frozen=True)
class Breach:
    """Where an artifact left its tolerance."""

    artifact: str
    check: str
    prompt: int
    position: int
    message: str
    excess: float = math.inf  # how many times the tolerance, where it is a matter of degree

    def __str__(self):
        if self.check == "manifest":
            return f"{self.artifact}: {self.message}"
        return f"{self.artifact}, {self.check}, prompt {self.prompt}, position {self.position}: {self.message}"


@dataclasses.dataclass
class RunnerReport:
    """What was measured of one runtime; sums are over real tokens of the one-pass and the cached check alike."""

    runtime: str
    max_logit_difference: float = 0.0
    scaled_logit_difference: float = 0.0
    mean_logit_difference: float = 0.0
    mean_kl_divergence: float = 0.0
    top1_agreement: float = 1.0
    perplexity: float = 0.0
    perplexity_difference: float = 0.0
    positions: int = 0
    greedy_prompts: int = 0
    greedy_tokens: int = 0
    identical_greedy_tokens: int = 0  # of the prompt that agrees for the fewest
    near_ties: int = 0  # continuations that parted where the reference's two best logits were within tolerance
    breaches: list[Breach] = dataclasses.field(default_factory=list)

    @property
    def passed(self):
        return not self.breaches


def check_parity(reference: Runner, runners, tokens, tolerance: Tolerance = TOLERANCES["float32"], on_progress=None):
    """Compares runners with the reference on real text.

    Args:
        reference: the Keras model's runner.
        runners: those to check.
        tokens: a one-dimensional array of token ids of held-out text.
        tolerance: the limits.
        on_progress: called with a line of text at each check.

    Returns:
        A `RunnerReport` for each runner.
    """
    say = on_progress or (lambda line: None)
    batches = ragged_batches(tokens, reference.window, reference.vocabulary_size)
    cached_batches = _cached_batches(tokens, reference.window)
    prompts = greedy_prompts(tokens, reference.window)
    say("keras: reference continuations")
    expected = reference.greedy(prompts, GREEDY_TOKENS)
    reports = []
    for runner in runners:
        totals = _Totals(RunnerReport(runner.name), tolerance)
        for batch in batches:
            say(f"{runner.name}: one pass over {batch.padding_mask.sum()} tokens")
            logits = reference.logits(batch.token_ids, batch.padding_mask)
            with totals.breach_on_failure("one pass"):
                totals.add("one pass", batch, logits, runner.logits(batch.token_ids, batch.padding_mask))
        for batch in cached_batches:
            say(f"{runner.name}: prefill, then token by token, up to {batch.token_ids.shape[1]} tokens")
            # Against the reference's one pass: it is the cache that is on trial.
            logits = reference.logits(batch.token_ids, batch.padding_mask)
            prefix = max(batch.token_ids.shape[1] - CACHED_STEPS, 1)
            with totals.breach_on_failure("prefill then decode"):
                cached = runner.cached_logits(batch.token_ids, batch.padding_mask, prefix)
                totals.add("prefill then decode", batch, logits, cached)
        say(f"{runner.name}: greedy continuations")
        report = totals.finish()
        with totals.breach_on_failure("greedy continuation"):
            found = runner.greedy(prompts, GREEDY_TOKENS)
            compare_continuations(report, reference, prompts, expected, found, tolerance)
        reports.append(report)
    return reports


def ragged_batches(tokens, window, vocabulary_size, rows=8):
    """Texts of lengths from a few tokens to the full window, in batches padded on the left and on the right in turn."""
    lengths = sorted({max(2, round(window * (i + 1) / rows)) for i in range(rows)})
    texts = [_text(tokens, i, len(lengths), length) for i, length in enumerate(lengths)]
    # About 256 MB of float32 logits, but at least two rows, or nothing would be ragged, and at least two batches, for
    # each side to be padded once.
    rows_at_once = max(1, min(len(lengths) // 2, max(2, 2**26 // (window * vocabulary_size))))
    groups = [range(i, min(i + rows_at_once, len(texts))) for i in range(0, len(texts), rows_at_once)]
    return [_pad([texts[i] for i in group], group, left=bool(n % 2)) for n, group in enumerate(groups)]


def greedy_prompts(tokens, window):
    """`GREEDY_PROMPTS` pieces of text of unequal lengths, from one token up to 32 or half the window."""
    longest = min(32, max(window // 2, 1))
    return [
        _text(tokens, i, GREEDY_PROMPTS, 1 + i * (longest - 1) // (GREEDY_PROMPTS - 1)).tolist()
        for i in range(GREEDY_PROMPTS)
    ]


def compare_continuations(report, reference, prompts, expected, found, tolerance):
    """Compares greedy continuations, and looks at the reference's logits where they part.

    After the window was cut the context is not the prompt and its continuation any more, so a near tie is recognized
    before that only; a difference after it is a breach.
    """
    report.greedy_prompts = len(prompts)
    report.greedy_tokens = len(expected[0])
    same = [_identical_length(a, b) for a, b in zip(expected, found, strict=True)]
    report.identical_greedy_tokens = min(same)
    for number, (prompt, a, b, length) in enumerate(zip(prompts, expected, found, same, strict=True)):
        if length == len(a) == len(b):
            continue
        context = np.array([prompt + a[:length]])
        margin = np.inf
        if context.shape[1] <= reference.window and length < min(len(a), len(b)):
            logits = reference.logits(context, np.ones_like(context))[0, -1]
            margin = (logits[a[length]] - logits[b[length]]) / max(1.0, np.abs(logits).max())
        if margin <= tolerance.logit:
            report.near_ties += 1
            continue
        want, got = (row[length] if length < len(row) else "nothing" for row in (a, b))
        message = f"the greedy continuation has token {got}, expected {want}"
        report.breaches.append(Breach(report.runtime, "greedy continuation", number, length, message, excess=0.0))


class _Totals:
    """Adds up differences over batches."""

    def __init__(self, report, tolerance):
        self.report, self.tolerance = report, tolerance
        self.absolute = self.kl = self.agreed = 0.0
        self.losses, self.reference_losses = [], []

    @contextlib.contextmanager
    def breach_on_failure(self, check):
        """An artifact that its runtime refuses to run is a breach like any other."""
        try:
            yield
        except Exception as error:  # what runtimes raise has no base class in common
            lines = [line for line in str(error).splitlines() if line.strip()]
            message = f"the runtime failed: {lines[0] if lines else type(error).__name__}"
            self.report.breaches.append(Breach(self.report.runtime, check, 0, 0, message))

    def add(self, check, batch, reference, found):
        if found.shape != reference.shape:
            message = f"logits have shape {found.shape}, expected {reference.shape}"
            self.report.breaches.append(Breach(self.report.runtime, check, batch.prompts[0], 0, message))
            return
        for row, prompt in enumerate(batch.prompts):
            real = batch.padding_mask[row].astype(bool)
            self._add_row(check, prompt, batch.token_ids[row][real], reference[row][real], found[row][real])

    def _add_row(self, check, prompt, token_ids, reference, found):
        report, limit = self.report, self.tolerance.logit
        scale = max(1.0, float(np.abs(reference).max()))
        difference = np.abs(found - reference)
        difference = np.where(np.isnan(difference), np.inf, difference)  # NaN must not compare as small
        by_position = difference.max(axis=-1)
        worst = int(by_position.argmax())
        report.max_logit_difference = max(report.max_logit_difference, float(by_position[worst]))
        report.scaled_logit_difference = max(report.scaled_logit_difference, float(by_position[worst]) / scale)
        if not by_position[worst] / scale <= limit:  # so that an infinite reference, whose ratio is NaN, is a breach
            message = (
                f"the largest logit difference is {by_position[worst] / scale:.2e} of max(1, |logit|) = {scale:.3g}, "
                f"expected at most {limit:.0e}"
            )
            excess = float(by_position[worst]) / scale / limit
            report.breaches.append(Breach(report.runtime, check, prompt, worst, message, excess))

        p, q = _log_softmax(reference), _log_softmax(found)
        top = reference.argmax(axis=-1)
        agreed = found.argmax(axis=-1) == top
        two_best = np.sort(reference, axis=-1)[:, -2:]
        clear = (two_best[:, 1] - two_best[:, 0]) / scale > limit
        for position in np.flatnonzero(clear & ~agreed)[:1]:
            message = f"the likeliest token is {found[position].argmax()}, expected {top[position]}"
            report.breaches.append(Breach(report.runtime, check, prompt, int(position), message, excess=0.0))

        report.positions += len(token_ids)
        self.absolute += float(difference.mean(axis=-1).sum())
        self.kl += float((np.exp(p) * (p - q)).sum())
        self.agreed += int(agreed.sum())
        following = token_ids[1:, None]
        self.losses.append(-np.take_along_axis(q[:-1], following, axis=-1))
        self.reference_losses.append(-np.take_along_axis(p[:-1], following, axis=-1))

    def finish(self):
        report = self.report
        if report.positions:
            report.mean_logit_difference = self.absolute / report.positions
            report.mean_kl_divergence = max(self.kl / report.positions, 0.0)
            report.top1_agreement = self.agreed / report.positions
            report.perplexity = float(np.exp(np.concatenate(self.losses).mean()))
            expected = float(np.exp(np.concatenate(self.reference_losses).mean()))
            report.perplexity_difference = report.perplexity - expected
        return report


def _cached_batches(tokens, window):
    """Short texts, and two that end at the window's end and a little before."""
    groups = [[min(length, window) for length in (CACHED_STEPS + 1, 32, 48, 64)]]
    if window > 64:
        groups.append([window, window - CACHED_STEPS // 2])
    return [
        _pad([_text(tokens, i, len(lengths), n) for i, n in enumerate(lengths)], range(len(lengths)), left=True)
        for lengths in groups
    ]


def _text(tokens, index, count, length):
    """The `index`-th of `count` pieces spread over the text."""
    length = min(length, len(tokens))
    start = (len(tokens) - length) * index // max(count - 1, 1)
    return np.asarray(tokens[start : start + length]).astype(np.int64)


def _pad(texts, prompts, left):
    longest = max(map(len, texts))
    widths = [((longest - len(t), 0) if left else (0, longest - len(t))) for t in texts]
    token_ids = np.stack([np.pad(t, width) for t, width in zip(texts, widths, strict=True)])
    mask = np.stack([np.pad(np.ones_like(t), width) for t, width in zip(texts, widths, strict=True)])
    return Batch(token_ids, mask, tuple(prompts))


def _identical_length(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _log_softmax(logits):
    logits = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
