import pathlib

import keras
from keras import ops

from tfgpt.atomic import atomic_directory
from tfgpt.errors import UserError
from tfgpt.layers.observation import observe
from tfgpt.models.gpt2 import model_directory
from tfgpt.models.gpt2.backbone import GPT2Backbone
from tfgpt.models.gpt2.presets import PRESETS, preset_config
from tfgpt.models.views import attention_view, encode_view, logit_lens, token_texts


@keras.saving.register_keras_serializable(package="tfgpt")
class GPT2CausalLM(keras.Model):
    """GPT-2 as a language model: the backbone, and its token embedding as output projection (Radford et al. 2019).

    An ordinary Keras model: `compile`, `fit` on `(token_ids, next_token_ids)`, `evaluate`, `predict`, `summary`,
    `save("x.keras")`. `save_to_preset(directory)` writes a model directory that Hugging Face's tools open as it is.

    Args:
        backbone: a `GPT2Backbone`.
        tokenizer: what turns text into token ids (see `tfgpt.text`), kept beside the model for `generate` and
            `save_to_preset`; None for a model of token ids.

    Call arguments:
        inputs: token ids (B, T), or a dictionary `{"token_ids": (B, T), "padding_mask": (B, T)}`.

    Returns:
        Logits (B, T, V), float32 under every dtype policy.

    Example:

    >>> model = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=0)
    >>> model.count_params()
    36096
    >>> model(keras.ops.array([[1, 2, 3]])).shape
    TensorShape([1, 3, 300])
    """

    def __init__(self, backbone, tokenizer=None, **kwargs):
        super().__init__(dtype=backbone.dtype_policy, **kwargs)
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.built = True  # the backbone has every weight

    def build(self, input_shape=None):
        pass

    def call(self, inputs, training=None):
        return self.logits(self.backbone(inputs, training=training))

    def logits(self, hidden_states):
        """Projects hidden states (..., D) onto the vocabulary: logits (..., V)."""
        # float32 whatever the policy: losses, samplers and parity compare logits of different runtimes.
        return ops.cast(self.backbone.token_embedding(hidden_states, reverse=True), "float32")

    def call_with_cache(self, token_ids, padding_mask, cache, position_ids, cache_index=None, last_only=False):
        """One step of decoding: the logits of new tokens, given the KV cache of those before.

        Args:
            token_ids: the new tokens (B, T).
            padding_mask: of all the keys, old and new: (B, S).
            cache: from `backbone.empty_cache` or a previous step.
            position_ids: (B, T).
            cache_index: the slot of the first new token in a preallocated cache; None grows the cache.
            last_only: compute logits for the last position alone, (B, 1, V).

        Returns:
            Logits (B, T, V) and the new cache.
        """
        x, cache = self.backbone(
            {"token_ids": token_ids, "padding_mask": padding_mask},
            cache=cache,
            cache_index=cache_index,
            position_ids=position_ids,
            training=False,
        )
        return self.logits(x[:, -1:] if last_only else x), cache

    def generate(self, prompts, **settings):
        """Continues prompts: see `tfgpt.generation.generate`, to which every argument goes."""
        # The one import up the table of rooms (DESIGN.md): users expect the method on the model.
        from tfgpt.generation import generate

        return generate(self, prompts, **settings)

    def attention(self, text):
        """Where each token of a text looks, in every layer and head: an `AttentionView`.

        Args:
            text: a string, or a list of token ids.

        Raises:
            UserError: if it is empty or longer than the window.

        Example:

        >>> model = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=0)
        >>> model.attention([1, 2, 3]).weights.shape
        (2, 2, 3, 3)
        """
        tokens, shown = self._observe(text)
        return attention_view(shown, [block.attention for block in self.backbone.blocks], tokens, tokens)

    def logit_lens(self, text, top_k=5):
        """The likeliest next tokens after each layer of each token of a text: a `LogitLens`.

        Each layer's residual stream goes where the last one's goes: through the last normalization and the output
        projection.

        Args:
            text: a string, or a list of token ids.
            top_k: how many tokens.

        Raises:
            UserError: if the text is empty or longer than the window.

        Example:

        >>> model = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=0)
        >>> model.logit_lens([1, 2, 3]).probabilities.shape
        (2, 3, 5)
        """
        tokens, shown = self._observe(text)

        def logits(states):
            return self.logits(self.backbone.final_norm(states))

        return logit_lens(shown, self.backbone.blocks, logits, tokens, self.tokenizer, top_k)

    def _observe(self, text):
        """A text's tokens, and what the layers show as they read it."""
        token_ids = encode_view(self, "text", text)
        with observe() as shown:
            self.backbone(ops.array([token_ids], "int32"), training=False)
        return token_texts(self.tokenizer, token_ids), shown

    @classmethod
    def from_preset(cls, preset, load_weights=True, seed=None, dtype=None, **overrides):
        """A model from a model directory, or a randomly initialized one of a named size.

        Args:
            preset: a model directory, or a name such as "gpt2" (see `tfgpt.models.PRESETS`).
            load_weights: read the directory's weights; names have none here, so they need False.
            seed: of the random initialization; it seeds Keras' global generators.
            dtype: a dtype or policy of the computation; weights are float32 unless it says otherwise.
            **overrides: `GPT2Backbone` arguments in place of the preset's.

        Raises:
            UserError: for an unknown name, or a directory that is not a whole model directory.
        """
        directory = pathlib.Path(preset)
        named = str(preset) in PRESETS and not (load_weights and directory.is_dir())
        from_directory = not named and (directory.is_dir() or len(directory.parts) > 1)
        config = model_directory.read_config(directory) if from_directory else preset_config(str(preset))
        if load_weights and not from_directory:
            raise UserError(
                f"preset {preset!r} is a size without weights here, expected load_weights=False or a model directory"
            )
        if seed is not None:
            keras.utils.set_random_seed(seed)
        if "hidden_dim" in overrides:
            config["intermediate_dim"] = 4 * overrides["hidden_dim"]
        config = {"initializer_range": 0.02, **config, "dtype": dtype, **overrides}
        # Weights that are going to be read need no random numbers first.
        model = cls(GPT2Backbone(**{**config, **({"initializer_range": 0.0} if load_weights else {})}))
        model.backbone.initializer_range = config["initializer_range"]
        if from_directory:
            model.tokenizer = model_directory.read_tokenizer(directory, config["vocabulary_size"])
            if load_weights:
                model_directory.read_weights(model.backbone, directory / model_directory.WEIGHTS)
        return model

    def save_to_preset(self, directory, overwrite=False):
        """Writes a model directory (see DESIGN.md), atomically.

        Raises:
            UserError: if `directory` holds something and `overwrite` is false, or cannot be written.
        """
        with atomic_directory(directory, overwrite=overwrite) as temporary:
            model_directory.write_model_files(self, temporary)

    def get_config(self):
        return {"name": self.name, "backbone": keras.saving.serialize_keras_object(self.backbone)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["backbone"]), name=config["name"])
