"""An encoder–decoder Transformer as three functions with explicit caches, under the names of Optimum's seq2seq layout.

The encoder reads sources; the decoder reads targets, and gives the caches of self- and cross-attention; the decoder
with past reads new tokens, given both caches, of which cross-attention's never changes and is no output.
"""

from __future__ import annotations

from keras import ops

from tfgpt.export.decoder import TensorDescription

SOURCE, TARGET, PAST = "encoder_sequence_length", "decoder_sequence_length", "past_decoder_sequence_length"
GROWN = f"{PAST} + sequence_length"


class EncoderStep:
    """Memory of sources: `input_ids`, `attention_mask` (B, S) → `last_hidden_state` (B, S, D).

    Args:
        model: an `EncoderDecoderTransformer`.
    """

    file = "encoder_model.onnx"

    def __init__(self, model):
        self.model = model
        self.inputs = [_ids("input_ids", SOURCE), _ids("attention_mask", SOURCE)]
        self.outputs = [_memory("last_hidden_state", model.backbone)]

    def reads(self, name):
        """Whether it reads the weight of this name (see `tfgpt.models.encoder_decoder.model_directory`)."""
        return name.startswith(("encoder.", "embedding."))

    def __call__(self, input_ids, attention_mask):
        return [self.model.encode(input_ids, attention_mask)]


class DecoderStep:
    """Targets from their beginning: `input_ids` (B, T), `encoder_hidden_states` (B, S, D) and
    `encoder_attention_mask` (B, S) → `logits` (B, T, V), and of each layer the keys and values (B, H, T, K) of
    self-attention and (B, H, S, K) of cross-attention.

    Args:
        model: an `EncoderDecoderTransformer`.
    """

    file = "decoder_model.onnx"

    def __init__(self, model):
        backbone = model.backbone
        self.model = model
        self.inputs = [
            _ids("encoder_attention_mask", SOURCE),
            _ids("input_ids", TARGET),
            _memory("encoder_hidden_states", backbone),
        ]
        self.outputs = [_logits(backbone, TARGET)]
        self.outputs += _cache(backbone, "present", decoder=TARGET, encoder=SOURCE)

    def reads(self, name):
        """Whether it reads the weight of this name."""
        return not name.startswith("encoder.")

    def __call__(self, encoder_attention_mask, input_ids, encoder_hidden_states):
        model = self.model
        memory_cache = model.memory_cache(encoder_hidden_states)
        cache = model.backbone.empty_cache(ops.shape(input_ids)[0])
        logits, cache = model.call_with_cache(input_ids, memory_cache, encoder_attention_mask, cache)
        return [logits, *_interleaved(cache, memory_cache)]


class DecoderWithPastStep:
    """Targets further on: `encoder_attention_mask` (B, S), `input_ids` (B, T), the new tokens, and the keys and values
    of those before and of the source → `logits` (B, T, V) and the grown keys and values of self-attention.

    Args:
        model: an `EncoderDecoderTransformer`.
    """

    file = "decoder_with_past_model.onnx"

    def __init__(self, model):
        backbone = model.backbone
        self.model = model
        self.inputs = [_ids("encoder_attention_mask", SOURCE), _ids("input_ids", "sequence_length")]
        self.inputs += _cache(backbone, "past_key_values", decoder=PAST, encoder=SOURCE)
        self.outputs = [_logits(backbone, "sequence_length"), *_cache(backbone, "present", decoder=GROWN)]

    def reads(self, name):
        """Whether it reads the weight of this name."""
        return not name.startswith("encoder.") and ".memory_attention.key_value." not in name

    def __call__(self, encoder_attention_mask, input_ids, *past):
        cache, memory_cache = split_past(past)
        logits, cache = self.model.call_with_cache(input_ids, memory_cache, encoder_attention_mask, cache)
        return [logits, *(tensor for layer in cache for tensor in layer)]


STEPS = (EncoderStep, DecoderStep, DecoderWithPastStep)


def split_past(past):
    """The caches of self- and cross-attention, lists of pairs, from a flat list in the order of the layout's names."""
    pairs = list(zip(past[0::2], past[1::2], strict=True))
    return pairs[0::2], pairs[1::2]


def _interleaved(cache, memory_cache):
    return [tensor for layers in zip(cache, memory_cache, strict=True) for pair in layers for tensor in pair]


def _ids(name, length):
    return TensorDescription(name, "int64", ("batch_size", length))


def _memory(name, backbone):
    return TensorDescription(name, backbone.compute_dtype, ("batch_size", SOURCE, backbone.hidden_dim))


def _logits(backbone, length):
    return TensorDescription("logits", "float32", ("batch_size", length, backbone.vocabulary_size))


def _cache(backbone, prefix, **lengths):
    """Keys and values of each layer, of self-attention (`decoder`) and, if asked for, cross-attention (`encoder`)."""
    head_dim = backbone.hidden_dim // backbone.num_heads
    return [
        TensorDescription(
            f"{prefix}.{i}.{stack}.{part}",
            backbone.compute_dtype,
            ("batch_size", backbone.num_heads, length, head_dim),
        )
        for i in range(backbone.num_decoder_layers)
        for stack, length in lengths.items()
        for part in ("key", "value")
    ]
