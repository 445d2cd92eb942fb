"""A witness: GPT-2's forward pass in plain NumPy, written from the paper (Radford et al. 2019, section 2.3).

It shares nothing with tfgpt. Weights go by Hugging Face's names, kernels are `[in, out]`.
"""

import numpy as np


def forward(weights, token_ids, num_heads, epsilon=1e-5):
    """Logits (B, T, V) of unpadded token ids (B, T), in the weights' own dtype."""
    return hidden_states(weights, token_ids, num_heads, epsilon) @ weights["transformer.wte.weight"].T


def hidden_states(weights, token_ids, num_heads, epsilon=1e-5):
    """What the output projection reads, (B, T, D)."""
    x = weights["transformer.wte.weight"][token_ids] + weights["transformer.wpe.weight"][: token_ids.shape[1]]
    num_layers = sum(name.endswith(".ln_1.weight") for name in weights)
    for i in range(num_layers):
        block = f"transformer.h.{i}."
        x = x + attention(weights, block + "attn.", normalize(weights, block + "ln_1", x, epsilon), num_heads)
        x = x + feed_forward(weights, block + "mlp.", normalize(weights, block + "ln_2", x, epsilon))
    return normalize(weights, "transformer.ln_f", x, epsilon)


def attention(weights, prefix, x, num_heads):
    batch, length, width = x.shape
    q, k, v = np.split(affine(weights, prefix + "c_attn", x), 3, axis=-1)
    out = np.empty_like(x)
    future = np.triu(np.ones((length, length), bool), k=1)
    for head in range(num_heads):
        columns = slice(head * width // num_heads, (head + 1) * width // num_heads)
        for row in range(batch):
            scores = q[row, :, columns] @ k[row, :, columns].T / np.sqrt(width // num_heads).astype(x.dtype)
            scores[future] = -np.inf
            exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
            out[row, :, columns] = exponentials / exponentials.sum(axis=-1, keepdims=True) @ v[row, :, columns]
    return affine(weights, prefix + "c_proj", out)


def feed_forward(weights, prefix, x):
    x = affine(weights, prefix + "c_fc", x)
    x = x * (1 + np.tanh(np.sqrt(2 / np.pi).astype(x.dtype) * (x + x.dtype.type(0.044715) * x**3))) / 2
    return affine(weights, prefix + "c_proj", x)


def affine(weights, name, x):
    return x @ weights[name + ".weight"] + weights[name + ".bias"]


def normalize(weights, name, x, epsilon):
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = (centered**2).mean(axis=-1, keepdims=True)
    return centered / np.sqrt(variance + x.dtype.type(epsilon)) * weights[name + ".weight"] + weights[name + ".bias"]


def shapes(num_layers, hidden_dim, vocabulary_size, max_sequence_length):
    """Hugging Face's tensor names and their shapes."""
    shapes = {
        "transformer.wte.weight": (vocabulary_size, hidden_dim),
        "transformer.wpe.weight": (max_sequence_length, hidden_dim),
    }
    for i in range(num_layers):
        for name, inputs, outputs in (
            ("attn.c_attn", hidden_dim, 3 * hidden_dim),
            ("attn.c_proj", hidden_dim, hidden_dim),
            ("mlp.c_fc", hidden_dim, 4 * hidden_dim),
            ("mlp.c_proj", 4 * hidden_dim, hidden_dim),
        ):
            shapes[f"transformer.h.{i}.{name}.weight"] = (inputs, outputs)
            shapes[f"transformer.h.{i}.{name}.bias"] = (outputs,)
    for norm in (*(f"h.{i}.{name}" for i in range(num_layers) for name in ("ln_1", "ln_2")), "ln_f"):
        shapes[f"transformer.{norm}.weight"] = shapes[f"transformer.{norm}.bias"] = (hidden_dim,)
    return shapes


def random_weights(num_layers, hidden_dim, vocabulary_size, max_sequence_length, seed=0):
    """Weights (float32) as training leaves them: no bias is 0, no norm's scale is 1, attention is not uniform."""
    random = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes(num_layers, hidden_dim, vocabulary_size, max_sequence_length).items():
        values = random.standard_normal(shape, dtype="float32")
        if "ln_" in name:
            values = 0.2 * values + name.endswith("weight")
        elif "wte" in name or "wpe" in name or name.endswith("bias"):
            values = 0.1 * values
        else:
            values = (2.0 if "c_attn" in name else 0.5) * shape[0] ** -0.5 * values
        weights[name] = values.astype("float32")
    return weights


def relative_error(found, expected):
    """The largest difference, relative to the largest expected magnitude (or to 1, if that is larger)."""
    return np.abs(np.asarray(found) - expected).max() / max(1.0, np.abs(expected).max())
