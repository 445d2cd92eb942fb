"""Attention masks, all made here: boolean, True where a query may look at a key, broadcastable to (B, H, T, S)."""

from keras import ops


def causal_mask(query_length, key_length, offset=0):
    """Lets query `t` see the keys up to slot `offset + t`.

    Args:
        query_length: T, an int or a scalar tensor.
        key_length: S, an int or a scalar tensor.
        offset: the key slot of the first query: the number of tokens that a KV cache already holds.

    Returns:
        A boolean tensor (T, S).
    """
    queries = ops.arange(query_length, dtype="int32") + offset
    keys = ops.arange(key_length, dtype="int32")
    return ops.expand_dims(keys, 0) <= ops.expand_dims(queries, 1)


def padding_mask_to_attention_mask(padding_mask):
    """Hides padded keys from every query.

    Args:
        padding_mask: (B, S), true or nonzero at real tokens.

    Returns:
        A boolean tensor (B, 1, 1, S).
    """
    return ops.cast(padding_mask, "bool")[:, None, None, :]


def decoder_mask(query_length, key_length, padding_mask=None, offset=0):
    """The causal mask, and where `padding_mask` (B, S) is given, its padded keys hidden as well.

    Returns:
        A boolean tensor (T, S), or (B, 1, T, S) with a padding mask.
    """
    mask = causal_mask(query_length, key_length, offset)
    if padding_mask is None:
        return mask
    return ops.logical_and(mask[None, None, :, :], padding_mask_to_attention_mask(padding_mask))
