"""One byte-level BPE vocabulary for both languages of a translation model (Sennrich et al. 2016, section 3.2)."""

import json

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from tfgpt.errors import UserError
from tfgpt.text.tokenizer import BOS, EOS, PAD, Tokenizer

SPECIAL_TOKENS = (PAD, BOS, EOS)


def train_joint_tokenizer(sentences, vocabulary_size, lowercase=False, show_progress=False):
    """A tokenizer whose merges are learned from sentences of both languages together.

    Ids 0, 1 and 2 are padding, the beginning and the end of a sentence; text that looks like these tokens is text.

    Args:
        sentences: an iterable of str, of both languages, read once.
        vocabulary_size: V: three special tokens, 256 bytes and the merges. Fewer, where the text holds too few pairs
            that occur twice.
        lowercase: whether text is lower-cased before it is encoded, as a part of tokenizer.json.
        show_progress: whether the library draws its progress bar.

    Raises:
        UserError: if `vocabulary_size` is less than 259.

    Example:

    >>> tokenizer = train_joint_tokenizer(["the cat", "die katze"], vocabulary_size=270, lowercase=True)
    >>> tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
    (0, 1, 2)
    >>> tokenizer.decode(tokenizer.encode("Die Katze </s>"))
    'die katze </s>'
    """
    smallest = len(SPECIAL_TOKENS) + 256
    if vocabulary_size < smallest:
        raise UserError(
            f"vocabulary_size is {vocabulary_size}, expected at least {smallest}: {', '.join(SPECIAL_TOKENS)} and 256 "
            "bytes"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    if lowercase:
        backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=show_progress,
    )
    backend.train_from_iterator(sentences, trainer)
    # Made anew from its JSON: what a saved one is.
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(json.loads(backend.to_str()))))
