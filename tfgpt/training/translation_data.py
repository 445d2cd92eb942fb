"""What a translation run learns from: sentence pairs, those held out, and the tokenizer of both languages."""

from __future__ import annotations

import hashlib
import pathlib

import numpy as np

from tfgpt.errors import UserError
from tfgpt.text import (
    SentencePairs,
    encode_pairs,
    load_tokenizer,
    read_sentence_pairs,
    read_tab_separated_pairs,
    train_joint_tokenizer,
)

SPLIT = 3  # beside the seed, keys the draw of held-out pairs


class TranslationData:
    """The sentence pairs of a run.

    Args:
        config: a `TranslationConfig`.

    Raises:
        UserError: if a file cannot be read, or the two of a pair are not aligned.
    """

    def __init__(self, config):
        self._config = config
        self.train = _read(config.source, config.target, config.data)
        if config.validation_data is None and config.validation_source is None:
            self.train, self.validation = _split(self.train, config.validation_fraction, config.seed)
        else:
            self.validation = _read(config.validation_source, config.validation_target, config.validation_data)

    def tokenizer(self, vocabulary_size):
        """The tokenizer that the configuration names, trained on both sides of the training pairs if it is "bpe"."""
        name = self._config.tokenizer
        if name == "bpe":
            sentences = (sentence for side in (self.train.sources, self.train.targets) for sentence in side)
            return train_joint_tokenizer(sentences, vocabulary_size, self._config.lowercase)
        if not pathlib.Path(name).is_dir():
            raise UserError(f"tokenizer is {name!r}, expected bpe or a directory with tokenizer.json")
        tokenizer = load_tokenizer(name)
        if None in (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id):
            raise UserError(f"the tokenizer in {name} lacks <pad>, <s> or </s>, expected one that `tfgpt train` made")
        return tokenizer

    def encode(self, tokenizer, window):
        """The training and the validation pairs as `EncodedPairs`; of the latter, none are left out."""
        return (
            encode_pairs(self.train, tokenizer, window, self._config.skip_long),
            encode_pairs(self.validation, tokenizer, window),
        )

    @property
    def fingerprints(self):
        """SHA-256 of the training and of the validation pairs, by which a continued run knows them again."""
        return {name: _fingerprint(pairs) for name, pairs in (("train", self.train), ("validation", self.validation))}


def _read(source, target, data):
    return read_tab_separated_pairs(data) if data is not None else read_sentence_pairs(source, target)


def _split(pairs, fraction, seed):
    held_out = max(1, round(len(pairs) * fraction))
    if held_out >= len(pairs):
        raise UserError(
            f"{pairs.source_name} has {len(pairs)} pairs, expected enough to hold a share of {fraction} out, or "
            "validation files"
        )
    # In the order of the files: only which pairs are held out is drawn.
    is_held_out = np.zeros(len(pairs), bool)
    is_held_out[np.random.default_rng((seed, SPLIT)).permutation(len(pairs))[:held_out]] = True
    return tuple(
        SentencePairs(
            [sentence for sentence, kept in zip(pairs.sources, chosen, strict=True) if kept],
            [sentence for sentence, kept in zip(pairs.targets, chosen, strict=True) if kept],
            pairs.source_name,
            pairs.target_name,
            (np.flatnonzero(chosen) + 1).tolist(),
        )
        for chosen in (~is_held_out, is_held_out)
    )


def _fingerprint(pairs):
    digest = hashlib.sha256()
    for sentence in (*pairs.sources, *pairs.targets):
        digest.update(sentence.encode("utf-8") + b"\n")
    return digest.hexdigest()
