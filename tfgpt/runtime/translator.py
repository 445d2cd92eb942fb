"""The small interface that every runtime of a translation model's release answers to."""

from __future__ import annotations

import itertools
import pathlib

import numpy as np

from tfgpt.context_window import until_stop
from tfgpt.errors import UserError
from tfgpt.generation_settings import GenerationSettings
from tfgpt.json_file import read_json
from tfgpt.runtime.beam_search import search_beams
from tfgpt.runtime.runner import decode
from tfgpt.translation_sources import (
    check_sources,
    decode_translation,
    default_max_new_tokens,
    encode_sources,
    source_batches,
    translation_settings,
)

MODEL_TYPE = "tfgpt_encoder_decoder"
SIZES = ("max_position_embeddings", "vocab_size", "decoder_layers", "decoder_attention_heads", "d_model")


class Translator:
    """An encoder–decoder Transformer on some runtime: logits, with and without the caches, and translations.

    A runtime implements `encode` and `step`, and overrides what it has a faster or another way for.

    Args:
        config: the contents of the release's config.json.
    """

    name = ""
    precision = "float32"  # which tolerance of the parity check holds

    def __init__(self, config):
        self.window = config["max_position_embeddings"]
        self.vocabulary_size = config["vocab_size"]
        self.num_layers = config["decoder_layers"]
        self.num_heads = config["decoder_attention_heads"]
        self.head_dim = config["d_model"] // config["decoder_attention_heads"]
        self.bos_token_id, self.eos_token_id = config["decoder_start_token_id"], config["eos_token_id"]

    def encode(self, source_ids, source_padding_mask):
        """What decoding needs of sources (B, S): arrays (B, ...), cross-attention's cache above all."""
        raise NotImplementedError(f"{type(self).__name__} has no encode")

    def step(self, target_ids, source_padding_mask, memory, cache):
        """Logits of new target tokens given the cache of those before.

        Args:
            target_ids: (B, T) integers.
            source_padding_mask: (B, S).
            memory: of `encode`.
            cache: from `empty_cache` or the last step.

        Returns:
            Logits (B, T, V) and the new cache.
        """
        raise NotImplementedError(f"{type(self).__name__} has no step")

    def empty_cache(self, batch_size):
        """Self-attention's cache of no tokens: key and value of each layer, (B, H, 0, K)."""
        empty = np.zeros((batch_size, self.num_heads, 0, self.head_dim), np.float32)
        return [empty] * (2 * self.num_layers)

    def reordered(self, cache, parents):
        """A cache whose row i is `parents[i]`, which has the same source."""
        return [np.asarray(tensor)[parents] for tensor in cache]

    def logits(self, source_ids, source_padding_mask, target_ids):
        """Logits (B, T, V) of targets in one pass; sources are padded on the right."""
        memory = self.encode(source_ids, source_padding_mask)
        return self.step(target_ids, source_padding_mask, memory, self.empty_cache(len(target_ids)))[0]

    def cached_logits(self, source_ids, source_padding_mask, target_ids, prompt_length):
        """The same logits by way of the cache: `prompt_length` columns at once, the others one by one."""
        memory, cache = self.encode(source_ids, source_padding_mask), self.empty_cache(len(target_ids))
        outputs = []
        for start, end in itertools.pairwise([0, *range(prompt_length, target_ids.shape[1] + 1)]):
            logits, cache = self.step(target_ids[:, start:end], source_padding_mask, memory, cache)
            outputs.append(logits)
        return np.concatenate(outputs, axis=1)

    def translate_token_ids(self, sources, max_new_tokens=None, on_progress=None, **settings):
        """The tokens of each translation, its end included, and its score, as `tfgpt.generation.translate_token_ids`.

        Args:
            sources: lists of token ids, each with its end-of-sentence token.
            max_new_tokens: the most tokens of a translation; by default what `default_max_new_tokens` says.
            on_progress: called with the fraction done.
            **settings: of `GenerationSettings`.

        Returns:
            A list of pairs (token ids, score): of beam search log-probability / length ** length_penalty, else None.

        Raises:
            UserError: for sources that do not fit the window, or settings out of range.
        """
        chosen = translation_settings(self.window, max_new_tokens, stop_token_ids=(self.eos_token_id,), **settings)
        check_sources(sources, self.window, self.vocabulary_size)
        seeds, results, done = chosen.row_seeds(len(sources)), [None] * len(sources), 0
        for rows, source_ids, mask in source_batches(sources, self.window, chosen.num_beams):
            limit = max_new_tokens or default_max_new_tokens(source_ids.shape[1], self.window)
            found = self._translate(source_ids, mask, limit, chosen, [seeds[row] for row in rows])
            for row, pair in zip(rows, found, strict=True):
                results[row] = pair
            done += len(rows)
            if on_progress:
                on_progress(done / len(sources))
        return results

    def translate(self, tokenizer, texts, **settings):
        """Translates texts as `model.translate` does.

        Args:
            tokenizer: the release's (`tfgpt.text.load_tokenizer`).
            texts: strings.
            **settings: as in `translate_token_ids`.
        """
        found = self.translate_token_ids(encode_sources(tokenizer, texts), **settings)
        return [decode_translation(tokenizer, tokens) for tokens, _ in found]

    def _translate(self, source_ids, source_padding_mask, limit, settings, seeds):
        """Pairs (tokens, score) of sources of one width."""
        rows, stops = len(source_ids), settings.stop_token_ids
        decoding = TranslationDecoding(self, source_ids, source_padding_mask, settings.num_beams)
        if settings.num_beams > 1:
            return search_beams(decoding, rows, settings, limit)
        steps = decode(decoding, [[]] * rows, limit, settings, seeds, 0)  # what the source holds may be said again
        return [(until_stop(list(tokens), stops), None) for tokens in zip(*steps, strict=True)]


class TranslationDecoding:
    """Rows that are being translated: the logits of each row's next token, and a way to go on.

    Args:
        translator: a `Translator`.
        source_ids, source_padding_mask: (B, S).
        copies: rows of each source in a row, for beam search.

    Attributes:
        logits: (B * copies, V) float32.
    """

    def __init__(self, translator, source_ids, source_padding_mask, copies=1):
        rows = len(source_ids)
        memory = translator.encode(source_ids, source_padding_mask)
        first = np.full((rows, 1), translator.bos_token_id)
        logits, cache = translator.step(first, source_padding_mask, memory, translator.empty_cache(rows))
        self.translator = translator
        self.logits = np.repeat(logits[:, -1], copies, axis=0)
        self.cache = [np.repeat(tensor, copies, axis=0) for tensor in cache]
        self.memory = [np.repeat(tensor, copies, axis=0) for tensor in memory]
        self.mask = np.repeat(source_padding_mask, copies, axis=0)

    def advance(self, tokens, parents=None):
        """Row i goes on as row `parents[i]`, of the same source, or as itself, with `tokens[i]`."""
        if parents is not None:
            self.cache = self.translator.reordered(self.cache, parents)
        target_ids = np.asarray(tokens)[:, None]
        logits, self.cache = self.translator.step(target_ids, self.mask, self.memory, self.cache)
        self.logits = logits[:, -1]


def default_settings(directory):
    """What a model or release directory translates with unless it is told: of its generation_config.json.

    Returns:
        A dictionary: `num_beams`, `length_penalty`, and `max_new_tokens`, None where the file has none.

    Raises:
        UserError: if the file asks for what a release cannot do.
    """
    path = pathlib.Path(directory) / "generation_config.json"
    config = read_json(path) if path.is_file() else {}
    try:
        settings = GenerationSettings.from_hugging_face(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if settings.temperature > 0 or settings.repetition_penalty != 1:
        raise UserError(f"{path} asks for sampling or a repetition_penalty, expected beam search or greedy translation")
    limit = settings.max_new_tokens if config.get("max_new_tokens") is not None else None
    return {
        "num_beams": settings.num_beams,
        "length_penalty": settings.length_penalty,
        "max_new_tokens": limit,
    }
