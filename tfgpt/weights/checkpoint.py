"""A GPT-2 between two origins: its configuration, its tensors as they are stored, its tokenizer."""

from __future__ import annotations

import dataclasses
import math

import ml_dtypes  # noqa: F401 (NumPy's bfloat16)

from tfgpt.errors import UserError
from tfgpt.models.gpt2 import hugging_face
from tfgpt.text import BytePairTokenizer

DTYPES = ("float32", "float16", "bfloat16")

# What OpenAI's code, keras-hub's and nanoGPT's have no word for.
DEFAULTS = {"dropout": 0.1, "activation": "gelu_tanh", "layer_norm_epsilon": 1e-5, "initializer_range": 0.02}


@dataclasses.dataclass
class Checkpoint:
    """What every origin is read into and written from: no dtype changes on the way, and no layout is left to guess.

    Attributes:
        config: every argument of `GPT2Backbone` but its dtype.
        tensors: NumPy arrays, mapped from a file where it can be, under Hugging Face's names: kernels `[in, out]`, with
            Q, K and V in one.
        tokenizer: see `tfgpt.text`, or None.
        end_token_id: of the end of text, or None where nothing says.
        notes: what the user should know of the reading or writing, a sentence each.
    """

    config: dict
    tensors: dict
    tokenizer: object = None
    end_token_id: int | None = None
    notes: list = dataclasses.field(default_factory=list)

    def __post_init__(self):
        if self.tokenizer is not None and self.end_token_id is None:
            self.end_token_id = self.tokenizer.end_token_id

    @property
    def dtype(self):
        """The dtype that holds all tensors: theirs if they agree, else float32."""
        dtypes = {tensor.dtype.name for tensor in self.tensors.values()}
        return dtypes.pop() if len(dtypes) == 1 else "float32"

    @property
    def parameter_count(self):
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @classmethod
    def from_model(cls, model):
        """The checkpoint of a `GPT2CausalLM`, in the dtype of its variables."""
        config = {name: getattr(model.backbone, name) for name in hugging_face.CONFIG_KEYS}
        tensors = {name: variable.numpy() for name, variable in hugging_face.named_variables(model.backbone).items()}
        return cls(config, tensors, model.tokenizer)

    def to_model(self, dtype=None):
        """A `GPT2CausalLM` with these weights, cast to its variables' dtype.

        Args:
            dtype: a dtype or Keras policy of the computation; variables are float32 unless it says otherwise.
        """
        from tfgpt.models import GPT2Backbone, GPT2CausalLM
        from tfgpt.models.gpt2.model_directory import assign_tensor

        backbone = GPT2Backbone(**{**self.config, "initializer_range": 0.0}, dtype=dtype)  # no random numbers first
        backbone.initializer_range = self.config["initializer_range"]
        for name, variable in hugging_face.named_variables(backbone).items():
            assign_tensor(variable, self.tensors[name])
        return GPT2CausalLM(backbone, self.tokenizer)


# === What the origins' readers check, and writers ===


def read_sizes(found, keys, source):
    """The sizes of a `GPT2Backbone` in another's words.

    Args:
        found: their configuration.
        keys: their word for each of ours.
        source: where it was found, for messages.

    Raises:
        UserError: if one is missing, is no positive integer, or contradicts another.
    """
    for key in keys.values():
        if type(found.get(key)) is not int or found[key] < 1:
            raise UserError(f"{source} has {key} {found.get(key)!r}, expected a positive integer")
    sizes = {ours: found[theirs] for ours, theirs in keys.items()}
    if sizes["hidden_dim"] % sizes["num_heads"]:
        width, heads = keys["hidden_dim"], keys["num_heads"]
        raise UserError(
            f"{source} has {width} {sizes['hidden_dim']}, expected a multiple of {heads} {sizes['num_heads']}"
        )
    return {"intermediate_dim": 4 * sizes["hidden_dim"], **sizes}


def check_tensors(stored, shapes, source):
    """Compares stored tensors, by their names and in their layout, with what the configuration asks for.

    Raises:
        UserError: naming all that are missing or unknown, or the first of another shape or dtype.
    """
    missing, unknown = [n for n in shapes if n not in stored], [n for n in stored if n not in shapes]
    if missing or unknown:
        found = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise UserError(f"{source} {' and '.join(found)}, expected the {len(shapes)} tensors of its configuration")
    for name, shape in shapes.items():
        if tuple(stored[name].shape) != shape:
            raise UserError(
                f"{source} has {name} of shape {tuple(stored[name].shape)}, expected {shape} by its configuration"
            )
        if stored[name].dtype.name not in DTYPES:
            raise UserError(f"{source} has {name} in {stored[name].dtype}, expected one of {', '.join(DTYPES)}")


def expect_values(config, whose, **values):
    """Refuses to write a configuration that the origin's code would not compute.

    Raises:
        UserError: naming the first argument that differs.
    """
    for name, value in values.items():
        if config[name] != value:
            raise UserError(f"the model has {name} {config[name]!r}, expected {value!r}: {whose} computes nothing else")


def expect_byte_pairs(tokenizer, whose):
    """Refuses to write a tokenizer that GPT-2's two files cannot hold."""
    if tokenizer is not None and not isinstance(tokenizer, BytePairTokenizer):
        raise UserError(
            f"the tokenizer is a {type(tokenizer).__name__}, expected GPT-2's byte pairs: {whose} has no other"
        )
