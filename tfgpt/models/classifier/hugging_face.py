"""Classifiers in Hugging Face's words: configuration keys and tensor names.

GPT-2's are those of `GPT2ForSequenceClassification`. Hugging Face has no encoder like ours; its config.json speaks
BERT's words, with three of our own among them.
"""

from __future__ import annotations

from tfgpt.classification import ENCODER_CLASSIFIER, GPT2_CLASSIFIER, read_labels
from tfgpt.errors import UserError
from tfgpt.models.classifier.encoder_backbone import EncoderBackbone
from tfgpt.models.classifier.encoder_classifier import EncoderClassifier
from tfgpt.models.classifier.gpt2_classifier import GPT2Classifier
from tfgpt.models.gpt2 import GPT2Backbone, hugging_face

MODEL_TYPE = "tfgpt_encoder"
SCORE = "score.weight"  # the one kernel that is stored as [out, in], (C, D), as GPT2ForSequenceClassification has it

# EncoderBackbone argument -> config.json key
CONFIG_KEYS = {
    "vocabulary_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "max_sequence_length": "max_position_embeddings",
    "dropout": "hidden_dropout_prob",
    "activation": "hidden_act",
    "layer_norm_epsilon": "layer_norm_eps",
    "initializer_range": "initializer_range",
    "normalization": "normalization",
    "positions": "position_embedding_type",
}


def to_config(model):
    """The contents of config.json for an `EncoderClassifier` or a `GPT2Classifier`."""
    backbone, tokenizer = model.backbone, model.tokenizer
    end_token_id = None if tokenizer is None else tokenizer.end_token_id
    if isinstance(model, GPT2Classifier):
        config = hugging_face.to_config(backbone, end_token_id, backbone.variable_dtype)
        config |= {"architectures": [GPT2_CLASSIFIER]}
    else:
        config = {"model_type": MODEL_TYPE, "architectures": [ENCODER_CLASSIFIER]}
        config |= {theirs: getattr(backbone, ours) for ours, theirs in CONFIG_KEYS.items()}
        config |= {"pooling": model.pooling, "torch_dtype": backbone.variable_dtype}
    config |= {
        "classifier_dropout": model.dropout,
        "problem_type": "single_label_classification",
        "num_labels": len(model.labels),
        "id2label": {str(i): label for i, label in enumerate(model.labels)},
        "label2id": {label: i for i, label in enumerate(model.labels)},
        # Hugging Face's GPT-2 finds the last token by it, so that padding must be a token that no text ends with.
        "pad_token_id": end_token_id,
    }
    return config


def from_config(config, source, dtype=None):
    """The model of a classifier's config.json, whose weights are zeros, to be read.

    Args:
        config: its contents.
        source: its path, for messages.
        dtype: a dtype or policy of the computation.

    Raises:
        UserError: if it is no classifier that there is.
    """
    labels, dropout = read_labels(config, source), config.get("classifier_dropout") or 0.0
    if GPT2_CLASSIFIER in config["architectures"]:
        arguments = {"initializer_range": 0.02, **hugging_face.from_config(config, source)}
        backbone = _without_random_numbers(GPT2Backbone, arguments, dtype)
        return GPT2Classifier(backbone, labels, dropout=dropout)
    for key in ("vocab_size", "num_hidden_layers", "num_attention_heads", "hidden_size", "max_position_embeddings"):
        if not isinstance(config.get(key), int) or config[key] < 1:
            raise UserError(f"{source} has {key} {config.get(key)!r}, expected a positive integer")
    arguments = {ours: config[theirs] for ours, theirs in CONFIG_KEYS.items() if theirs in config}
    backbone = _without_random_numbers(EncoderBackbone, arguments, dtype)
    return EncoderClassifier(backbone, labels, dropout=dropout, pooling=config.get("pooling", "mean"))


def _without_random_numbers(backbone_class, arguments, dtype):
    backbone = backbone_class(**{**arguments, "initializer_range": 0.0}, dtype=dtype)
    backbone.initializer_range = arguments.get("initializer_range", 0.02)
    return backbone


def named_variables(model):
    """A classifier's variables under the names of its model.safetensors, in the order of the forward pass.

    Kernels are `[in, out]`, but for `SCORE` in the file.
    """
    if isinstance(model, GPT2Classifier):
        return {**hugging_face.named_variables(model.backbone), SCORE: model.score.kernel}
    backbone = model.backbone
    names = {"encoder.token_embedding.weight": backbone.token_embedding.embeddings}
    if backbone.positions == "learned":
        names["encoder.position_embedding.weight"] = backbone.position_embedding.embeddings
    for i, block in enumerate(backbone.blocks):
        for name, layer in (
            ("attention.norm", block.attention.norm),
            ("attention.query_key_value", block.attention.sublayer.query_key_value),
            ("attention.output", block.attention.sublayer.output_dense),
            ("feed_forward.norm", block.feed_forward.norm),
            ("feed_forward.intermediate", block.feed_forward.sublayer.intermediate_dense),
            ("feed_forward.output", block.feed_forward.sublayer.output_dense),
        ):
            names |= hugging_face.weight_and_bias(f"encoder.layers.{i}.{name}", layer)
    if backbone.final_norm is not None:
        names |= hugging_face.weight_and_bias("encoder.final_norm", backbone.final_norm)
    return names | hugging_face.weight_and_bias("score", model.score)
