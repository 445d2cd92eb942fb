"""A witness: the Transformer's forward pass in plain NumPy, written from the paper (Vaswani et al. 2017, section 3).

It shares nothing with tfgpt. One row at a time, without padding; sublayers are `norm(x + f(x))` as in the paper, or
`x + f(norm(x))` with a last norm on each stack (Xiong et al. 2020, figure 1 b). Kernels are `[in, out]`.
"""

import numpy as np

from tests.models.gpt2_numpy import affine, normalize


def forward(weights, source_ids, target_ids, num_heads, pre_norm, scale=True, epsilon=1e-5):
    """Logits (T, V) of one pair: source ids (S,) and target ids (T,), in the weights' own dtype."""
    shared = "embedding.weight" in weights
    source_embedding = weights["embedding.weight" if shared else "encoder.embedding.weight"]
    target_embedding = weights["embedding.weight" if shared else "decoder.embedding.weight"]
    residual = _pre_norm if pre_norm else _post_norm

    def embedded(embedding, ids, positions):
        width = embedding.shape[1]
        added = weights[positions][: len(ids)] if positions in weights else sinusoids(len(ids), width)
        return embedding[ids] * (np.sqrt(width) if scale else 1.0) + added

    x = embedded(source_embedding, source_ids, "encoder.positions.weight")
    for i in range(layers(weights, "encoder")):
        block = f"encoder.layers.{i}."
        x = residual(weights, block + "attention", x, epsilon, lambda y, p: self_attention(weights, p, y, num_heads))
        x = residual(weights, block + "feed_forward", x, epsilon, lambda y, p: feed_forward(weights, p, y))
    memory = normalize(weights, "encoder.norm", x, epsilon) if pre_norm else x

    x = embedded(target_embedding, target_ids, "decoder.positions.weight")
    for i in range(layers(weights, "decoder")):
        block = f"decoder.layers.{i}."

        def causal(y, prefix):
            return self_attention(weights, prefix, y, num_heads, causal=True)

        def cross(y, prefix):
            return cross_attention(weights, prefix, y, memory, num_heads)

        x = residual(weights, block + "attention", x, epsilon, causal)
        x = residual(weights, block + "memory_attention", x, epsilon, cross)
        x = residual(weights, block + "feed_forward", x, epsilon, lambda y, p: feed_forward(weights, p, y))
    if pre_norm:
        x = normalize(weights, "decoder.norm", x, epsilon)
    return x @ target_embedding.T


def _pre_norm(weights, part, x, epsilon, sublayer):
    return x + sublayer(normalize(weights, part + ".norm", x, epsilon), part + ".")


def _post_norm(weights, part, x, epsilon, sublayer):
    return normalize(weights, part + ".norm", x + sublayer(x, part + "."), epsilon)


def self_attention(weights, prefix, x, num_heads, causal=False):
    q, k, v = np.split(affine(weights, prefix + "query_key_value", x), 3, axis=-1)
    return attend(weights, prefix, q, k, v, num_heads, causal)


def cross_attention(weights, prefix, x, memory, num_heads):
    k, v = np.split(affine(weights, prefix + "key_value", memory), 2, axis=-1)
    return attend(weights, prefix, affine(weights, prefix + "query", x), k, v, num_heads)


def attend(weights, prefix, q, k, v, num_heads, causal=False):
    heads = []
    for q_h, k_h, v_h in zip(*(np.split(x, num_heads, axis=-1) for x in (q, k, v))):
        scores = q_h @ k_h.T / np.sqrt(q_h.shape[-1])
        if causal:
            scores[np.triu_indices(len(q), k=1)] = -np.inf
        exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
        heads.append(exponentials / exponentials.sum(axis=-1, keepdims=True) @ v_h)
    return affine(weights, prefix + "output", np.concatenate(heads, axis=-1))


def feed_forward(weights, prefix, x):
    return affine(weights, prefix + "output", np.maximum(affine(weights, prefix + "intermediate", x), 0))


def sinusoids(length, width):
    table = np.empty((length, width))
    for position in range(length):
        for i in range(width // 2):
            angle = position / 10000 ** (2 * i / width)
            table[position, 2 * i], table[position, 2 * i + 1] = np.sin(angle), np.cos(angle)
    return table


def layers(weights, stack):
    return sum(name.startswith(stack) and name.endswith("intermediate.weight") for name in weights)


def randomized(shapes, seed=0):
    """Weights (float64) as training leaves them, for shapes by name: no bias is 0, no norm's scale is 1."""
    random = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes.items():
        values = random.standard_normal(shape)
        if ".norm." in name:
            values = 0.2 * values + name.endswith("weight")
        elif "embedding" in name:
            values = shape[1] ** -0.5 * values
        elif name.endswith("bias"):
            values = 0.1 * values
        elif "positions" not in name:
            values = (2.0 if "query" in name else 0.7) * shape[0] ** -0.5 * values
        weights[name] = values.astype("float32").astype("float64")
    return weights
