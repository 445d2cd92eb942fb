import pathlib

import keras
from keras import ops

from tfgpt.atomic import atomic_directory
from tfgpt.errors import UserError
from tfgpt.layers.observation import observe
from tfgpt.models.encoder_decoder import model_directory
from tfgpt.models.encoder_decoder.backbone import EncoderDecoderBackbone
from tfgpt.models.encoder_decoder.presets import ENCODER_DECODER_PRESETS, encoder_decoder_preset_config
from tfgpt.models.gpt2.model_directory import WEIGHTS
from tfgpt.models.views import TranslationAttention, attention_view, encode_view, logit_lens, token_texts


@keras.saving.register_keras_serializable(package="tfgpt")
class EncoderDecoderTransformer(keras.Model):
    """The original Transformer (Vaswani et al. 2017): the backbone, and its target embedding as output projection.

    An ordinary Keras model: `compile`, `fit` on `({"source_ids", "source_padding_mask", "target_ids"}, next_ids)`,
    `evaluate`, `predict`, `save("x.keras")`; `save_to_preset(directory)` writes a model directory.

    Args:
        backbone: an `EncoderDecoderBackbone`.
        tokenizer: what turns text of both languages into token ids (see `tfgpt.text.train_joint_tokenizer`), kept
            beside the model for `translate` and `save_to_preset`; None for a model of token ids.

    Call arguments:
        inputs: a dictionary, as of the backbone: `source_ids` (B, S), `target_ids` (B, T), and `source_padding_mask`
            (B, S) where sources are padded.

    Returns:
        Logits (B, T, V) of the tokens that follow each target token, float32 under every dtype policy.

    Example:

    >>> model = EncoderDecoderTransformer.from_preset("transformer-test", load_weights=False, seed=0)
    >>> model.count_params()
    52480
    >>> model({"source_ids": ops.array([[5, 6, 7]]), "target_ids": ops.array([[1, 8]])}).shape
    TensorShape([1, 2, 300])
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
        """Projects the decoder's hidden states (..., D) onto the vocabulary: logits (..., V)."""
        # float32 whatever the policy: losses, samplers and parity compare logits of different runtimes.
        return ops.cast(self.backbone.target_embedding(hidden_states, reverse=True), "float32")

    def encode(self, source_ids, source_padding_mask=None):
        """The encoder's output for sources (B, S): memory (B, S, D)."""
        return self.backbone.encode(source_ids, source_padding_mask, training=False)

    def memory_cache(self, memory):
        """The cache of cross-attention (see `EncoderDecoderBackbone.memory_cache`)."""
        return self.backbone.memory_cache(memory)

    def call_with_cache(self, target_ids, memory_cache, source_padding_mask, cache, cache_index=None, last_only=False):
        """One step of decoding: the logits of new tokens, given the caches.

        Args:
            target_ids: the new tokens (B, T).
            memory_cache: of cross-attention, from `memory_cache`.
            source_padding_mask: (B, S), or None where no source is padded.
            cache: of self-attention, from `backbone.empty_cache` or a previous step.
            cache_index: the slot of the first new token in a preallocated cache; None grows the cache.
            last_only: compute logits for the last position alone, (B, 1, V).

        Returns:
            Logits (B, T, V) and the new cache.
        """
        x, cache = self.backbone.decode(
            target_ids,
            source_padding_mask=source_padding_mask,
            memory_cache=memory_cache,
            cache=cache,
            cache_index=cache_index,
            training=False,
        )
        return self.logits(x[:, -1:] if last_only else x), cache

    def score(self, source_ids, target_ids, source_padding_mask=None, target_padding_mask=None):
        """The log-probability of each target, in one pass without a cache.

        Args:
            source_ids: (B, S).
            target_ids: (B, T), which begin with the token that every target begins with; it counts for nothing.
            source_padding_mask: (B, S), or None where no source is padded.
            target_padding_mask: (B, T), or None; tokens that are padding count for nothing.

        Returns:
            Sums of the tokens' log-probabilities (B,), float32.
        """
        inputs = {"source_ids": source_ids, "target_ids": target_ids[:, :-1]}
        if source_padding_mask is not None:
            inputs["source_padding_mask"] = source_padding_mask
        log_probabilities = ops.log_softmax(self(inputs, training=False), axis=-1)
        chosen = ops.take_along_axis(log_probabilities, ops.cast(target_ids, "int32")[:, 1:, None], axis=2)[..., 0]
        if target_padding_mask is not None:
            chosen = chosen * ops.cast(target_padding_mask, chosen.dtype)[:, 1:]
        return ops.sum(chosen, axis=1)

    def translate(self, texts, **settings):
        """Translates texts: see `tfgpt.generation.translate`, to which every argument goes."""
        # An import up the table of rooms (DESIGN.md): users expect the method on the model.
        from tfgpt.generation import translate

        return translate(self, texts, **settings)

    def attention(self, source, target):
        """Where the tokens of a translation pair look, in every layer and head: a `TranslationAttention`.

        Args:
            source, target: strings, which get the tokens that begin and end sentences in training; or lists of token
                ids, as the model takes them.

        Raises:
            UserError: if one has no tokens, or more than the window.

        Example:

        >>> model = EncoderDecoderTransformer.from_preset("transformer-test", load_weights=False, seed=0)
        >>> model.attention([5, 6, 7], [1, 8]).cross.weights.shape
        (2, 2, 2, 3)
        """
        sources, targets, shown = self._observe(source, target)
        encoder, decoder = self.backbone.encoder_blocks, self.backbone.decoder_blocks
        return TranslationAttention(
            encoder=attention_view(shown, [block.attention for block in encoder], sources, sources),
            decoder=attention_view(shown, [block.attention for block in decoder], targets, targets),
            cross=attention_view(shown, [block.memory_attention for block in decoder], targets, sources),
        )

    def logit_lens(self, source, target, top_k=5):
        """The likeliest next tokens after each decoder layer of each token of a target: a `LogitLens`.

        Args:
            source, target: as in `attention`.
            top_k: how many tokens.
        """
        _, targets, shown = self._observe(source, target)
        norm = self.backbone.decoder_norm

        def logits(states):
            return self.logits(states if norm is None else norm(states))

        return logit_lens(shown, self.backbone.decoder_blocks, logits, targets, self.tokenizer, top_k)

    def _observe(self, source, target):
        """A pair's tokens, and what the layers show as they read it."""
        bos_token_id, eos_token_id = (getattr(self.tokenizer, f"{end}_token_id", None) for end in ("bos", "eos"))
        source_ids = encode_view(self, "source", source, last=[eos_token_id])
        target_ids = encode_view(self, "target", target, first=[bos_token_id])
        inputs = {"source_ids": ops.array([source_ids], "int32"), "target_ids": ops.array([target_ids], "int32")}
        with observe() as shown:
            self.backbone(inputs, training=False)
        return token_texts(self.tokenizer, source_ids), token_texts(self.tokenizer, target_ids), shown

    @classmethod
    def from_preset(cls, preset, load_weights=True, seed=None, dtype=None, **overrides):
        """A model from a model directory, or a randomly initialized one of a named size.

        Args:
            preset: a model directory, or a name such as "transformer-tiny" (`tfgpt.models.ENCODER_DECODER_PRESETS`).
            load_weights: read the directory's weights; names have none here, so they need False.
            seed: of the random initialization; it seeds Keras' global generators.
            dtype: a dtype or policy of the computation; weights are float32 unless it says otherwise.
            **overrides: `EncoderDecoderBackbone` arguments in place of the preset's.

        Raises:
            UserError: for an unknown name, or a directory that is not a whole model directory.
        """
        directory = pathlib.Path(preset)
        named = str(preset) in ENCODER_DECODER_PRESETS and not (load_weights and directory.is_dir())
        from_directory = not named and (directory.is_dir() or len(directory.parts) > 1)
        if load_weights and not from_directory:
            encoder_decoder_preset_config(str(preset))
            raise UserError(
                f"preset {preset!r} is a size without weights here, expected load_weights=False or a model directory"
            )
        read = model_directory.read_config if from_directory else encoder_decoder_preset_config
        config = {**read(directory if from_directory else str(preset)), "dtype": dtype, **overrides}
        if seed is not None:
            keras.utils.set_random_seed(seed)
        model = cls(EncoderDecoderBackbone(**config))
        if from_directory:
            model_directory.read_tokenizer(model, directory)
            if load_weights:
                model_directory.read_weights(model.backbone, directory / WEIGHTS)
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
