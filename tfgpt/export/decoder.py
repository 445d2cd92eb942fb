"""The decoder that leaves the house: one step with an explicit KV cache, described once for every format."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class TensorDescription:
    """A named tensor of an exported function; an axis is a fixed size or the name of one that varies."""

    name: str
    dtype: str
    axes: tuple[int | str, ...]


def decoder_inputs(backbone):
    """The inputs of `decoder_step` under Hugging Face's names, in order."""
    names = [
        TensorDescription("input_ids", "int64", ("batch_size", "sequence_length")),
        TensorDescription("attention_mask", "int64", ("batch_size", "total_sequence_length")),
        TensorDescription("position_ids", "int64", ("batch_size", "sequence_length")),
    ]
    return names + _cache(backbone, "past_key_values", "past_sequence_length")


def decoder_outputs(backbone):
    """The outputs of `decoder_step` under Hugging Face's names, in order."""
    logits = TensorDescription("logits", "float32", ("batch_size", "sequence_length", backbone.vocabulary_size))
    return [logits, *_cache(backbone, "present", "total_sequence_length")]


def decoder_step(model, input_ids, attention_mask, position_ids, *past_key_values):
    """One step: logits of the new tokens and the grown cache, as a flat list in the order of `decoder_outputs`.

    Args:
        model: a `GPT2CausalLM`.
        input_ids: the new tokens (B, T).
        attention_mask: 1 at real tokens, old and new, (B, S).
        position_ids: (B, T).
        *past_key_values: key and value of each layer, (B, H, S - T, K); S - T is 0 for a prompt.
    """
    cache = list(zip(past_key_values[0::2], past_key_values[1::2], strict=True))
    logits, cache = model.call_with_cache(input_ids, attention_mask, cache, position_ids)
    return [logits, *(tensor for layer in cache for tensor in layer)]


def _cache(backbone, prefix, length):
    head_dim = backbone.hidden_dim // backbone.num_heads
    axes = ("batch_size", backbone.num_heads, length, head_dim)
    return [
        TensorDescription(f"{prefix}.{i}.{part}", backbone.compute_dtype, axes)
        for i in range(backbone.num_layers)
        for part in ("key", "value")
    ]
