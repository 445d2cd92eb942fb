"""Tokenizers that run inside a TensorFlow graph, in core operators only: text in, token ids out, on any server.

Their ids are exactly those of `tfgpt.text`'s tokenizers, which are those of the `tokenizers` library, so that a
SavedModel takes and gives text under stock TensorFlow Serving.
"""

import functools
import json

import numpy as np
import tensorflow as tf
from tokenizers import models

from tfgpt.errors import UserError
from tfgpt.text.byte_level import byte_of_character, token_bytes
from tfgpt.text.in_graph_merges import BytePairMerger
from tfgpt.text.in_graph_normalization import Lowercase
from tfgpt.text.in_graph_split import CodePointTable, WordSplitter
from tfgpt.text.tokenizer import BytePairTokenizer, CharacterTokenizer


def valid_utf8(strings):
    """Replaces what is not UTF-8 by U+FFFD, just as Python's `bytes.decode("utf-8", "replace")` does.

    Args:
        strings: string tensor of any shape.

    Returns:
        String tensor of the same shape.

    Example:

    >>> valid_utf8(tf.constant([b"caf\\xc3", b"caf\\xc3\\xa9"])).numpy()[0].decode()
    'caf�'
    """
    return tf.strings.unicode_transcode(strings, "UTF-8", "UTF-8", errors="replace", replacement_char=0xFFFD)


def _on_cpu(method):
    """Keeps a method's operators and constants on the CPU: for an accelerator their steps are far too small."""

    @functools.wraps(method)
    @tf.autograph.experimental.do_not_convert  # there is nothing to convert, and looking for it takes a second
    def wrapped(*arguments, **keywords):
        with tf.device("/CPU:0"):
            return method(*arguments, **keywords)

    return wrapped


class InGraphTokenizer(tf.Module):
    """What both tokenizers share: the way back from ids to text.

    Args:
        vocabulary: from each token's id to its bytes.
        special_ids: the ids of special tokens.
    """

    @_on_cpu
    def __init__(self, vocabulary, special_ids=()):
        super().__init__()
        self._vocabulary_size = max(vocabulary, default=-1) + 1
        # As in the library, an id that no token has is no text.
        self._token_bytes = tf.constant([vocabulary.get(i, b"") for i in range(self._vocabulary_size)], tf.string)
        is_special = np.zeros(self._vocabulary_size, bool)
        is_special[list(special_ids)] = True
        self._is_special = tf.constant(is_special)

    @property
    def vocabulary_size(self):
        """V; ids are 0 to V - 1."""
        return self._vocabulary_size

    def encode(self, texts):
        """The token ids of texts.

        Args:
            texts: string tensor [B]; what is not UTF-8 in it is taken for U+FFFD.

        Returns:
            RaggedTensor of int32 [B, None].
        """
        raise NotImplementedError

    @tf.autograph.experimental.do_not_convert
    def __call__(self, texts):
        """As `encode`."""
        return self.encode(texts)

    @_on_cpu
    def decode(self, token_ids, skip_special_tokens=False):
        """The bytes of token ids, which need not be UTF-8 where a character's tokens are cut: see `valid_utf8`.

        Args:
            token_ids: RaggedTensor [B, None] or tensor [B, T] of integers.
            skip_special_tokens: whether to leave out special tokens.

        Returns:
            String tensor [B].

        Raises:
            tf.errors.InvalidArgumentError: for an id that is not in the vocabulary, when the graph runs.
        """
        if not isinstance(token_ids, tf.RaggedTensor):
            token_ids = tf.RaggedTensor.from_tensor(token_ids)
        flat = token_ids.flat_values
        bad = (flat < 0) | (flat >= self._vocabulary_size)
        message = tf.strings.join(
            [
                "token id ",
                tf.strings.as_string(_first(flat, bad)),
                f" is not in the vocabulary; expected 0 to {self._vocabulary_size - 1}",
            ]
        )
        with tf.control_dependencies([tf.raw_ops.Assert(condition=~tf.reduce_any(bad), data=[message])]):
            flat = tf.identity(flat)
        tokens = tf.gather(self._token_bytes, flat)
        if skip_special_tokens:
            tokens = tf.where(tf.gather(self._is_special, flat), b"", tokens)
        return tf.strings.unsorted_segment_join(tokens, token_ids.value_rowids(), token_ids.nrows())


class InGraphBytePairTokenizer(InGraphTokenizer):
    """GPT-2's byte-level byte-pair encoding in a graph; the same ids as `BytePairTokenizer`, whatever the merges.

    Args:
        vocabulary: dict from tokens, in GPT-2's characters for bytes, to ids.
        merges: pairs of tokens, as tuples or as "left right", the lowest rank first.
        special_tokens: tokens of the vocabulary that the text itself may hold, such as "<|endoftext|>".
        encode_special_tokens: text that looks like one of them is text (the library's option of that name).
        lowercase: lower-case the text first, as the library's normalizer does.

    Raises:
        UserError: if they do not belong together, or if a byte has no token.

    Example:

    >>> trained = BytePairTokenizer.train(["the cat sat on the mat"], vocabulary_size=260)
    >>> tokenizer = in_graph_tokenizer(trained)
    >>> ids = tokenizer.encode(tf.constant(["the cat<|endoftext|>", ""]))
    >>> ids.to_list() == [trained.encode("the cat<|endoftext|>"), []]
    True
    >>> tokenizer.decode(ids).numpy().tolist()
    [b'the cat<|endoftext|>', b'']
    """

    @_on_cpu
    def __init__(self, vocabulary, merges, special_tokens=(), encode_special_tokens=False, lowercase=False):
        merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
        _check(vocabulary, merges, special_tokens)
        byte_of = byte_of_character()
        bytes_of = {token: token_bytes(token, byte_of) for token in vocabulary}
        special_ids = [vocabulary[token] for token in special_tokens]
        super().__init__({vocabulary[token]: bytes_ for token, bytes_ in bytes_of.items()}, special_ids)
        found = () if encode_special_tokens else special_tokens
        self._splitter = WordSplitter([token.encode() for token in found])
        self._lowercase = Lowercase() if lowercase else None

        # Most words are tokens, and need no merging. Not every token is what its own bytes are merged to, though.
        model = models.BPE(vocabulary, merges)
        whole_words = {
            bytes_of[token]: token_id
            for token, token_id in vocabulary.items()
            if set(token) <= byte_of.keys() and [part.id for part in model.tokenize(token)] == [token_id]
        }
        whole_words |= {token.encode(): vocabulary[token] for token in found}
        self._whole_words = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant(list(whole_words), tf.string), tf.constant(list(whole_words.values()), tf.int32)
            ),
            default_value=-1,
        )
        # As in the library, of a pair given twice the last rank counts.
        last_rank = {pair: rank for rank, pair in enumerate(merges)}
        pairs = sorted(last_rank, key=last_rank.get)
        self._merger = BytePairMerger(
            self._vocabulary_size,
            [vocabulary[character] for character in sorted(byte_of, key=byte_of.get)],
            [(vocabulary[left], vocabulary[right], vocabulary[left + right]) for left, right in pairs],
            {token_id: len(token) for token, token_id in vocabulary.items()},
        )

    @_on_cpu
    def encode(self, texts):
        texts = valid_utf8(texts)
        words, row_splits = self._splitter(texts if self._lowercase is None else self._lowercase(texts))
        # A language's few frequent words are most of its text: each is looked up or merged once a batch.
        words, which = tf.unique(words)
        token_ids = self._whole_words.lookup(words)
        unknown = tf.where(token_ids < 0)
        merged = self._merger(tf.gather(words, unknown[:, 0]))
        # The tokens of word w are all_ids[starts[w] : ends[w]]: one for each word, and then those of unknown words.
        all_ids = tf.concat([token_ids, merged.values], 0)
        count = tf.size(words, tf.int64)
        starts = tf.tensor_scatter_nd_update(tf.range(count), unknown, count + merged.row_starts())
        ends = tf.tensor_scatter_nd_update(tf.range(count) + 1, unknown, count + merged.row_limits())
        places = tf.ragged.range(tf.gather(starts, which), tf.gather(ends, which))
        return tf.RaggedTensor.from_row_splits(
            tf.gather(all_ids, places.values), tf.gather(places.row_splits, row_splits), validate=False
        )


class InGraphCharacterTokenizer(InGraphTokenizer):
    """One token a character in a graph; the same ids as `CharacterTokenizer`.

    Args:
        vocabulary: dict from characters to ids.

    Raises:
        UserError: if a token is not one character.

    Example:

    >>> tokenizer = InGraphCharacterTokenizer({"e": 0, "h": 1, "l": 2, "o": 3})
    >>> tokenizer.encode(tf.constant(["hole", ""])).to_list()
    [[1, 3, 2, 0], []]
    """

    @_on_cpu
    def __init__(self, vocabulary):
        _check_ids(vocabulary)
        for token in vocabulary:
            if len(token) != 1:
                raise UserError(f"the vocabulary holds {token!r}; expected single characters")
        super().__init__({token_id: token.encode() for token, token_id in vocabulary.items()})
        ids = np.full(0x110000, -1, np.int32)
        ids[[ord(token) for token in vocabulary]] = list(vocabulary.values())
        self._ids = CodePointTable(ids)
        self._size = len(vocabulary)

    @_on_cpu
    def encode(self, texts):
        """The token ids of texts.

        Args:
            texts: string tensor [B]; what is not UTF-8 in it is taken for U+FFFD.

        Returns:
            RaggedTensor of int32 [B, None].

        Raises:
            tf.errors.InvalidArgumentError: for a character that is not in the vocabulary, when the graph runs.
        """
        code_points = tf.strings.unicode_decode(texts, "UTF-8", errors="replace", replacement_char=0xFFFD)
        ids = self._ids(code_points.flat_values)
        message = tf.strings.join(
            [
                "the character ",
                _name(_first(code_points.flat_values, ids < 0)),
                f" is not in the vocabulary; expected text made of the {self._size} characters that the tokenizer was "
                "trained on",
            ]
        )
        with tf.control_dependencies([tf.raw_ops.Assert(condition=tf.reduce_all(ids >= 0), data=[message])]):
            return code_points.with_flat_values(tf.identity(ids))


def in_graph_tokenizer(tokenizer):
    """The tokenizer for a graph that gives the ids of one of `tfgpt.text`.

    Args:
        tokenizer: a `BytePairTokenizer`, a `CharacterTokenizer`, or one of `train_joint_tokenizer`.

    Returns:
        An `InGraphBytePairTokenizer` or `InGraphCharacterTokenizer`.

    Raises:
        UserError: for another tokenizer, or one with settings of its own.
    """
    state = json.loads(tokenizer._backend.to_str())
    model, added = state["model"], state["added_tokens"]
    if type(tokenizer) is CharacterTokenizer:
        return InGraphCharacterTokenizer(model["vocab"])
    hides_special_tokens = tokenizer._backend.encode_special_tokens
    if type(tokenizer) is not BytePairTokenizer and not _is_byte_level(state, hides_special_tokens):
        raise UserError(
            f"a {type(tokenizer).__name__} of {model['type']} cannot run inside a TensorFlow graph; expected GPT-2's "
            "byte-level BPE, lower-casing or not, or single characters"
        )
    for key in ("dropout", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise UserError(f"the tokenizer has {key} set to {model[key]!r}; expected none, as in GPT-2's")
    for token in added:
        for key in ("single_word", "lstrip", "rstrip"):
            if token[key]:
                raise UserError(f"the added token {token['content']!r} has {key} set; expected it to match as it is")
    # The library gives an added token of the vocabulary the vocabulary's id, and any other its own.
    vocabulary = model["vocab"] | {token["content"]: token["id"] for token in added}
    return InGraphBytePairTokenizer(
        vocabulary,
        model["merges"],
        [token["content"] for token in added],
        encode_special_tokens=hides_special_tokens,
        lowercase=state["normalizer"] is not None,
    )


def _is_byte_level(state, hides_special_tokens):
    """Whether a tokenizer's JSON is that of `train_joint_tokenizer`: GPT-2's words, maybe of lower-cased text."""
    split = state["pre_tokenizer"] or {}
    words = (split.get("type"), split.get("use_regex"), split.get("add_prefix_space")) == ("ByteLevel", True, False)
    normalized = state["normalizer"] in (None, {"type": "Lowercase"})
    hidden = hides_special_tokens and all(token["special"] for token in state["added_tokens"])
    decoded = (state["decoder"] or {}).get("type") == "ByteLevel"
    return state["model"]["type"] == "BPE" and words and normalized and hidden and decoded


# === What errors say ===


def _first(values, mask):
    """The first value where the mask holds, and 0 if it holds nowhere."""
    at = tf.argmax(tf.concat([mask, [True]], 0))
    return tf.gather(tf.concat([values, tf.zeros([1], values.dtype)], 0), at)


def _name(code_point):
    """A character in an error message: "q (U+0071)", or just "U+00E9" where TensorFlow would print an escape."""
    digits = (code_point // [16**i for i in reversed(range(6))]) % 16
    number = tf.strings.reduce_join(tf.gather(list("0123456789ABCDEF"), digits))
    number = tf.strings.join(["U+", tf.strings.regex_replace(number, "^00?", "")])
    visible = (code_point > 0x20) & (code_point < 0x7F) & tf.reduce_all(code_point != [ord(i) for i in "\"'\\"])
    character = tf.strings.unicode_encode([tf.where(visible, code_point, 0x20)], "UTF-8")
    return tf.where(visible, tf.strings.join([character, " (", number, ")"]), number)


# === GPT-2's vocabulary ===


def _check_ids(vocabulary):
    if len(set(vocabulary.values())) != len(vocabulary) or min(vocabulary.values(), default=0) < 0:
        raise UserError("the vocabulary has an id twice or a negative one; expected an id of its own for each token")


def _check(vocabulary, merges, special_tokens):
    _check_ids(vocabulary)
    for character in byte_of_character():
        if character not in vocabulary:
            raise UserError(
                f"the vocabulary lacks {character!r}, the token of a single byte; expected a byte-level vocabulary "
                "with all 256"
            )
    for pair in merges:
        if len(pair) != 2:
            raise UserError(f"the merge {' '.join(pair)!r} has {len(pair)} parts; expected two tokens")
        for token in (*pair, "".join(pair)):
            if token not in vocabulary:
                raise UserError(
                    f"the merge {' '.join(pair)!r} needs the token {token!r}; expected it in the vocabulary"
                )
    for token in special_tokens:
        if not token or token not in vocabulary:
            raise UserError(f"the special token {token!r} has no id; expected it in the vocabulary")
