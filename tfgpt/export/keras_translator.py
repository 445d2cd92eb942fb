"""The Keras translation model itself behind the translators' interface: what every artifact is compared with."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfgpt.generation import translate_token_ids
from tfgpt.models.encoder_decoder.model_directory import to_config
from tfgpt.runtime.translator import Translator


class KerasTranslator(Translator):
    """Runs an `EncoderDecoderTransformer` with a tokenizer."""

    name = "keras"

    def __init__(self, model):
        super().__init__(to_config(model.backbone, model.tokenizer))
        self.model = model
        self._logits = tf.function(model, autograph=False, reduce_retracing=True)

    def logits(self, source_ids, source_padding_mask, target_ids):
        inputs = {
            "source_ids": tf.constant(source_ids, tf.int32),
            "source_padding_mask": tf.constant(source_padding_mask, tf.int32),
            "target_ids": tf.constant(target_ids, tf.int32),
        }
        return self._logits(inputs).numpy()

    def translate_token_ids(self, sources, max_new_tokens=None, **settings):
        return translate_token_ids(
            self.model, sources, self.bos_token_id, self.eos_token_id, max_new_tokens, **settings
        )

    def score(self, source, tokens, length_penalty):
        """log-probability / length ** length_penalty of one translation."""
        targets = np.array([[self.bos_token_id, *tokens]])
        log_probability = float(self.model.score(np.array([source]), targets)[0])
        return log_probability / len(tokens) ** length_penalty
