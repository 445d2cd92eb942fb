"""A witness: the encoder classifier's forward pass in plain NumPy, written from Vaswani et al. 2017.

It shares nothing with tfgpt but the names of tensors, and takes one row at a time, without padding. Kernels are
`[in, out]`, but for score.weight.
"""

import numpy as np

from tests.models.gpt2_numpy import affine, feed_forward, normalize


def forward(weights, token_ids, num_heads, normalization, positions, pooling, epsilon=1e-5):
    """Logits (C,) of one row of token ids (T,)."""
    x = weights["encoder.token_embedding.weight"][token_ids]
    length, width = x.shape
    if positions == "learned":
        x = x + weights["encoder.position_embedding.weight"][:length]
    elif positions == "sinusoidal":
        x = x * np.sqrt(width) + sinusoids(length, width)
    num_layers = sum(name.endswith(".attention.norm.weight") for name in weights)
    for i in range(num_layers):
        for part in ("attention", "feed_forward"):
            prefix = f"encoder.layers.{i}.{part}"

            def sublayer(y, part=part, prefix=prefix):
                if part == "attention":
                    return attention(weights, prefix, y, num_heads)
                named = {"c_fc": "intermediate", "c_proj": "output"}
                of_gpt2 = {
                    f"{ours}.{kind}": weights[f"{prefix}.{theirs}.{kind}"]
                    for ours, theirs in named.items()
                    for kind in ("weight", "bias")
                }
                return feed_forward(of_gpt2, "", y)

            if normalization == "pre":
                x = x + sublayer(normalize(weights, f"{prefix}.norm", x, epsilon))
            else:
                x = normalize(weights, f"{prefix}.norm", x + sublayer(x), epsilon)
    if normalization == "pre":
        x = normalize(weights, "encoder.final_norm", x, epsilon)
    pooled = x.mean(axis=0) if pooling == "mean" else x[0]
    return weights["score.weight"] @ pooled + weights["score.bias"]


def sinusoids(length, width):
    """Section 3.5, an entry at a time."""
    table = np.empty((length, width))
    for position in range(length):
        for i in range(width // 2):
            angle = position / 10000 ** (2 * i / width)
            table[position, 2 * i], table[position, 2 * i + 1] = np.sin(angle), np.cos(angle)
    return table


def attention(weights, prefix, x, num_heads):
    """Section 3.2: every token looks at every other."""
    length, width = x.shape
    q, k, v = np.split(affine(weights, f"{prefix}.query_key_value", x), 3, axis=-1)
    out = np.empty_like(x)
    for head in range(num_heads):
        columns = slice(head * width // num_heads, (head + 1) * width // num_heads)
        for t in range(length):
            scores = np.array([q[t, columns] @ k[s, columns] for s in range(length)]) / np.sqrt(width // num_heads)
            exponentials = np.exp(scores - scores.max())
            out[t, columns] = exponentials / exponentials.sum() @ v[:, columns]
    return affine(weights, f"{prefix}.output", out)


def randomize(variables, seed=0):
    """Gives variables, a dictionary by name, values as training leaves them: no bias is 0, no norm's scale is 1."""
    random = np.random.default_rng(seed)
    for name, variable in variables.items():
        values = random.standard_normal(variable.shape)
        if "norm" in name or ".ln_" in name:
            values = 0.2 * values + name.endswith("weight")
        elif name.endswith("bias"):
            values = 0.1 * values
        elif "embedding" in name or name.startswith("transformer.w"):
            values = 0.3 * values
        else:
            values = (
                (2.0 if "query_key_value" in name or "c_attn" in name else 1.0) * variable.shape[0] ** -0.5 * values
            )
        variable.assign(values)
