"""Is the artifact the translation model that was trained? The same logits, and the same translations."""

from __future__ import annotations

import dataclasses

import numpy as np

from tfgpt.export.logit_statistics import losses
from tfgpt.export.parity import Breach, RunnerReport, Totals, breach_on_failure, identical_length, measure_perplexity
from tfgpt.export.parity_batches import Batch
from tfgpt.export.tolerances import TOLERANCES
from tfgpt.translation_sources import decode_translation, encode_sources, pad_sources

SCORED_PAIRS = 48  # whose logits are compared
PAIRS_AT_ONCE = 8
TRANSLATED = 200  # sentences, greedily and by beam search


@dataclasses.dataclass(frozen=True)
class PairBatch(Batch):
    """Targets of unequal lengths, from their beginning on and padded on the right, with their sources."""

    source_ids: np.ndarray  # (B, S)
    source_padding_mask: np.ndarray  # (B, S)
    following: np.ndarray  # (B, T), the token after each

    @property
    def arguments(self):
        """What a `Translator` takes."""
        return self.source_ids, self.source_padding_mask, self.token_ids


@dataclasses.dataclass
class TranslationReport(RunnerReport):
    """What was measured of one runtime; of beam search and greedily the same sentences are translated."""

    sentences: int = 0
    num_beams: int = 0
    identical_greedy: int = 0
    identical_beam_search: int = 0

    heading = "translations"
    compared = (
        "ragged batches of targets, given their sources, in one pass, then token by token from the caches, and "
        "translations, greedily and by beam search"
    )

    def outputs(self):
        found = f"greedy {self.identical_greedy}/{self.sentences}"
        found += f", beam {self.num_beams} {self.identical_beam_search}/{self.sentences}"
        return found + (f", {self.identical_texts}/{self.texts} texts" if self.texts else "")


class TranslationExpectation:
    """What a model gives for held-out sentence pairs, computed once for all artifacts.

    Args:
        reference: a `KerasTranslator`.
        sources, targets: the pairs' token ids, each with its end; within the window.
        texts: the sources' text.
        settings: of the default signature, a dictionary.
        on_progress: called with a line of text at each stage.
    """

    def __init__(self, reference, sources, targets, texts, settings, on_progress=None):
        say = on_progress or (lambda line: None)
        self.reference, self.settings = reference, settings
        say("keras: reference logits")
        self.batches = [
            (batch, reference.logits(*batch.arguments)) for batch in pair_batches(reference, sources, targets)
        ]
        chosen = _spread(len(sources), TRANSLATED)
        self.sources, self.texts = [sources[i] for i in chosen], [texts[i] for i in chosen]
        say(f"keras: {len(chosen)} reference translations")
        self.greedy = reference.translate_token_ids(self.sources, num_beams=1)
        self.served = reference.translate_token_ids(self.sources, **settings)
        tokenizer = reference.model.tokenizer
        self.served_texts = [decode_translation(tokenizer, tokens) for tokens, _ in self.served]
        self.losses = [(batch, _losses(logits, batch)) for batch, logits in self.batches]


def pair_batches(translator, sources, targets):
    """Batches of pairs spread over all, the shortest and the longest targets of these together.

    Args:
        translator: a `Translator`.
        sources, targets: as in `TranslationExpectation`.
    """
    by_length = sorted(_spread(len(sources), SCORED_PAIRS), key=lambda i: len(targets[i]))
    groups = -(-len(by_length) // PAIRS_AT_ONCE)
    batches = []
    for group in (by_length[i::groups] for i in range(groups)):
        begun = [[translator.bos_token_id, *targets[i][:-1]] for i in group]
        token_ids, mask = pad_sources(begun)
        following, _ = pad_sources([targets[i] for i in group])
        batches.append(
            PairBatch(token_ids, mask, tuple(map(int, group)), *pad_sources([sources[i] for i in group]), following)
        )
    return batches


def check_translator(expected: TranslationExpectation, translator, on_progress=None):
    """Compares a translator with what is expected, within the tolerance of its precision.

    Returns:
        A `TranslationReport`.
    """
    say = on_progress or (lambda line: None)
    tolerance = TOLERANCES[translator.precision]
    report = TranslationReport(translator.name, translator.precision)
    totals = Totals(report, tolerance)
    for number, (batch, logits) in enumerate(expected.batches):
        say(f"{translator.name}: one pass over {batch.padding_mask.sum()} tokens, then one by one")
        with breach_on_failure(report, "one pass"):
            totals.add("one pass", batch, logits, translator.logits(*batch.arguments))
        # As decoding does, from the first token on, and in every other batch from the middle of a target.
        prefix = 1 if number % 2 == 0 else -(-batch.token_ids.shape[1] // 2)
        with breach_on_failure(report, "from the caches"):
            cached = translator.cached_logits(*batch.arguments, prefix)
            totals.add("from the caches", batch, logits, cached, decoded_from=prefix)
    totals.finish()
    with breach_on_failure(report, "perplexity"):
        measure_perplexity(report, translator, expected.losses, tolerance.perplexity, _losses_of)
    say(f"{translator.name}: {len(expected.sources)} translations")
    report.sentences, report.num_beams = len(expected.sources), expected.settings["num_beams"]
    ties = set()
    with breach_on_failure(report, "greedy translation"):
        found = translator.translate_token_ids(expected.sources, num_beams=1)
        report.identical_greedy, ties = compare_translations(
            report, expected, "greedy translation", expected.greedy, found
        )
    if report.num_beams > 1:
        with breach_on_failure(report, "beam search"):
            found = translator.translate_token_ids(expected.sources, **expected.settings)
            report.identical_beam_search, ties = compare_translations(
                report, expected, "beam search", expected.served, found
            )
    if hasattr(translator, "serve"):
        with breach_on_failure(report, "text"):
            compare_texts(report, expected, translator.serve(expected.texts), ties)
    return report


def compare_translations(report, expected, check, wanted, found):
    """Compares tokens of translations, and the model's own scores of both where they differ.

    Returns:
        How many are the same, and the numbers of those that differ but that the model likes as well, within the
        tolerance; others are breaches.
    """
    limit, same, ties = TOLERANCES[report.precision].logit, 0, set()
    for number, (source, (a, _), (b, _)) in enumerate(zip(expected.sources, wanted, found, strict=True)):
        if a == b:
            same += 1
            continue
        length = identical_length(a, b)
        if _near_tie(expected, check, source, a, b, length, limit):
            ties.add(number)
            continue
        want, got = (row[length] if length < len(row) else "nothing" for row in (a, b))
        message = f"the translation has token {got}, expected {want}"
        report.breaches.append(Breach(report.runtime, check, number, length, message, excess=0.0))
    report.near_ties += len(ties)
    return same, ties


def _near_tie(expected, check, source, a, b, length, limit):
    reference = expected.reference
    if check == "beam search":
        penalty = expected.settings["length_penalty"]
        first, second = (reference.score(source, tokens, penalty) for tokens in (a, b))
        return abs(first - second) <= limit * max(1.0, abs(first))
    if length >= min(len(a), len(b)):
        return False
    target = np.array([[reference.bos_token_id, *a[:length]]])
    logits = reference.logits(*pad_sources([source]), target)[0, -1]
    return (logits[a[length]] - logits[b[length]]) / max(1.0, np.abs(logits).max()) <= limit


def compare_texts(report, expected, found, ties=()):
    """Compares what the default signature makes of text with what the model does; `ties` are not judged."""
    report.texts = len(expected.texts)
    for number, (want, got) in enumerate(zip(expected.served_texts, found, strict=True)):
        if want == got or number in ties:
            report.identical_texts += want == got
            continue
        message = f"the text is {got!r}, expected {want!r}"
        report.breaches.append(Breach(report.runtime, "text", number, 0, message, excess=0.0))


def _losses_of(translator, batch):
    return _losses(translator.logits(*batch.arguments), batch)


def _losses(logits, batch):
    """The cross-entropy of each real target token of a batch, in nats."""
    real = batch.padding_mask.astype(bool)
    return losses(logits[real], batch.following[real])


def encode_held_out(tokenizer, pairs, window):
    """The token ids of sentence pairs, each side with its end, those that the window takes, and the sources' texts.

    Args:
        tokenizer: with an end of sentence.
        pairs: `tfgpt.text.SentencePairs`.
        window: the most tokens of a side.
    """
    sources, targets = (encode_sources(tokenizer, side) for side in (pairs.sources, pairs.targets))
    fits = [i for i in range(len(sources)) if max(len(sources[i]), len(targets[i])) <= window]
    return tuple([side[i] for i in fits] for side in (sources, targets, pairs.sources))


def _spread(count, most):
    """The numbers of at most `most` of `count` items, spread over all."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist()
