"""Texts in, translations out: an encoder–decoder Transformer decodes from caches of self- and cross-attention."""

import numpy as np
import tensorflow as tf

from tfgpt.generation.beam_search import for_each_beam, search_beams
from tfgpt.generation.decoding import continue_rows
from tfgpt.translation_sources import (
    check_sources,
    decode_translation,
    default_max_new_tokens,
    encode_sources,
    source_batches,
    translation_settings,
)


def translate(model, texts, num_beams=5, length_penalty=1.0, max_new_tokens=None, on_progress=None, **settings):
    """Translates texts.

    Beam search ranks by log-probability / length ** length_penalty, the length being that of the translation in tokens,
    its end included; 0 is the plain log-probability, and larger values favour longer translations. A translation does
    not depend on what else is translated with it.

    Args:
        model: an `EncoderDecoderTransformer` with a tokenizer.
        texts: a string or a list of strings.
        num_beams: 1 is greedy search, or samples with a `temperature`.
        length_penalty: of beam search.
        max_new_tokens: the most tokens of a translation; by default twice the source's and 16, within the window.
        on_progress: called with the fraction done.
        **settings: others of `GenerationSettings`, which go with one beam: temperature, top_k, top_p,
            repetition_penalty, seed.

    Returns:
        A string for each text; for a single string a single string.

    Raises:
        UserError: for a text that is empty or longer than the window, or settings out of range.
    """
    tokenizer = model.tokenizer
    batch = [texts] if isinstance(texts, str) else list(texts)
    sources = encode_sources(tokenizer, batch)
    settings = {"num_beams": num_beams, "length_penalty": length_penalty, **settings}
    found = translate_token_ids(
        model, sources, tokenizer.bos_token_id, tokenizer.eos_token_id, max_new_tokens, on_progress, **settings
    )
    results = [decode_translation(tokenizer, tokens) for tokens, _ in found]
    return results[0] if isinstance(texts, str) else results


def translate_token_ids(model, sources, bos_token_id, eos_token_id, max_new_tokens=None, on_progress=None, **settings):
    """The tokens of each translation, its end included, and its score.

    Args:
        model: an `EncoderDecoderTransformer`.
        sources: lists of token ids, each with its end-of-sentence token.
        bos_token_id: begins every target.
        eos_token_id: ends it.
        max_new_tokens, on_progress: as in `translate`.
        **settings: of `GenerationSettings`.

    Returns:
        A list of pairs (token ids, score): of beam search log-probability / length ** length_penalty, else None.
    """
    window = model.backbone.max_sequence_length
    chosen = translation_settings(window, max_new_tokens, **settings)
    check_sources(sources, window, model.backbone.vocabulary_size)
    seeds = chosen.row_seeds(len(sources))
    results = [None] * len(sources)
    done = 0
    for rows, ids, mask in source_batches(sources, window, chosen.num_beams):
        limit = default_max_new_tokens(ids.shape[1], window) if max_new_tokens is None else max_new_tokens
        outputs = _function(model, chosen.num_beams)(
            ids,
            mask,
            bos_token_id,
            eos_token_id,
            limit,
            chosen.length_penalty,
            chosen.temperature,
            chosen.top_k,
            chosen.top_p,
            chosen.repetition_penalty,
            np.array([seeds[row] for row in rows], np.int64),
        )
        tokens, lengths = outputs["token_ids"].numpy(), outputs["num_new_tokens"].numpy()
        scores = outputs["score"].numpy() if "score" in outputs else [None] * len(rows)
        for i, row in enumerate(rows):
            results[row] = (tokens[i, : lengths[i]].tolist(), None if scores[i] is None else float(scores[i]))
        done += len(rows)
        if on_progress:
            on_progress(done / len(sources))
    return results


def _function(model, num_beams):
    """Decoding of this model as a `tf.function`, traced once for sources of every shape."""
    functions = model.__dict__.setdefault("translation_functions", {})
    if num_beams not in functions:
        scalars = [tf.int32, tf.int32, tf.int32, tf.float32, tf.float32, tf.int32, tf.float32, tf.float32]

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, None], tf.int32),
                tf.TensorSpec([None, None], tf.int32),
                *(tf.TensorSpec([], dtype) for dtype in scalars),
                tf.TensorSpec([None], tf.int64),
            ],
            autograph=False,
        )
        def function(source_ids, source_padding_mask, bos, eos, max_new_tokens, length_penalty, *sampling):
            arguments = (model, source_ids, source_padding_mask, bos, eos, max_new_tokens)
            if num_beams > 1:
                return translate_by_beam_search(*arguments, num_beams, length_penalty)
            return translate_greedily(*arguments, *sampling)

        functions[num_beams] = function
    return functions[num_beams]


def translate_by_beam_search(
    model, source_ids, source_padding_mask, bos_token_id, eos_token_id, max_new_tokens, num_beams, length_penalty
):
    """The translations of highest log-probability / length ** length_penalty that a beam of this width finds.

    Args:
        model: an `EncoderDecoderTransformer`.
        source_ids, source_padding_mask: (B, S) int32, padded on the right.
        bos_token_id, eos_token_id: int32 scalars.
        max_new_tokens: int32, for all rows or one each, (B,).
        num_beams: a Python int, at most V.
        length_penalty: float32, for all rows or one each, (B,).

    Returns:
        As `tfgpt.generation.beam_search`.
    """
    logits, cache, memory_cache = _begin(model, source_ids, source_padding_mask, bos_token_id, max_new_tokens)
    # All beams of a row read the same source: this cache stays where it is.
    memory = for_each_beam((memory_cache, source_padding_mask), num_beams)
    stops = tf.reshape(eos_token_id, [1])
    next_logits = _next_logits(model, *memory)
    return search_beams(logits, cache, next_logits, max_new_tokens, num_beams, length_penalty, stops)


def translate_greedily(
    model,
    source_ids,
    source_padding_mask,
    bos_token_id,
    eos_token_id,
    max_new_tokens,
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    repetition_penalty=1.0,
    seed=None,
):
    """The likeliest token a step, or a sampled one at a temperature above 0.

    Args:
        model: an `EncoderDecoderTransformer`.
        source_ids, source_padding_mask: (B, S) int32, padded on the right.
        bos_token_id, eos_token_id: int32 scalars.
        max_new_tokens: int32, for all rows or one each, (B,).
        temperature, top_k, top_p, repetition_penalty: scalars (see `GenerationSettings`).
        seed: (B,) int64, for sampling.

    Returns:
        As `tfgpt.generation.decode`.
    """
    logits, cache, memory_cache = _begin(model, source_ids, source_padding_mask, bos_token_id, max_new_tokens)
    batch_size = tf.shape(source_ids)[0]
    values = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": repetition_penalty}
    return continue_rows(
        logits,
        cache,
        _next_logits(model, memory_cache, source_padding_mask),
        tf.zeros([batch_size, logits.shape[-1]], tf.bool),  # what the source holds may well be said again
        tf.broadcast_to(max_new_tokens, [batch_size]),
        {name: tf.fill([batch_size], value) for name, value in values.items()},
        tf.zeros([batch_size], tf.int64) if seed is None else seed,
        tf.zeros([batch_size], tf.int32),
        tf.fill([batch_size, 1], eos_token_id),
    )


def _begin(model, source_ids, source_padding_mask, bos_token_id, max_new_tokens):
    """Reads the sources, and gives the logits of the first tokens and both caches."""
    batch_size = tf.shape(source_ids)[0]
    memory_cache = model.memory_cache(model.encode(source_ids, source_padding_mask))
    logits, cache = model.call_with_cache(
        tf.fill([batch_size, 1], bos_token_id),
        memory_cache,
        source_padding_mask,
        model.backbone.empty_cache(batch_size, tf.reduce_max(max_new_tokens)),  # the last token is never read
        cache_index=0,
        last_only=True,
    )
    return logits, cache, memory_cache


def _next_logits(model, memory_cache, source_padding_mask):
    def next_logits(step, tokens, cache):
        return model.call_with_cache(
            tokens[:, None], memory_cache, source_padding_mask, cache, cache_index=step + 1, last_only=True
        )

    return next_logits
