"""Batches of sentence pairs by token count, in few widths: a pure function of the seed and the step's number."""

import dataclasses
import functools

import numpy as np

from tfgpt.errors import UserError
from tfgpt.text.permutation import KeyedPermutation

ORDER, MIX = 1, 2  # beside seed and number, key the order of a bucket's pairs apart from that of an epoch's batches

CHUNK = 10_000  # pairs that are encoded at once

# Widths of batches are multiples of this. Each width is one more shape to compile.
WIDTH_MULTIPLE = 4

ROW_MULTIPLE = 8  # of a batch's rows where there are as many, which products like


@dataclasses.dataclass(frozen=True)
class EncodedPairs:
    """Sentence pairs as token ids, in two flat arrays.

    Attributes:
        sources, targets: pairs (token ids, offsets); pair i is from `offsets[i]` to `offsets[i + 1]`.
        bos_token_id, eos_token_id, pad_token_id: of the tokenizer.
        skipped: how many pairs were left out for their length.
    """

    sources: tuple
    targets: tuple
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    skipped: int = 0

    def __len__(self):
        return len(self.sources[1]) - 1

    @functools.cached_property
    def lengths(self):
        """The width that each pair needs: its longer side with the end of sentence."""
        return np.maximum(np.diff(self.sources[1]), np.diff(self.targets[1])) + 1

    @property
    def num_target_tokens(self):
        """Tokens that are predicted: all targets' with their ends."""
        return len(self.targets[0]) + len(self)

    def batch(self, numbers, width):
        """The pairs of these numbers, each side with its special tokens, padded to a width.

        Args:
            numbers: an int array (R,); -1 is an empty row of weight 0.
            width: W.

        Returns:
            Inputs (a dictionary of int32 (R, W): `source_ids`, `source_padding_mask`, `target_ids`), the targets one
            token ahead (R, W), and their weights (R, W) float32, 0 at padding.
        """
        shape = (len(numbers), width)
        source, target = np.full(shape, self.pad_token_id, np.int32), np.full(shape, self.pad_token_id, np.int32)
        following = np.full(shape, self.pad_token_id, np.int32)
        for row, number in enumerate(numbers):
            if number < 0:
                source[row, 0] = self.eos_token_id  # a source without any token has no memory
                continue
            x, y = (ids[offsets[number] : offsets[number + 1]] for ids, offsets in (self.sources, self.targets))
            source[row, : len(x)], source[row, len(x)] = x, self.eos_token_id
            target[row, 0], target[row, 1 : len(y) + 1] = self.bos_token_id, y
            following[row, : len(y)], following[row, len(y)] = y, self.eos_token_id
        columns = np.arange(width)[None]
        real = np.asarray(numbers) >= 0
        source_lengths, target_lengths = (
            np.where(real, np.diff(offsets)[numbers] + 1, none)[:, None]
            for (_, offsets), none in ((self.sources, 1), (self.targets, 0))
        )
        mask = (columns < source_lengths).astype(np.int32)
        inputs = {"source_ids": source, "source_padding_mask": mask, "target_ids": target}
        return inputs, following, (columns < target_lengths).astype(np.float32)


def encode_pairs(pairs, tokenizer, window, skip_long=False):
    """Encodes sentence pairs.

    Args:
        pairs: `SentencePairs`.
        tokenizer: with pad, bos and eos tokens.
        window: the most tokens of a side, with its end-of-sentence token.
        skip_long: leave longer pairs out, and count them, instead of refusing them.

    Raises:
        UserError: for a sentence longer than the window, with its file and line.
    """
    sides, kept = [], np.ones(len(pairs), bool)
    for name, sentences in ((pairs.source_name, pairs.sources), (pairs.target_name, pairs.targets)):
        encoded = [
            np.array(ids, np.int32)
            for start in range(0, len(sentences), CHUNK)
            for ids in tokenizer.encode_batch(sentences[start : start + CHUNK])
        ]
        fits = np.array([len(ids) < window for ids in encoded])
        if not skip_long and not fits.all():
            pair = int(np.argmin(fits))
            raise UserError(
                f"{name}, line {pairs.line(pair)}: the sentence has {len(encoded[pair]) + 1} tokens with its end, "
                f"expected at most the window's {window}: give a larger max_length, or skip_long to leave it out"
            )
        kept &= fits
        sides.append(encoded)
    if not kept.any():
        raise UserError(f"{pairs.source_name} has no pair of sentences of less than {window} tokens")
    return EncodedPairs(
        *(_flat([ids for ids, keep in zip(side, kept, strict=True) if keep]) for side in sides),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        skipped=int((~kept).sum()),
    )


def _flat(sequences):
    return np.concatenate(sequences), np.cumsum([0, *map(len, sequences)])


def bucket_widths(lengths, num_buckets, multiple=WIDTH_MULTIPLE):
    """The widths, at most so many, by which sequences of these lengths need least padding.

    By dynamic programming over the multiples of `multiple` that are some sequence's own.

    Args:
        lengths: an int array.
        num_buckets: the most widths.
        multiple: of each width.

    Returns:
        Widths, ascending; the last one holds the longest.

    Example:

    >>> bucket_widths(np.array([1, 2, 3, 4, 4, 9, 9, 30]), num_buckets=3)
    [4, 12, 32]
    """
    widths, counts = np.unique(-(-np.asarray(lengths) // multiple) * multiple, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])  # sequences of smaller widths
    cost, choices = np.where(before > 0, np.inf, 0.0), []
    for _ in range(min(num_buckets, len(widths))):
        # To end a bucket at width j, begun after width i, costs width j for each sequence between.
        totals = cost[:-1, None] + (before[None, 1:] - before[:-1, None]) * widths[None]
        totals[np.tril_indices(len(widths), k=-1)] = np.inf
        choices.append(totals.argmin(axis=0))
        cost = np.concatenate([[cost[0]], totals.min(axis=0)])
        cost[0] = 0.0
    ends, end = [], len(widths)
    for choice in reversed(choices):
        if end == 0:
            break
        ends.append(int(widths[end - 1]))
        end = int(choice[end - 1])
    return ends[::-1]


class PairSampler:
    """Draws batches of pairs of like length; batch `step` is a pure function of `seed` and `step`.

    A pair goes to the bucket of the smallest width that holds it; a bucket's batches have about `tokens_per_batch`
    tokens in every one. Each bucket is an endless stream of its pairs, shuffled anew each time around, and cut into
    batches; in epoch e come those batches that end in the stream's e-th round, of all buckets in random order. So
    every pair is met equally often, no batch has padding rows, and the memory does not grow with steps.

    Args:
        lengths: of each pair, an int array.
        tokens_per_batch: rows times width of a batch, at most (but a row at least).
        seed: a non-negative int.
        num_buckets: how many widths.

    Example:

    >>> sampler = PairSampler(np.array([3, 4, 7, 8, 8, 8]), tokens_per_batch=16, seed=0, num_buckets=2)
    >>> [(width, sorted(numbers.tolist())) for numbers, width in map(sampler.batch, range(5))]
    [(8, [2, 3]), (8, [4, 5]), (8, [4, 5]), (4, [0, 0, 1, 1]), (8, [2, 3])]
    """

    def __init__(self, lengths, tokens_per_batch, seed, num_buckets=6):
        if seed < 0:
            raise UserError(f"found the seed {seed}; expected 0 or more")
        self.widths = bucket_widths(lengths, num_buckets)
        if tokens_per_batch < self.widths[-1]:
            raise UserError(
                f"tokens_per_batch is {tokens_per_batch}, expected at least the {self.widths[-1]} tokens of the widest "
                "row"
            )
        self.seed = seed
        buckets = np.searchsorted(self.widths, lengths)
        self._members = [np.flatnonzero(buckets == bucket) for bucket in range(len(self.widths))]
        self.rows = [rows_of_width(tokens_per_batch, width) for width in self.widths]
        self._counts = np.array([len(members) for members in self._members])
        self._order = functools.lru_cache(maxsize=4 * len(self.widths))(self._shuffle)
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

    @property
    def batches_per_epoch(self):
        """How many batches meet every pair once, a fraction where the last ones are not full."""
        return float((self._counts / np.array(self.rows)).sum())

    @property
    def shapes(self):
        """The (rows, width) of each bucket's batches."""
        return list(zip(self.rows, self.widths, strict=True))

    def batch(self, step):
        """The numbers of a step's pairs (R,) and their width."""
        epoch, place = self._place(int(step))
        bucket, number = self._epoch(epoch)[place]
        first = number * self.rows[bucket]
        samples = np.arange(first, first + self.rows[bucket])
        rounds, places = np.divmod(samples, self._counts[bucket])
        numbers = np.empty(len(samples), np.int64)
        for turn in np.unique(rounds):
            here = rounds == turn
            numbers[here] = self._members[bucket][self._order(bucket, int(turn))(places[here])]
        return numbers, self.widths[bucket]

    def epochs(self, step):
        """How many times all pairs have been met before a step, about."""
        epoch, place = self._place(int(step))
        return epoch + place / max(self._batches_before(epoch + 1) - self._batches_before(epoch), 1)

    def _batches_before(self, epoch):
        return int(self._bucket_batches_before(epoch).sum())

    def _bucket_batches_before(self, epoch):
        return epoch * self._counts // np.array(self.rows)

    def _place(self, step):
        """The epoch of a step, and its place in it."""
        low, high = 0, 1
        while self._batches_before(high) <= step:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._batches_before(middle) <= step else (low, middle)
        return low, step - self._batches_before(low)

    def _draw_epoch(self, epoch):
        """The batches of an epoch, (bucket, number in the bucket), in their order."""
        starts, ends = self._bucket_batches_before(epoch), self._bucket_batches_before(epoch + 1)
        batches = [(b, int(i)) for b in range(len(self.widths)) for i in range(starts[b], ends[b])]
        order = KeyedPermutation(len(batches), (self.seed, epoch, MIX))(np.arange(len(batches)))
        return [batches[i] for i in order]

    def _shuffle(self, bucket, turn):
        return KeyedPermutation(int(self._counts[bucket]), (self.seed, turn, ORDER, bucket))


def rows_of_width(tokens_per_batch, width):
    """How many rows a batch of this width has."""
    rows = max(tokens_per_batch // width, 1)
    return rows - rows % ROW_MULTIPLE if rows >= ROW_MULTIPLE else rows
