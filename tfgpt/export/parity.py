"""Is the artifact the model that was trained? The same tokens in, the same logits and the same text out."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math

import numpy as np

from tfgpt.export.logit_statistics import logit_statistics, losses
from tfgpt.export.parity_batches import CACHED_STEPS, cached_batches, greedy_prompts, perplexity_batches, ragged_batches
from tfgpt.export.tolerances import TOLERANCES
from tfgpt.runtime.runner import Runner

GREEDY_TOKENS = 128


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


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one weight matrix: what it costs to quantize it, and what it weighs in float32."""

    weight: str
    kl_divergence: float  # of the next token's distribution, mean over positions, in nats
    bytes: int


@dataclasses.dataclass
class RunnerReport:
    """What was measured of one runtime: logits over the real tokens of the one-pass and the cached check alike."""

    runtime: str
    precision: str = "float32"  # which of the tolerances holds
    max_logit_difference: float = 0.0
    scaled_logit_difference: float = 0.0
    mean_logit_difference: float = 0.0
    mean_kl_divergence: float = 0.0
    top1_agreement: float = 1.0
    perplexity: float = 0.0
    perplexity_tokens: int = 0
    perplexity_increase: float = 0.0  # as a fraction of the Keras model's
    positions: int = 0
    greedy_prompts: int = 0
    greedy_tokens: int = 0
    identical_greedy_tokens: int = 0  # of the prompt that agrees for the fewest
    texts: int = 0  # prompts continued as text, by runtimes that have the tokenizer inside
    identical_texts: int = 0
    near_ties: int = 0  # continuations that parted where the reference's two best logits were within tolerance
    sensitivity: list = dataclasses.field(default_factory=list)  # of `Cost`s, where it was measured
    kept_in_float32: list[str] = dataclasses.field(default_factory=list)
    breaches: list[Breach] = dataclasses.field(default_factory=list)

    heading = "greedy"
    compared = "ragged batches up to the full window in one pass, prefill then token by token, and greedy continuations"

    @property
    def passed(self):
        return not self.breaches

    def outputs(self):
        """What was generated, and how much of it is the model's, for tables."""
        found = f"{self.greedy_prompts} × {self.identical_greedy_tokens}/{self.greedy_tokens} tokens"
        if self.texts:
            found += f", {self.identical_texts}/{self.texts} texts"
        return found


class Expectation:
    """What a model gives for some text, computed once for all the artifacts that are compared with it.

    Args:
        reference: the Keras model's runner.
        tokens: a one-dimensional array of token ids of held-out text.
        on_progress: called with a line of text at each stage.
    """

    def __init__(self, reference: Runner, tokens, on_progress=None):
        say = on_progress or (lambda line: None)
        self.reference, self.tokens = reference, tokens
        window, vocabulary_size = reference.window, reference.vocabulary_size
        say("keras: reference logits")
        self.one_pass = [
            (batch, reference.logits(batch.token_ids, batch.padding_mask))
            for batch in ragged_batches(tokens, window, vocabulary_size)
        ]
        # Against the reference's one pass: it is the cache that is on trial.
        self.cached = [
            (batch, reference.logits(batch.token_ids, batch.padding_mask)) for batch in cached_batches(tokens, window)
        ]
        say("keras: reference continuations")
        self.prompts = greedy_prompts(tokens, window)
        self.continuations = reference.greedy(self.prompts, GREEDY_TOKENS)

    @functools.cached_property
    def losses(self):
        """The batches that perplexity is measured on, each with the model's losses of its tokens."""
        batches = perplexity_batches(self.tokens, self.reference.window, self.reference.vocabulary_size)
        return [(batch, text_losses(self.reference, batch)) for batch in batches]


def check_parity(reference: Runner, runners, tokens, on_progress=None):
    """Compares runners with the reference on real text: a `RunnerReport` for each (see `check_runner`).

    Args:
        reference, tokens, on_progress: as in `Expectation`.
        runners: those to check.
    """
    expected = Expectation(reference, tokens, on_progress)
    return [check_runner(expected, runner, on_progress) for runner in runners]


def check_runner(expected: Expectation, runner: Runner, on_progress=None):
    """Compares a runner with what is expected, within the tolerance of its precision.

    Returns:
        A `RunnerReport`.
    """
    say = on_progress or (lambda line: None)
    tolerance = TOLERANCES[runner.precision]
    report = RunnerReport(runner.name, runner.precision)
    totals = Totals(report, tolerance)
    for batch, logits in expected.one_pass:
        say(f"{runner.name}: one pass over {batch.padding_mask.sum()} tokens")
        with breach_on_failure(report, "one pass"):
            totals.add("one pass", batch, logits, runner.logits(batch.token_ids, batch.padding_mask))
    for batch, logits in expected.cached:
        say(f"{runner.name}: prefill, then token by token, up to {batch.token_ids.shape[1]} tokens")
        prefix = max(batch.token_ids.shape[1] - CACHED_STEPS, 1)
        with breach_on_failure(report, "prefill then decode"):
            cached = runner.cached_logits(batch.token_ids, batch.padding_mask, prefix)
            totals.add("prefill then decode", batch, logits, cached, decoded_from=prefix)
            if tolerance.cache is not None:
                at_once = runner.logits(batch.token_ids, batch.padding_mask)
                check_cache(report, batch, at_once, cached, tolerance.cache)
    totals.finish()
    say(f"{runner.name}: perplexity")
    with breach_on_failure(report, "perplexity"):
        measure_perplexity(report, runner, expected.losses, tolerance.perplexity)
    say(f"{runner.name}: greedy continuations")
    with breach_on_failure(report, "greedy continuation"):
        found = runner.greedy(expected.prompts, GREEDY_TOKENS)
        compare_continuations(report, expected, found, tolerance)
    return report


def check_cache(report, batch, at_once, cached, limit):
    """Compares what an artifact gives by way of its cache with what it gives in one pass."""
    for row, prompt in enumerate(batch.prompts):
        real = batch.padding_mask[row].astype(bool)
        difference = np.abs(cached[row][real] - at_once[row][real]).max(axis=-1)
        scale = max(1.0, float(np.abs(at_once[row][real]).max()))
        worst = int(difference.argmax())
        if not difference[worst] / scale <= limit:
            message = (
                f"the cache moves a logit by {difference[worst] / scale:.2e} of max(1, |logit|) = {scale:.3g}, "
                f"expected at most {limit:.0e}"
            )
            report.breaches.append(Breach(report.runtime, "cache", prompt, worst, message))


def measure_perplexity(report, runner, expected_losses, budget, losses_of=None):
    """Sets the report's perplexity, and adds a breach if it is more than `budget`, if any, above the expected one.

    Args:
        report, runner: of the artifact.
        expected_losses: pairs (batch, the model's losses).
        budget: as a fraction.
        losses_of: gives a runner's losses of a batch; by default of a causal language model's.
    """
    losses_of = losses_of or text_losses
    report.perplexity_tokens = sum(len(reference) for _, reference in expected_losses)
    found = float(np.exp(np.concatenate([losses_of(runner, batch) for batch, _ in expected_losses]).mean()))
    expected = float(np.exp(np.concatenate([reference for _, reference in expected_losses]).mean()))
    report.perplexity, report.perplexity_increase = found, found / expected - 1
    if budget is not None:
        _check_budget(report, "perplexity", found, expected, budget)


def text_losses(runner, batch):
    """The cross-entropy of each real token of a batch but the first of its row, in nats."""
    logits = runner.logits(batch.token_ids, batch.padding_mask)
    found = []
    for row, mask in enumerate(batch.padding_mask.astype(bool)):
        found.append(losses(logits[row][mask][:-1], batch.token_ids[row][mask][1:]))
    return np.concatenate(found)


def _check_budget(report, check, found, expected, budget):
    if not found <= expected * (1 + budget):  # so that NaN is a breach
        message = (
            f"the perplexity is {found:.4f}, {found / expected - 1:.2%} above {expected:.4f}, "
            f"expected at most {budget:.1%}"
        )
        excess = (found / expected - 1) / budget if found == found else math.inf
        report.breaches.append(Breach(report.runtime, check, 0, 0, message, excess))


@contextlib.contextmanager
def breach_on_failure(report, check):
    """An artifact that its runtime refuses to run is a breach like any other."""
    try:
        yield
    except Exception as error:  # what runtimes raise has no base class in common
        lines = [line for line in str(error).splitlines() if line.strip()]
        message = f"the runtime failed: {lines[0] if lines else type(error).__name__}"
        report.breaches.append(Breach(report.runtime, check, 0, 0, message))


def compare_continuations(report, expected, found, tolerance):
    """Compares greedy continuations, and looks at the reference's logits where they part.

    How many tokens are the same is told of every precision, and judged where its tolerance says so.

    After the window was cut the context is not the prompt and its continuation any more, so a near tie is recognized
    before that only; a difference after it is a breach.
    """
    reference, prompts, continuations = expected.reference, expected.prompts, expected.continuations
    report.greedy_prompts = len(prompts)
    report.greedy_tokens = len(continuations[0])
    same = [identical_length(a, b) for a, b in zip(continuations, found, strict=True)]
    report.identical_greedy_tokens = min(same)
    if not tolerance.same_text:
        return
    for number, (prompt, a, b, length) in enumerate(zip(prompts, continuations, found, same, strict=True)):
        if length == len(a) == len(b):
            continue
        if is_near_tie(reference, prompt, a, b, length, tolerance.logit):
            report.near_ties += 1
            continue
        want, got = (row[length] if length < len(row) else "nothing" for row in (a, b))
        message = f"the greedy continuation has token {got}, expected {want}"
        report.breaches.append(Breach(report.runtime, "greedy continuation", number, length, message, excess=0.0))


def is_near_tie(reference, prompt, a, b, length, limit):
    """Whether the tokens that continuations `a`, the reference's, and `b` part with are as likely, within `limit`."""
    context = np.array([[*prompt, *a[:length]]])
    if context.shape[1] > reference.window or length >= min(len(a), len(b)):
        return False
    logits = reference.logits(context, np.ones_like(context))[0, -1]
    return (logits[a[length]] - logits[b[length]]) / max(1.0, np.abs(logits).max()) <= limit


class Totals:
    """Adds up differences over batches."""

    def __init__(self, report, tolerance):
        self.report, self.tolerance = report, tolerance
        self.absolute = self.kl = self.agreed = 0.0
        self.losses, self.reference_losses = [], []  # of what was decoded from the cache

    def add(self, check, batch, reference, found, decoded_from=None):
        """Adds a batch, whose columns from `decoded_from` on came out of the cache."""
        if found.shape != reference.shape:
            message = f"logits have shape {found.shape}, expected {reference.shape}"
            self.report.breaches.append(Breach(self.report.runtime, check, batch.prompts[0], 0, message))
            return
        for row, prompt in enumerate(batch.prompts):
            real = batch.padding_mask[row].astype(bool)
            decoded = None if decoded_from is None else int(real[:decoded_from].sum())
            self._add_row(check, prompt, batch.token_ids[row][real], reference[row][real], found[row][real], decoded)

    def _add_row(self, check, prompt, token_ids, reference, found, decoded):
        report = self.report
        limit = np.finfo(np.float32).max if self.tolerance.logit is None else self.tolerance.logit
        scale = max(1.0, float(np.abs(reference).max()))
        positions = logit_statistics(reference, found, np.append(token_ids[1:], 0))
        worst = int(positions.largest.argmax())
        largest = float(positions.largest[worst])
        report.max_logit_difference = max(report.max_logit_difference, largest)
        report.scaled_logit_difference = max(report.scaled_logit_difference, largest / scale)
        if not largest / scale <= limit:  # so that an infinite reference, whose ratio is NaN, is a breach
            message = (
                f"the largest logit difference is {largest / scale:.2e} of max(1, |logit|) = {scale:.3g}, "
                f"expected at most {limit:.0e}"
            )
            report.breaches.append(Breach(report.runtime, check, prompt, worst, message, largest / scale / limit))

        agreed = positions.found_top == positions.top
        clear = positions.margin / scale > limit
        for position in np.flatnonzero(clear & ~agreed)[:1]:
            message = f"the likeliest token is {positions.found_top[position]}, expected {positions.top[position]}"
            report.breaches.append(Breach(report.runtime, check, prompt, int(position), message, excess=0.0))

        report.positions += len(token_ids)
        self.absolute += float(positions.mean.sum())
        self.kl += float(positions.divergence.sum())
        self.agreed += int(agreed.sum())
        if decoded is not None:
            self.losses.append(positions.loss[decoded:-1])
            self.reference_losses.append(positions.reference_loss[decoded:-1])

    def finish(self):
        report = self.report
        if report.positions:
            report.mean_logit_difference = self.absolute / report.positions
            report.mean_kl_divergence = max(self.kl / report.positions, 0.0)
            report.top1_agreement = self.agreed / report.positions
        if self.tolerance.perplexity is not None and sum(map(len, self.losses)):
            found, expected = (float(np.exp(np.concatenate(x).mean())) for x in (self.losses, self.reference_losses))
            _check_budget(report, "prefill then decode", found, expected, 2 * self.tolerance.perplexity)


def identical_length(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
