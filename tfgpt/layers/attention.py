import keras
from keras import ops

from tfgpt.layers import decoding_kernels
from tfgpt.layers.dense import Dense, reshapable
from tfgpt.layers.fusible import fusible
from tfgpt.layers.masks import causal_mask
from tfgpt.layers.observation import is_observed, show

# Added to no score, put in its place: exp(MASKED - max) is exactly 0 in float32, and a row whose keys are all masked
# (a padded query) still has a finite softmax, where minus infinity would give NaN.
MASKED = -1e9


@keras.saving.register_keras_serializable(package="tfgpt")
class MultiHeadAttention(keras.layers.Layer):
    """Multi-head scaled dot-product attention ("Attention Is All You Need", Vaswani et al. 2017, section 3.2).

    Self-attention projects queries, keys and values in one product, in GPT-2's order `[Q | K | V]`; cross-attention
    (`cross_attention=True`) projects its keys and values together from `memory`.

    Args:
        num_heads: H, which divides the width D of the input.
        cross_attention: keys and values come from `memory` rather than from the input itself.
        dropout: rate on the attention weights.
        use_bias: whether the projections have a bias.
        kernel_initializer: of the input projections.
        output_initializer: of the output projection, the residual one that GPT-2 scales down; by default
            `kernel_initializer`.

    Call arguments:
        x: (B, T, D).
        memory: (B, S, D_memory), in cross-attention only.
        attention_mask: boolean, True where a query may look at a key, broadcastable to (B, H, T, S).
        use_causal_mask: also hides each query's future.
        cache: a pair (keys, values), each (B, H, S, K). In self-attention the new tokens' keys and values join it: at
            slot `cache_index` of a preallocated buffer, or at its end, growing it, when `cache_index` is None. In
            cross-attention it is what `keys_and_values(memory)` gave, and stands for `memory`.
        cache_index: the slot of the first new token, an int or a scalar tensor.
        return_attention_weights: also return the weights (B, H, T, S), after the softmax and before dropout.

    Returns:
        (B, T, D); with a cache `(output, cache)`; with weights they are the last element of the tuple.

    Raises:
        ValueError: if the width is not divisible by `num_heads`.

    Example:

    >>> attention = MultiHeadAttention(num_heads=2)
    >>> y, weights = attention(keras.ops.ones((1, 5, 8)), use_causal_mask=True, return_attention_weights=True)
    >>> y.shape, weights.shape
    (TensorShape([1, 5, 8]), TensorShape([1, 2, 5, 5]))
    """

    def __init__(
        self,
        num_heads,
        cross_attention=False,
        dropout=0.0,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        output_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.cross_attention = cross_attention
        self.dropout = dropout
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.output_initializer = keras.initializers.get(output_initializer)

    def build(self, x_shape, memory_shape=None):
        self.hidden_dim = x_shape[-1]
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"the hidden dim {self.hidden_dim} is not divisible by {self.num_heads} attention heads")
        self.head_dim = self.hidden_dim // self.num_heads

        def projection(name, width, parts):
            dense = Dense(
                parts * self.hidden_dim,
                use_bias=self.use_bias,
                kernel_initializer=self.kernel_initializer.clone(),
                dtype=self.dtype_policy,
                name=name,
            )
            dense.build((None, width))
            return dense

        if self.cross_attention:
            self.query = projection("query", self.hidden_dim, parts=1)
            self.key_value = projection("key_value", (memory_shape or x_shape)[-1], parts=2)
        else:
            self.query_key_value = projection("query_key_value", self.hidden_dim, parts=3)
        self.output_dense = Dense(
            self.hidden_dim,
            use_bias=self.use_bias,
            kernel_initializer=(self.output_initializer or self.kernel_initializer).clone(),
            dtype=self.dtype_policy,
            name="output",
        )
        self.output_dense.build((None, self.hidden_dim))
        self.weights_dropout = keras.layers.Dropout(self.dropout, dtype=self.dtype_policy, name="weights_dropout")

    def call(
        self,
        x,
        memory=None,
        attention_mask=None,
        use_causal_mask=False,
        cache=None,
        cache_index=None,
        return_attention_weights=False,
        training=None,
    ):
        shape = reshapable(x)
        if self.cross_attention:
            (q,) = self._heads(self.query, x, shape, parts=1)  # (B, H, T, K)
            k, v = self.keys_and_values(memory) if cache is None else cache  # (B, H, S, K)
            offset = 0
        else:
            q, k, v = self._heads(self.query_key_value, x, shape, parts=3)  # (B, H, T, K) each
            past, offset = cache, 0
            if cache is not None:
                k, v = cache = self._extend(cache, k, v, cache_index)  # (B, H, S, K) each
                if use_causal_mask:
                    offset = ops.shape(past[0])[2] if cache_index is None else cache_index

        one_token = cache is not None and x.shape[1] == 1
        q = q * ops.cast(self.head_dim**-0.5, q.dtype)
        if one_token:
            scores = decoding_kernels.matmul(q, k, transpose_b=True)  # (B, H, 1, S)
        else:
            scores = ops.matmul(q, ops.transpose(k, (0, 1, 3, 2)))  # (B, H, T, S)
        if use_causal_mask:
            causal = causal_mask(ops.shape(q)[2], ops.shape(k)[2], offset)
            attention_mask = causal if attention_mask is None else ops.logical_and(attention_mask, causal)
        dtype = "float32" if return_attention_weights or is_observed() else self.compute_dtype
        if one_token:
            weights = masked_softmax(scores, attention_mask, decoding_kernels.softmax, dtype)
        else:
            weights = attention_weights(scores, *(() if attention_mask is None else (attention_mask,)), dtype=dtype)
        show(self, weights)
        attended = self.weights_dropout(ops.cast(weights, self.compute_dtype), training=training)
        y = (decoding_kernels if one_token else ops).matmul(attended, v)  # (B, H, T, K)
        y = ops.transpose(y, (0, 2, 1, 3))  # (B, T, H, K)
        y = self.output_dense(ops.reshape(y, (-1, self.hidden_dim)))  # (B * T, D)
        y = ops.reshape(y, shape)  # (B, T, D)

        outputs = (y,)
        if cache is not None:
            outputs += (cache,)
        if return_attention_weights:
            outputs += (weights,)
        return outputs if len(outputs) > 1 else y

    def keys_and_values(self, memory):
        """The cache of cross-attention: `memory` (B, S, D_memory) as a pair of (B, H, S, K)."""
        k, v = self._heads(self.key_value, memory, reshapable(memory), parts=2)
        return k, v

    def _heads(self, projection, x, shape, parts):
        """Projects (B, T, D) to `parts` tensors (B, H, T, K), with one transposition for all of them."""
        rows = ops.reshape(x, (-1, x.shape[-1]))  # (B * T, D)
        # The shape is x's, not the rows': tf2onnx 1.17 merges a reshape with one whose shape is read off it into a
        # wrong one.
        heads = (*shape[:2], parts * self.num_heads, self.head_dim)
        x = ops.reshape(projection(rows), heads)  # (B, T, parts * H, K)
        x = ops.transpose(x, (0, 2, 1, 3))  # (B, parts * H, T, K)
        return ops.split(x, parts, axis=1)

    @staticmethod
    def _extend(cache, k, v, cache_index):
        if cache_index is None:
            return tuple(ops.concatenate(pair, axis=2) for pair in zip(cache, (k, v), strict=True))
        return tuple(
            decoding_kernels.write_slots(buffer, new, cache_index) for buffer, new in zip(cache, (k, v), strict=True)
        )

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "cross_attention": self.cross_attention,
            "dropout": self.dropout,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "output_initializer": keras.initializers.serialize(self.output_initializer),
        }


@fusible
def attention_weights(scores, *mask, dtype):
    """The softmax of scores (B, H, T, S) over the keys, without those that a mask hides, as a `dtype`."""
    return masked_softmax(scores, *mask or (None,), ops.softmax, dtype)


def masked_softmax(scores, mask, softmax, dtype):
    x = ops.cast(scores, "float32")  # house rule: the softmax is float32 under every policy
    if mask is not None:
        x = ops.where(mask, x, MASKED)
    return ops.cast(softmax(x), dtype)
