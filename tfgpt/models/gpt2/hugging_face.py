"""GPT-2 in Hugging Face's words: configuration keys and tensor names.

Kernels need no transposition: Hugging Face's GPT-2 kept OpenAI's `[in, out]` layout with Q, K and V in one kernel,
which is exactly the layout of our layers.
"""

from __future__ import annotations

from tfgpt.errors import UserError

# GPT2Backbone argument -> config.json key
CONFIG_KEYS = {
    "vocabulary_size": "vocab_size",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "hidden_dim": "n_embd",
    "intermediate_dim": "n_inner",
    "max_sequence_length": "n_positions",
    "dropout": "resid_pdrop",
    "activation": "activation_function",
    "layer_norm_epsilon": "layer_norm_epsilon",
    "initializer_range": "initializer_range",
}

# our activation names -> Hugging Face's
ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu", "silu": "silu", "tanh": "tanh"}


def to_config(backbone, end_token_id=None):
    """The contents of config.json for a `GPT2Backbone`.

    Raises:
        UserError: if its activation has no name in Hugging Face's GPT-2.
    """
    if backbone.activation not in ACTIVATIONS:
        raise UserError(
            f"config.json has no word for activation {backbone.activation!r}, expected one of {', '.join(ACTIVATIONS)}"
        )
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    config |= {theirs: getattr(backbone, ours) for ours, theirs in CONFIG_KEYS.items()}
    config["activation_function"] = ACTIVATIONS[backbone.activation]
    config |= {"embd_pdrop": backbone.dropout, "attn_pdrop": backbone.dropout}
    config |= {"bos_token_id": end_token_id, "eos_token_id": end_token_id}
    config |= {"tie_word_embeddings": True, "use_cache": True}
    return config


def from_config(config, source):
    """The `GPT2Backbone` arguments of a config.json.

    Args:
        config: its contents.
        source: its path, for messages.

    Raises:
        UserError: if it is not GPT-2's, or asks for something that GPT2Backbone does not do.
    """
    if config.get("model_type") != "gpt2":
        raise UserError(f"{source} has model_type {config.get('model_type')!r}, expected 'gpt2'")
    required = ("vocab_size", "n_layer", "n_head", "n_embd", "n_positions")
    for key in required:
        if not isinstance(config.get(key), int) or config[key] < 1:
            raise UserError(f"{source} has {key} {config.get(key)!r}, expected a positive integer")
    if config["n_embd"] % config["n_head"]:
        raise UserError(f"{source} has n_embd {config['n_embd']}, expected a multiple of n_head {config['n_head']}")
    dropouts = {config.get(key, 0.1) for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    if len(dropouts) > 1:
        raise UserError(f"{source} has differing dropout rates {sorted(dropouts)}, expected one rate for all places")
    for key, supported in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
        ("tie_word_embeddings", True),
    ):
        if config.get(key, supported) != supported:
            raise UserError(f"{source} has {key} {config[key]}, expected {supported}: nothing else is supported")
    activations = {theirs: ours for ours, theirs in ACTIVATIONS.items()}
    activation = config.get("activation_function", "gelu_new")
    if activation not in activations:
        raise UserError(f"{source} has activation_function {activation!r}, expected one of {', '.join(activations)}")
    arguments = {ours: config[theirs] for ours, theirs in CONFIG_KEYS.items() if theirs in config}
    arguments["intermediate_dim"] = config.get("n_inner") or 4 * config["n_embd"]
    arguments["activation"] = activations[activation]
    arguments["dropout"] = dropouts.pop()
    return arguments


def named_variables(backbone):
    """The backbone's variables under Hugging Face's names, in the order of the forward pass."""
    names = {
        "transformer.wte.weight": backbone.token_embedding.embeddings,
        "transformer.wpe.weight": backbone.position_embedding.embeddings,
    }
    for i, block in enumerate(backbone.blocks):
        attention, feed_forward = block.attention, block.feed_forward
        for name, layer in (
            ("ln_1", attention.norm),
            ("attn.c_attn", attention.sublayer.query_key_value),
            ("attn.c_proj", attention.sublayer.output_dense),
            ("ln_2", feed_forward.norm),
            ("mlp.c_fc", feed_forward.sublayer.intermediate_dense),
            ("mlp.c_proj", feed_forward.sublayer.output_dense),
        ):
            names |= _weight_and_bias(f"transformer.h.{i}.{name}", layer)
    return names | _weight_and_bias("transformer.ln_f", backbone.final_norm)


def _weight_and_bias(name, layer):
    is_norm = hasattr(layer, "gamma")
    weight, bias = (layer.gamma, layer.beta) if is_norm else (layer.kernel, layer.bias)
    return {f"{name}.weight": weight, f"{name}.bias": bias}
