"""Prompts in, continuations out: the Python side of decoding."""

import numpy as np
import tensorflow as tf

from tfgpt.context_window import check_room, continue_in_segments, pad_left
from tfgpt.errors import UserError
from tfgpt.generation.beam_search import beam_search
from tfgpt.generation.decoding import DECODE_SIGNATURE, decode
from tfgpt.generation_settings import GenerationSettings


def generate(model, prompts, tokenizer=None, return_prompt=True, **settings):
    """Continues prompts.

    Text longer than the context window is handled as `tfgpt.context_window` says: the model goes on from the last half
    window whenever the window is full.

    Args:
        model: a `GPT2CausalLM`.
        prompts: a string or a list of strings; or lists of token ids, for a model without a tokenizer.
        tokenizer: by default the model's own.
        return_prompt: whether each result begins with its prompt.
        **settings: of `GenerationSettings`: max_new_tokens, temperature, top_k, top_p, repetition_penalty, num_beams,
            length_penalty, stop_token_ids, seed.

    Returns:
        A string for each prompt, or a token id list for a prompt of token ids; for a single string a single string.

    Raises:
        UserError: for an empty prompt, token ids outside the vocabulary, or settings out of range.
    """
    tokenizer = tokenizer or model.tokenizer
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    are_texts = bool(texts) and isinstance(texts[0], str)
    for text in texts:
        if isinstance(text, str) != are_texts or not hasattr(text, "__len__"):
            raise UserError(f"prompts hold {text!r}, expected strings, or lists of token ids")
    if are_texts and tokenizer is None:
        raise UserError("the model has no tokenizer, expected prompts of token ids or a tokenizer")
    end_token_id = None if tokenizer is None else tokenizer.end_token_id
    contexts = [_encode(tokenizer, text) if are_texts else [int(i) for i in text] for text in texts]
    if settings.get("stop_token_ids") is None:
        settings["stop_token_ids"] = () if end_token_id is None else (end_token_id,)
    settings = GenerationSettings(**settings)
    new_tokens = generate_token_ids(model, contexts, settings)
    if not are_texts:
        return [context + new if return_prompt else new for context, new in zip(contexts, new_tokens, strict=True)]
    stops = set(settings.stop_token_ids)
    continuations = [tokenizer.decode(new[:-1] if new[-1] in stops else new) for new in new_tokens]
    results = [text + new if return_prompt else new for text, new in zip(texts, continuations, strict=True)]
    return results[0] if isinstance(prompts, str) else results


def generate_token_ids(model, prompts, settings):
    """The new tokens of each prompt, a stop token included.

    Args:
        model: a `GPT2CausalLM`.
        prompts: lists of token ids, of any lengths.
        settings: `GenerationSettings`.
    """
    vocabulary_size = model.backbone.vocabulary_size
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"prompt {number} is empty, expected at least one token")
        if not 0 <= min(prompt) <= max(prompt) < vocabulary_size:
            wrong = next(i for i in prompt if not 0 <= i < vocabulary_size)
            raise UserError(f"prompt {number} has token id {wrong}, expected ids from 0 to {vocabulary_size - 1}")
    if not prompts:
        return []
    if settings.num_beams > 1:
        return _beam_search(model, prompts, settings)
    seeds = settings.row_seeds(len(prompts))
    stop_token_ids = settings.stop_token_ids or ()

    def decode_rows(rows, contexts, count, first_index):
        token_ids, padding_mask = pad_left(contexts)
        per_row = {
            "max_new_tokens": count,
            "temperature": settings.temperature,
            "top_k": settings.top_k,
            "top_p": settings.top_p,
            "repetition_penalty": settings.repetition_penalty,
            "first_index": first_index,
        }
        outputs = decode_function(model)(
            token_ids=token_ids,
            padding_mask=padding_mask,
            seed=np.array([seeds[i] for i in rows], np.int64),
            stop_token_ids=np.tile(np.array(stop_token_ids, np.int32), (len(rows), 1)),
            **{
                name: np.full(len(rows), value, DECODE_SIGNATURE[name].dtype.as_numpy_dtype)
                for name, value in per_row.items()
            },
        )
        return _trimmed(outputs)

    window = model.backbone.max_sequence_length
    return continue_in_segments(prompts, settings.max_new_tokens, window, decode_rows, stop_token_ids)


def decode_function(model):
    """`decode` of this model as a `tf.function`, traced once for prompts of every shape."""
    if getattr(model, "generate_function", None) is None:

        @tf.function(input_signature=list(DECODE_SIGNATURE.values()), autograph=False)
        def function(*arguments):
            return decode(model, *arguments)

        model.generate_function = lambda **arguments: function(*(arguments[name] for name in DECODE_SIGNATURE))
    return model.generate_function


def _beam_search(model, prompts, settings):
    check_room(prompts, settings.max_new_tokens, model.backbone.max_sequence_length)
    token_ids, padding_mask = pad_left(prompts)
    outputs = _beam_search_function(model, settings.num_beams)(
        token_ids,
        padding_mask,
        settings.max_new_tokens,
        settings.length_penalty,
        np.array(settings.stop_token_ids or (), np.int32),
    )
    return _trimmed(outputs)


def _beam_search_function(model, num_beams):
    functions = model.__dict__.setdefault("beam_search_functions", {})
    if num_beams not in functions:

        @tf.function(
            input_signature=[
                DECODE_SIGNATURE["token_ids"],
                DECODE_SIGNATURE["padding_mask"],
                tf.TensorSpec([], tf.int32),
                tf.TensorSpec([], tf.float32),
                tf.TensorSpec([None], tf.int32),
            ],
            autograph=False,
        )
        def function(token_ids, padding_mask, max_new_tokens, length_penalty, stop_token_ids):
            return beam_search(
                model, token_ids, padding_mask, max_new_tokens, num_beams, length_penalty, stop_token_ids
            )

        functions[num_beams] = function
    return functions[num_beams]


def _trimmed(outputs):
    """The rows of padded outputs, each at its own length."""
    rows = zip(outputs["token_ids"].numpy(), outputs["num_new_tokens"].numpy(), strict=True)
    return [tokens[:length].tolist() for tokens, length in rows]


def _encode(tokenizer, text):
    """Token ids of a prompt; of an empty one the end-of-text token, after which GPT-2 begins a new text."""
    if not text and tokenizer.end_token_id is not None:
        return [tokenizer.end_token_id]
    return tokenizer.encode(text)
