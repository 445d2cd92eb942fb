"""Byte-pair merging in a TensorFlow graph: words to tokens, exactly as one merge at a time would, yet many at once.

By definition (Sennrich et al. 2016, section 3.2; the `tokenizers` library's priority queue) each step merges, of all
adjacent pairs of a word, the one of lowest rank, of several such the leftmost. Steps one after the other would take
minutes for a word of 100 kB, so each iteration here does all merges whose turn is bound to come, whatever is done
before them. A pair (a, b) of rank r can lose its turn only to a pair (x, a) or (b, y) of lower rank. While (a, b)
stands, only pairs of lower rank than r are merged, so if no pair in the span where x and a could lie has one now, no
such x comes to be; likewise for y. How long x and y can be is known of every merge, and short: half of GPT-2's merges
have no rival of lower rank at all.

Doing such a merge early changes nothing else as long as pairs with its product have a higher rank than r. That holds
in lists where each token is the product of one merge. In others, a token can have been made by a second merge before;
a merge whose product occurs in a pair of lower rank waits until it has the lowest rank within two longest tokens on
either side. What it then sets off stays within that span, where nothing else had its turn.

Pairs of equal rank are the same pair, so they overlap only in a run of one token: a a a a. There the leftmost goes
first, so every other pair is merged, as far as all pairs of the run up to there may be.
"""

import numpy as np
import tensorflow as tf


class BytePairMerger(tf.Module):
    """Merges the bytes of words into tokens.

    Args:
        vocabulary_size: V; ids are 0 to V - 1.
        byte_ids: the id of each byte's token, 256 of them.
        merges: (left id, right id, product id), the lowest rank first, each pair once.
        token_lengths: for each id in `merges`, the token's length in bytes.

    Example:

    >>> merger = BytePairMerger(259, range(256), [(98, 99, 256), (97, 98, 257), (97, 256, 258)], {98: 1, 99: 1, 97: 1,
    ...     256: 2, 257: 2, 258: 3})
    >>> merger(tf.constant(["abc", "ab"])).to_list()
    [[258], [257]]
    """

    def __init__(self, vocabulary_size, byte_ids, merges, token_lengths):
        super().__init__()
        self._vocabulary_size = vocabulary_size
        self._byte_ids = tf.constant(list(byte_ids), tf.int32)
        self._no_rank = len(merges)
        left, right, product = np.array(merges, np.int64).reshape(-1, 3).T
        reach_left, reach_right, patient = _rivals(merges, token_lengths)
        # One value more, for pairs that no merge has.
        self._products = tf.constant([*product, 0], tf.int32)
        self._reach_left = tf.constant([*reach_left, 0], tf.int32)
        self._reach_right = tf.constant([*reach_right, 0], tf.int32)
        self._patient = tf.constant([*patient, False]) if any(patient) else None
        reach = max([1, *reach_left, *reach_right])
        self._levels = reach.bit_length()  # of the table of minima, which holds spans of 1, 2, 4, … up to the reach
        self._level_of_length = tf.constant([0, *((length).bit_length() - 1 for length in range(1, reach + 1))])
        # The key of what is no pair is there too, since a table cannot be empty.
        keys = tf.constant([-1, *(left * vocabulary_size + right)], tf.int64)
        ranks = tf.constant([self._no_rank, *range(len(merges))], tf.int32)
        self._ranks = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(keys, ranks), default_value=self._no_rank
        )

    def __call__(self, words):
        """The tokens of words: a string tensor [U], none empty, to a RaggedTensor of int32 [U, None]."""
        data = tf.io.decode_raw(tf.strings.reduce_join(words), tf.uint8)
        symbols = tf.gather(self._byte_ids, tf.cast(data, tf.int32))
        starts = tf.cumsum(tf.strings.length(words), exclusive=True)
        word = tf.cumsum(tf.scatter_nd(starts[:, None], tf.ones_like(starts), tf.shape(symbols))) - 1

        # A product takes the place of its left symbol, and the right one becomes -1. `active` are the places of
        # symbols in words that are not finished.
        def merge(symbols, active):
            return self._merge(symbols, active, tf.gather(word, active))

        shapes = (tf.TensorShape([None]), tf.TensorShape([None]))
        symbols, _ = tf.while_loop(
            lambda symbols, active: tf.size(active) > 0,
            merge,
            (symbols, tf.range(tf.size(symbols))),
            shape_invariants=shapes,
        )
        alive = symbols >= 0
        counts = tf.math.unsorted_segment_sum(tf.cast(alive, tf.int64), word, tf.size(words))
        return tf.RaggedTensor.from_row_lengths(tf.boolean_mask(symbols, alive), counts, validate=False)

    def _merge(self, symbols, active, word):
        """One iteration. Below, A counts active symbols, and C those pairs that are candidates for merging."""
        count = tf.size(active)
        at_start = tf.concat([[True], word[1:] != word[:-1]], 0)
        ordinal = tf.cumsum(tf.cast(at_start, tf.int32)) - 1  # of the symbol's word among the active ones
        word_starts = tf.cast(tf.where(at_start)[:, 0], tf.int32)
        bounds = tf.concat([word_starts, [count]], 0)
        ranks = self._pair_ranks(tf.gather(symbols, active), word)

        # No pair with a neighbour of lower rank can be merged yet.
        edge = tf.constant([self._no_rank])
        lowest = tf.minimum(tf.concat([edge, ranks[:-1]], 0), tf.concat([ranks[1:], edge], 0))
        candidates = tf.cast(tf.where((ranks < self._no_rank) & (ranks <= lowest))[:, 0], tf.int32)
        its_word = tf.gather(ordinal, candidates)
        first, last = tf.gather(bounds, its_word), tf.gather(bounds, its_word + 1) - 1
        safe = self._is_safe(ranks, candidates, first, last)
        merged = tf.boolean_mask(candidates, _alternate(ranks, candidates, safe))

        places = tf.concat([tf.gather(active, merged), tf.gather(active, merged + 1)], 0)
        products = tf.gather(self._products, tf.gather(ranks, merged))
        symbols = tf.tensor_scatter_nd_update(symbols, places[:, None], tf.concat([products, -tf.ones_like(merged)], 0))

        # A word in which there was nothing to merge is finished.
        unfinished = tf.tensor_scatter_nd_update(
            tf.zeros_like(word_starts, tf.bool), its_word[:, None], tf.ones_like(its_word, tf.bool)
        )
        stays = tf.gather(unfinished, ordinal) & (tf.gather(symbols, active) >= 0)
        return symbols, tf.boolean_mask(active, stays)

    def _pair_ranks(self, symbols, word):
        """The rank of each symbol with the next one, int32 [A]; `_no_rank` at a word's end and where no merge is."""
        keys = tf.cast(symbols[:-1], tf.int64) * self._vocabulary_size + tf.cast(symbols[1:], tf.int64)
        ranks = self._ranks.lookup(tf.where(word[:-1] == word[1:], keys, -1))
        return tf.concat([ranks, [self._no_rank]], 0)

    def _is_safe(self, ranks, candidates, first, last):
        """Whether no rival of a candidate can come to be: bool [C], by the first and last place of its word."""
        rank = tf.gather(ranks, candidates)
        left = tf.maximum(candidates - tf.gather(self._reach_left, rank), first)
        right = tf.minimum(candidates + tf.gather(self._reach_right, rank), last)
        minima = self._minima(ranks)
        lowest_left = self._lowest(minima, left, candidates - left)
        lowest_right = self._lowest(minima, candidates + 1, right - candidates)
        safe = (rank <= lowest_left) & (rank <= lowest_right)
        if self._patient is not None:
            safe &= (rank < lowest_left) | ~tf.gather(self._patient, rank)
        return safe

    def _minima(self, ranks):
        """The lowest of 1, 2, 4, … ranks from each place on: one after the other, [levels * A]."""
        levels = [ranks]
        for level in range(1, self._levels):
            step = 2 ** (level - 1)
            beyond = tf.fill([tf.minimum(step, tf.size(ranks))], self._no_rank)
            levels.append(tf.minimum(levels[-1], tf.concat([levels[-1][step:], beyond], 0)))
        return tf.concat(levels, 0)

    def _lowest(self, minima, start, length):
        """The lowest of `length` ranks from `start` on, both int32 [C]; `_no_rank` of none."""
        level = tf.gather(self._level_of_length, length)
        size = tf.size(minima) // self._levels
        end = start + length - tf.bitwise.left_shift(1, level)
        # With no length, `end` is the place before `start`, which may be none.
        lowest = tf.minimum(*(tf.gather(minima, level * size + tf.maximum(place, 0)) for place in (start, end)))
        return tf.where(length > 0, lowest, self._no_rank)


def _rivals(merges, token_lengths):
    """How far, in bytes, each merge's rivals can reach to the left and right, and which merges must be patient."""
    longest = max((token_lengths[product] for _, _, product in merges), default=0)
    first_use = {}
    for rank, (left, right, _) in enumerate(merges):
        first_use.setdefault(left, rank)
        first_use.setdefault(right, rank)
    before, after = {}, {}  # the longest that a token merges with on that side, in merges up to here
    reach_left, reach_right, patient = [], [], []
    for rank, (left, right, product) in enumerate(merges):
        patient.append(first_use.get(product, rank) < rank)
        reach_left.append(2 * longest if patient[-1] else before.get(left, 0))
        reach_right.append(2 * longest if patient[-1] else after.get(right, 0))
        before[right] = max(before.get(right, 0), token_lengths[left])
        after[left] = max(after.get(left, 0), token_lengths[right])
    return reach_left, reach_right, patient


def _alternate(ranks, candidates, safe):
    """Of each run of overlapping candidates the first, third, … as far as all are safe up to there: bool [C]."""
    rank = tf.gather(ranks, candidates)
    before = tf.concat([[-1], candidates[:-1]], 0)
    follows = before == candidates - 1
    in_run = (candidates > 0) & (tf.gather(ranks, tf.maximum(candidates - 1, 0)) == rank)
    unsafe = tf.cast(~(safe & (follows | ~in_run)), tf.int32)  # in a run whose beginning is no candidate: unsafe too
    begins = ~(in_run & follows)
    run = tf.cumsum(tf.cast(begins, tf.int32)) - 1
    start = tf.gather(tf.cast(tf.where(begins)[:, 0], tf.int32), run)
    unsafe_before = tf.cumsum(unsafe, exclusive=True)
    none_unsafe = unsafe_before + unsafe == tf.gather(unsafe_before, start)
    return none_unsafe & ((tf.range(tf.size(candidates)) - start) % 2 == 0)
