"""Text to batches of tokens: corpora, tokenizers, token shards on disk, `tf.data` pipelines.

Names are imported when they are first used: TensorFlow is needed by the pipelines alone.
"""

import importlib

_MODULES = {
    "BytePairTokenizer": "tokenizer",
    "CharacterTokenizer": "tokenizer",
    "END_OF_TEXT": "tokenizer",
    "EncodedPairs": "pair_batches",
    "InGraphBytePairTokenizer": "in_graph_tokenizer",
    "InGraphCharacterTokenizer": "in_graph_tokenizer",
    "KeyedPermutation": "permutation",
    "LabelledSampler": "labelled_batches",
    "LabelledText": "labelled",
    "MixtureSampler": "samplers",
    "PairSampler": "pair_batches",
    "SentencePairs": "parallel_corpus",
    "TokenMixture": "samplers",
    "TokenShards": "shards",
    "TokenSplit": "shards",
    "Tokenizer": "tokenizer",
    "WindowSampler": "samplers",
    "class_numbers": "labelled",
    "collect_labels": "labelled",
    "encode_labelled": "labelled",
    "find_documents": "corpus",
    "load_tokenizer": "tokenizer",
    "make_tokenizer": "preparation",
    "encode_pairs": "pair_batches",
    "prepare": "preparation",
    "read_documents": "corpus",
    "read_labelled": "labelled",
    "read_sentence_pairs": "parallel_corpus",
    "read_sentences": "parallel_corpus",
    "read_tab_separated_pairs": "parallel_corpus",
    "sequential_pairs": "pair_pipelines",
    "sequential_windows": "windows",
    "train_joint_tokenizer": "joint_tokenizer",
    "training_batches": "labelled_batches",
    "training_pairs": "pair_pipelines",
    "training_windows": "windows",
    "valid_utf8": "in_graph_tokenizer",
    "validation_batches": "labelled_batches",
    "write_token_shards": "shard_writing",
}

__all__ = sorted(_MODULES)


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__():
    return sorted({*globals(), *__all__})
