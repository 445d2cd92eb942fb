"""GPT-2 in Hugging Face's words: configuration keys and tensor names.

Kernels need no transposition: Hugging Face's GPT-2 kept OpenAI's `[in, out]` layout with Q, K and V in one kernel,
which is exactly the layout of our layers.
"""

from __future__ import annotations

import re

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

# Hugging Face's other names for the same functions.
SYNONYMS = {"gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new", "gelu_python": "gelu", "swish": "silu"}

# What old checkpoints store of each attention beside its weights: the causal mask, and what it puts into its place.
BUFFER = re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias")

EMBEDDING = "transformer.wte.weight"
OUTPUT_PROJECTION = "lm_head.weight"


def to_config(backbone, end_token_id=None, dtype="float32"):
    """The contents of config.json for a `GPT2Backbone`.

    Args:
        backbone: a `GPT2Backbone`, or anything with its attributes.
        end_token_id: of "<|endoftext|>", if the tokenizer has one.
        dtype: in which the weights are stored.

    Raises:
        UserError: if its activation has no name in Hugging Face's GPT-2.
    """
    if backbone.activation not in ACTIVATIONS:
        raise UserError(
            f"config.json has no word for activation {backbone.activation!r}, expected one of {', '.join(ACTIVATIONS)}"
        )
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    config |= {theirs: getattr(backbone, ours) for ours, theirs in CONFIG_KEYS.items()}
    config["n_ctx"] = config["n_positions"]  # OpenAI's word, which llama.cpp's converter reads
    config["activation_function"] = ACTIVATIONS[backbone.activation]
    config |= {"embd_pdrop": backbone.dropout, "attn_pdrop": backbone.dropout}
    config |= {"bos_token_id": end_token_id, "eos_token_id": end_token_id}
    config |= {"tie_word_embeddings": True, "use_cache": True}
    config["torch_dtype"] = dtype  # transformers 5 reads this word of version 4, too
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
        ("quantization_config", None),
        ("pruned_heads", {}),
    ):
        if config.get(key, supported) != supported:
            raise UserError(f"{source} has {key} {config[key]}, expected {supported}: nothing else is supported")
    activations = {theirs: ours for ours, theirs in ACTIVATIONS.items()}
    activation = config.get("activation_function", "gelu_new")
    activation = SYNONYMS.get(activation, activation)
    if activation not in activations:
        raise UserError(f"{source} has activation_function {activation!r}, expected one of {', '.join(activations)}")
    arguments = {ours: config[theirs] for ours, theirs in CONFIG_KEYS.items() if theirs in config}
    arguments["intermediate_dim"] = config.get("n_inner") or 4 * config["n_embd"]
    arguments["activation"] = activations[activation]
    arguments["dropout"] = dropouts.pop()
    return arguments


def canonical_names(stored, source):
    """Hugging Face's full names of stored tensors, which may lack the prefix `transformer.`; without attention masks.

    Args:
        stored: names, as a file has them.
        source: its path, for messages.

    Returns:
        The stored name by its full one.

    Raises:
        UserError: if a tensor is there with and without the prefix.
    """
    names = {}
    for name in stored:
        if BUFFER.fullmatch(name):
            continue
        full = name if name == OUTPUT_PROJECTION or name.startswith("transformer.") else f"transformer.{name}"
        if full in names:
            raise UserError(f"{source} has both {name} and {names[full]}, expected one of them")
        names[full] = name
    return names


def tensor_shapes(config):
    """The shapes of a model's tensors under Hugging Face's names, in the order of the forward pass.

    Args:
        config: the arguments of its `GPT2Backbone`.

    Example:

    >>> from tfgpt.models.gpt2.presets import preset_config
    >>> tensor_shapes(preset_config("gpt2-test"))["transformer.h.1.attn.c_attn.weight"]
    (32, 96)
    """
    width, inner = config["hidden_dim"], config["intermediate_dim"]
    shapes = {
        "transformer.wte.weight": (config["vocabulary_size"], width),
        "transformer.wpe.weight": (config["max_sequence_length"], width),
    }
    for i in range(config["num_layers"]):
        for name, kernel in (
            ("ln_1", (width,)),
            ("attn.c_attn", (width, 3 * width)),
            ("attn.c_proj", (width, width)),
            ("ln_2", (width,)),
            ("mlp.c_fc", (width, inner)),
            ("mlp.c_proj", (inner, width)),
        ):
            shapes[f"transformer.h.{i}.{name}.weight"] = kernel
            shapes[f"transformer.h.{i}.{name}.bias"] = kernel[-1:]
    return shapes | {"transformer.ln_f.weight": (width,), "transformer.ln_f.bias": (width,)}


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
            names |= weight_and_bias(f"transformer.h.{i}.{name}", layer)
    return names | weight_and_bias("transformer.ln_f", backbone.final_norm)


def weight_and_bias(name, layer):
    """The two variables of a dense or normalization layer, named as PyTorch names them."""
    is_norm = hasattr(layer, "gamma")
    weight, bias = (layer.gamma, layer.beta) if is_norm else (layer.kernel, layer.bias)
    return {f"{name}.weight": weight, f"{name}.bias": bias}
