"""The model directory of an encoder–decoder Transformer, written and read.

config.json has the words of Hugging Face's sequence-to-sequence models (Marian, BART) under a model_type of our own:
none of theirs has exactly these layers. Tensors have plain names, such as
`decoder.layers.0.memory_attention.key_value.weight`; kernels are `[in, out]`, with Q, K and V, or K and V, in one.
"""

from __future__ import annotations

from tfgpt.errors import UserError
from tfgpt.json_file import read_json
from tfgpt.layers.feed_forward import ACTIVATIONS as OWN_ACTIVATIONS
from tfgpt.layers.residual import NORMALIZATIONS
from tfgpt.models.encoder_decoder.backbone import POSITIONS
from tfgpt.models.gpt2.hugging_face import weight_and_bias
from tfgpt.models.gpt2.model_directory import assign_stored, check_vocabulary, write_files
from tfgpt.safetensors_file import SafetensorsFile

MODEL_TYPE = "tfgpt_encoder_decoder"

# EncoderDecoderBackbone argument -> config.json keys; several have to agree.
CONFIG_KEYS = {
    "vocabulary_size": ("vocab_size",),
    "num_encoder_layers": ("encoder_layers",),
    "num_decoder_layers": ("decoder_layers",),
    "num_heads": ("encoder_attention_heads", "decoder_attention_heads"),
    "hidden_dim": ("d_model",),
    "intermediate_dim": ("encoder_ffn_dim", "decoder_ffn_dim"),
    "max_sequence_length": ("max_position_embeddings",),
    "dropout": ("dropout",),
    "attention_dropout": ("attention_dropout",),
    "activation": ("activation_function",),
    "normalization": ("normalization",),
    "positions": ("positions",),
    "share_embeddings": ("share_encoder_decoder_embeddings",),
    "scale_embeddings": ("scale_embedding",),
    "layer_norm_epsilon": ("layer_norm_epsilon",),
}

SIZES = ("vocabulary_size", "num_encoder_layers", "num_decoder_layers", "num_heads", "hidden_dim", "intermediate_dim")
SIZES += ("max_sequence_length",)
ACTIVATIONS = (*OWN_ACTIVATIONS, "gelu", "relu", "silu", "tanh")
CHOICES = {"activation": ACTIVATIONS, "normalization": NORMALIZATIONS, "positions": POSITIONS}

# config.json key -> `Tokenizer` attribute
TOKENS = {"pad_token_id": "pad_token_id", "bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id"}


def write_model_files(model, directory):
    """Writes the files of a model directory, each atomically.

    Args:
        model: an `EncoderDecoderTransformer`; its `tokenizer` is written if it has one.
        directory: an existing directory.
    """
    backbone, tokenizer = model.backbone, model.tokenizer
    config = to_config(backbone, tokenizer)
    tensors = {name: variable.numpy() for name, variable in named_variables(backbone).items()}
    generation_config = {"do_sample": False, "num_beams": 5, "length_penalty": 1.0}
    generation_config |= {key: config[key] for key in (*TOKENS, "decoder_start_token_id")}
    write_files(directory, config, tensors, tokenizer, generation_config)


def to_config(backbone, tokenizer=None):
    """The contents of config.json for an `EncoderDecoderBackbone` and its tokenizer."""
    config = {"model_type": MODEL_TYPE, "architectures": ["EncoderDecoderTransformer"], "is_encoder_decoder": True}
    config |= {key: getattr(backbone, argument) for argument, keys in CONFIG_KEYS.items() for key in keys}
    config |= {key: getattr(tokenizer, name, None) for key, name in TOKENS.items()}
    config["decoder_start_token_id"] = config["bos_token_id"]
    config |= {"tie_word_embeddings": True, "use_cache": True, "torch_dtype": backbone.variable_dtype}
    return config


def read_config(directory):
    """The `EncoderDecoderBackbone` arguments in a model directory's config.json.

    Raises:
        UserError: if it is missing, not JSON, or not that of an encoder–decoder Transformer.
    """
    path = directory / "config.json"
    config = read_json(path)
    if config.get("model_type") != MODEL_TYPE:
        raise UserError(f"{path} has model_type {config.get('model_type')!r}, expected {MODEL_TYPE!r}")
    arguments = {}
    for argument, keys in CONFIG_KEYS.items():
        for key in keys:
            value = config.get(key)
            if argument in SIZES and (type(value) is not int or value < 1):
                raise UserError(f"{path} has {key} {value!r}, expected a positive integer")
            if argument in CHOICES and value not in CHOICES[argument]:
                raise UserError(f"{path} has {key} {value!r}, expected one of {', '.join(CHOICES[argument])}")
            if argument.endswith("_embeddings") and not isinstance(value, bool):
                raise UserError(f"{path} has {key} {value!r}, expected true or false")
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if argument.endswith(("dropout", "epsilon")) and not (is_number and 0 <= value < 1):
                raise UserError(f"{path} has {key} {value!r}, expected a number from 0 to below 1")
            if arguments.setdefault(argument, value) != value:
                raise UserError(f"{path} has {key} {value!r}, expected {arguments[argument]!r} as in {keys[0]}")
    if arguments["hidden_dim"] % arguments["num_heads"]:
        raise UserError(
            f"{path} has d_model {arguments['hidden_dim']}, expected a multiple of the {arguments['num_heads']} heads"
        )
    return arguments


def read_tokenizer(model, directory):
    """Gives a model the tokenizer of its directory, if that holds one.

    Raises:
        UserError: if it has tokens without an embedding.
    """
    if (directory / "tokenizer.json").exists():
        from tfgpt.text import load_tokenizer  # the tokenizer comes with the directory

        model.tokenizer = load_tokenizer(directory)
        check_vocabulary(model.tokenizer, model.backbone.vocabulary_size, directory)


def read_weights(backbone, path):
    """Assigns the tensors of a safetensors file to the backbone.

    Raises:
        UserError: if the file is missing, damaged, or its tensors are not this model's, naming them.
    """
    with SafetensorsFile(path) as file:
        assign_stored(named_variables(backbone), {name: name for name in file.tensors}, file)


def named_variables(backbone):
    """The backbone's variables under plain names, in the order of the forward pass."""
    if backbone.share_embeddings:
        names = {"embedding.weight": backbone.target_embedding.embeddings}
    else:
        names = {"encoder.embedding.weight": backbone.source_embedding.embeddings}
        names |= {"decoder.embedding.weight": backbone.target_embedding.embeddings}
    for stack, positions, blocks, norm in (
        ("encoder", backbone.source_positions, backbone.encoder_blocks, backbone.encoder_norm),
        ("decoder", backbone.target_positions, backbone.decoder_blocks, backbone.decoder_norm),
    ):
        if backbone.positions == "learned":
            names[f"{stack}.positions.weight"] = positions.embeddings
        for i, block in enumerate(blocks):
            names |= block_variables(block, f"{stack}.layers.{i}")
        if norm is not None:
            names |= weight_and_bias(f"{stack}.norm", norm)
    return names


def block_variables(block, prefix):
    """The variables of an encoder or decoder block under plain names."""
    parts = {"attention": ("query_key_value", "output")}
    if block.cross_attention:
        parts["memory_attention"] = ("query", "key_value", "output")
    parts["feed_forward"] = ("intermediate", "output")
    names = {}
    for part, denses in parts.items():
        residual = getattr(block, part)
        if residual.norm is not None:
            names |= weight_and_bias(f"{prefix}.{part}.norm", residual.norm)
        for dense in denses:
            attribute = dense if dense in ("query", "key_value", "query_key_value") else f"{dense}_dense"
            names |= weight_and_bias(f"{prefix}.{part}.{dense}", getattr(residual.sublayer, attribute))
    return names
