"""What a translation model's SavedModel answers to: text in, text out, by the rules of `tfgpt.export.signatures`."""

from __future__ import annotations

import tensorflow as tf

from tfgpt.export.encoder_decoder_steps import DecoderWithPastStep, split_past
from tfgpt.export.signatures import SERVE_DEFAULT, TEXT, signature_function, signature_name, signature_spec
from tfgpt.generation import translate_by_beam_search, translate_greedily
from tfgpt.generation.request_checks import require, require_rows, require_tokens
from tfgpt.text.in_graph_normalization import strip
from tfgpt.text.in_graph_tokenizer import valid_utf8
from tfgpt.translation_sources import WIDTH_MULTIPLE

TARGET = tf.TensorSpec([None], tf.string, "target")
SOURCES = {name: tf.TensorSpec([None, None], tf.int32, name) for name in ("source_ids", "source_padding_mask")}
TARGET_IDS = tf.TensorSpec([None, None], tf.int32, "target_ids")
SETTINGS = {
    "num_beams": tf.TensorSpec([None], tf.int32, "num_beams"),
    "length_penalty": tf.TensorSpec([None], tf.float32, "length_penalty"),
    "max_new_tokens": tf.TensorSpec([None], tf.int32, "max_new_tokens"),
}


class TranslationSignatures:
    """The signatures, a method each.

    Args:
        model: an `EncoderDecoderTransformer` that computes in float32, with a tokenizer.
        tokenizer: of `tfgpt.text.in_graph_tokenizer`.
        settings: what the default signature translates with (`tfgpt.runtime.translator.default_settings`).
    """

    def __init__(self, model, tokenizer, settings):
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.window, self.vocabulary_size = model.backbone.max_sequence_length, model.backbone.vocabulary_size
        self.bos_token_id, self.eos_token_id = model.tokenizer.bos_token_id, model.tokenizer.eos_token_id
        # Functions that the signatures share, so that graphs are made and stored once.
        self._encode_text = signature_function(self._text_to_ids, {"text": TEXT})
        self._read = signature_function(
            lambda source_ids, source_padding_mask: model.encode(source_ids, source_padding_mask), SOURCES
        )
        self._translate = signature_function(self._translate_rows, {**SOURCES, **SETTINGS})
        self._score = signature_function(self._logits_of_targets, {**SOURCES, "target_ids": TARGET_IDS})
        self._step = DecoderWithPastStep(model)

    def functions(self):
        """Name → `tf.function`, the default among them."""
        step_inputs = {signature_name(tensor): signature_spec(tensor) for tensor in self._step.inputs}
        return {
            SERVE_DEFAULT: signature_function(self.serve, {"text": TEXT}),
            "translate": signature_function(self.translate, {"text": TEXT, **SETTINGS}),
            "translate_tokens": signature_function(self.translate_tokens, {**SOURCES, **SETTINGS}),
            "score": signature_function(self.score, {"text": TEXT, "target": TARGET}),
            "logits": signature_function(self.logits, {**SOURCES, "target_ids": TARGET_IDS}),
            "encode": signature_function(self.encode, SOURCES),
            "decode_step": signature_function(self.decode_step, step_inputs),
        }

    def serve(self, text):
        """`translate` with the settings that were baked in.

        Args:
            text: (B,) string.

        Returns:
            `text` (B,) string, the translations.
        """
        rows = tf.shape(text)[0]
        values = {**self.settings, "max_new_tokens": self.settings["max_new_tokens"] or 0}
        settings = {name: tf.fill([rows], tf.constant(values[name], spec.dtype)) for name, spec in SETTINGS.items()}
        return {"text": self.translate(text, **settings)["text"]}

    def translate(self, text, **settings):
        """Translates texts.

        Args:
            text: (B,) string, UTF-8; what is not is read as U+FFFD. White space around it does not count.
            **settings: (B,) each: `num_beams` int32, 1 for the likeliest token at each step, or the width of the beam
                that was exported; `length_penalty` float32, of beam search; `max_new_tokens` int32, 0 for twice the
                source's tokens and 16, in any case within the window.

        Returns:
            What `translate_tokens` does, and `text` (B,) string, valid UTF-8.
        """
        text, *values = require_rows(text=text, **settings)
        outputs = self.translate_tokens(*self._encode_text(text), **dict(zip(settings, values, strict=True)))
        new = tf.RaggedTensor.from_tensor(outputs["token_ids"], lengths=outputs["num_new_tokens"])
        # A padded model may give an id that no token has: it is no text.
        known = tf.ragged.boolean_mask(new, new < self.tokenizer.vocabulary_size)
        new_text = strip(valid_utf8(self.tokenizer.decode(known, skip_special_tokens=True)))
        return {"text": new_text, **outputs}

    def translate_tokens(self, source_ids, source_padding_mask, **settings):
        """Translates rows of tokens.

        Args:
            source_ids: (B, S) int32, each row with its end-of-sentence token.
            source_padding_mask: (B, S) int32, 1 at tokens; padding may stand on either side.
            **settings: as in `translate`.

        Returns:
            `token_ids` (B, N) int32, the translations with their end, padded with 0, N being the most that a row has;
            `num_new_tokens` and `num_source_tokens` (B,) int32; `scores` (B,) float32, log-probability / length **
            length_penalty; `finish_reason` (B,), "stop" at the end of the sentence, "length" at the limit.
        """
        source_ids, source_padding_mask, *values = require_rows(
            source_ids=source_ids, source_padding_mask=source_padding_mask, **settings
        )
        source_ids, source_padding_mask = self._sources(source_ids, source_padding_mask)
        settings = self._require_settings(**dict(zip(settings, values, strict=True)))
        lengths = tf.reduce_sum(source_padding_mask, axis=1)
        widths = tf.minimum(-(-lengths // WIDTH_MULTIPLE) * WIDTH_MULTIPLE, self.window)
        limits = tf.minimum(2 * widths + 16, self.window)  # `default_max_new_tokens`
        limits = tf.where(settings["max_new_tokens"] > 0, settings["max_new_tokens"], limits)
        outputs = self._translate(
            source_ids, source_padding_mask, settings["num_beams"], settings["length_penalty"], limits
        )
        count = outputs["num_new_tokens"]
        last = tf.gather(outputs["token_ids"], count - 1, batch_dims=1)
        return {
            "token_ids": outputs["token_ids"][:, : tf.reduce_max(count)],
            "num_new_tokens": count,
            "num_source_tokens": lengths,
            "scores": outputs["score"],
            "finish_reason": tf.where(last == self.eos_token_id, "stop", "length"),
        }

    def score(self, text, target):
        """How likely translations are.

        Args:
            text: (B,) string, the sources.
            target: (B,) string, a translation each, which may be empty.

        Returns:
            `token_ids` (B, T) int32, the targets' tokens with their end, padded with 0; `num_tokens` (B,) int32 of
            them; `log_probabilities` (B, T) float32, of each after those before it, 0 at padding; `log_probability`
            (B,) float32, their sum.
        """
        text, target = require_rows(text=text, target=target)
        sources = self._sources(*self._encode_text(text))
        token_ids, mask = self._encode_text_or_nothing(target)
        counts = tf.reduce_sum(mask, axis=1)
        counts = require(
            "the number of the target's tokens", counts, counts <= self.window, f"at most {self.window}, the window"
        )
        with tf.control_dependencies([counts]):
            token_ids = tf.identity(token_ids)
        log_probabilities = self._log_probabilities(*sources, token_ids, mask)
        return {
            "token_ids": token_ids,
            "num_tokens": counts,
            "log_probabilities": log_probabilities,
            "log_probability": tf.reduce_sum(log_probabilities, axis=1),
        }

    def logits(self, source_ids, source_padding_mask, target_ids):
        """Logits of rows of tokens.

        Args:
            source_ids, source_padding_mask: as in `translate_tokens`.
            target_ids: (B, T) int32, each row from the beginning-of-sentence token on; rows that are shorter may end
                in any tokens.

        Returns:
            `logits` (B, T, V) float32.
        """
        source_ids, source_padding_mask, target_ids = require_rows(
            source_ids=source_ids, source_padding_mask=source_padding_mask, target_ids=target_ids
        )
        sources = self._sources(source_ids, source_padding_mask)
        target_ids, _ = require_tokens(target_ids, tf.ones_like(target_ids), self.vocabulary_size, self.window)
        return {"logits": self._score(*sources, target_ids)}

    def encode(self, source_ids, source_padding_mask):
        """Reads sources: what a client that decodes by itself sends first, then `decode_step` for each token.

        Args:
            source_ids, source_padding_mask: as in `translate_tokens`.

        Returns:
            `last_hidden_state` (B, S, D), `encoder_attention_mask` (B, S) int64 and `present_{i}_encoder_key|value`
            (B, H, S, K), the cache of cross-attention; padding is on the right.
        """
        source_ids, source_padding_mask = require_rows(source_ids=source_ids, source_padding_mask=source_padding_mask)
        source_ids, source_padding_mask = self._sources(source_ids, source_padding_mask)
        memory = self._read(source_ids, source_padding_mask)
        pairs = enumerate(self.model.memory_cache(memory))
        cache = {
            f"present_{i}_encoder_{part}": tensor
            for i, pair in pairs
            for part, tensor in zip(("key", "value"), pair, strict=True)
        }
        mask = tf.cast(source_padding_mask, tf.int64)
        return {"last_hidden_state": memory, "encoder_attention_mask": mask, **cache}

    def decode_step(self, encoder_attention_mask, input_ids, **past):
        """One step with the caches as inputs and outputs, under the names of ONNX's `decoder_with_past_model` with "_"
        in place of ".". The first step's cache of self-attention has no slots.

        Args:
            encoder_attention_mask: (B, S) int64.
            input_ids: (B, T) int64, the new tokens; the first is the beginning of the sentence.
            **past: `past_key_values_{i}_decoder_key|value` (B, H, P, K) and `past_key_values_{i}_encoder_key|value`
                (B, H, S, K).

        Returns:
            `logits` (B, T, V) float32 and `present_{i}_decoder_key|value` (B, H, P + T, K).
        """
        inputs = require_rows(encoder_attention_mask=encoder_attention_mask, input_ids=input_ids, **past)
        encoder_attention_mask, input_ids, *past = inputs
        size, window = self.vocabulary_size, self.window
        input_ids = require("input_ids", input_ids, (input_ids >= 0) & (input_ids < size), f"0 to {size - 1}")
        cache, memory_cache = split_past(past)
        slots = tf.fill([tf.shape(input_ids)[0]], tf.shape(cache[0][0])[2] + tf.shape(input_ids)[1])
        slots = require("the number of tokens", slots, slots <= window, f"at most {window}, the window")
        widths = tf.fill(tf.shape(slots), tf.shape(memory_cache[0][0])[2])
        as_many = widths == tf.shape(encoder_attention_mask)[1]
        widths = require("the cache's source tokens", widths, as_many, "as many as encoder_attention_mask has columns")
        with tf.control_dependencies([slots, widths]):
            outputs = self._step(tf.identity(encoder_attention_mask), input_ids, *past)
        names = [signature_name(tensor) for tensor in self._step.outputs]
        return dict(zip(names, outputs, strict=True))

    # === What they share ===

    def _text_to_ids(self, text):
        """Token ids and mask (B, S) of sentences, their end included, padded on the right."""
        token_ids, mask = self._encode_text_or_nothing(text)
        lengths = tf.reduce_sum(mask, axis=1)
        lengths = require("the number of tokens with the end", lengths, lengths > 1, "at least 2: a sentence")
        window = self.window
        fits = lengths <= window
        lengths = require("the number of tokens with the end", lengths, fits, f"at most {window}, the window")
        with tf.control_dependencies([lengths]):
            return tf.identity(token_ids), mask

    def _encode_text_or_nothing(self, text):
        tokens = self.tokenizer.encode(strip(valid_utf8(text)))
        ends = tf.fill([tf.shape(text)[0], 1], self.eos_token_id)
        tokens = tf.concat([tokens, ends], axis=1)
        token_ids = tokens.to_tensor()
        return token_ids, tf.sequence_mask(tokens.row_lengths(), tf.shape(token_ids)[1], tf.int32)

    def _sources(self, source_ids, source_padding_mask):
        """Checked, with all padding on the right, and no more of it than the longest row needs."""
        source_ids, mask = require_tokens(source_ids, source_padding_mask, self.vocabulary_size, self.window)
        order = tf.argsort(mask, axis=1, direction="DESCENDING", stable=True)
        longest = tf.reduce_max(tf.reduce_sum(mask, axis=1))
        return (tf.gather(x, order, batch_dims=1)[:, :longest] for x in (source_ids, mask))

    def _require_settings(self, num_beams, length_penalty, max_new_tokens):
        width, window = self.settings["num_beams"], self.window
        expected = f"1 or {width}, the beam that was exported" if width > 1 else "1, for no beam was exported"
        within = (max_new_tokens >= 0) & (max_new_tokens <= window)
        return {
            "num_beams": require("num_beams", num_beams, (num_beams == 1) | (num_beams == width), expected),
            "length_penalty": require(
                "length_penalty", length_penalty, tf.math.is_finite(length_penalty), "a finite number"
            ),
            "max_new_tokens": require("max_new_tokens", max_new_tokens, within, f"0 to {window}, the window"),
        }

    def _translate_rows(self, source_ids, source_padding_mask, num_beams, length_penalty, max_new_tokens):
        """Rows of one beam are translated together, and the others: each as it would be alone."""
        arguments = (source_ids, source_padding_mask, length_penalty, max_new_tokens)
        rows, steps = tf.shape(source_ids)[0], tf.reduce_max(max_new_tokens)
        empty = (tf.zeros([rows, steps], tf.int32), tf.zeros([rows], tf.int32), tf.zeros([rows]))

        def translate_some(chosen, method, results):
            def run():
                places = tf.where(chosen)
                found = method(*(tf.gather_nd(x, places) for x in arguments))
                tokens = tf.pad(found[0], [[0, 0], [0, steps - tf.shape(found[0])[1]]])
                return tuple(
                    tf.tensor_scatter_nd_update(result, places, new)
                    for result, new in zip(results, (tokens, *found[1:]), strict=True)
                )

            return tf.cond(tf.reduce_any(chosen), run, lambda: results)

        results = translate_some(num_beams == 1, self._greedily, empty)
        if self.settings["num_beams"] > 1:
            results = translate_some(num_beams > 1, self._by_beam_search, results)
        return dict(zip(("token_ids", "num_new_tokens", "score"), results, strict=True))

    def _greedily(self, source_ids, source_padding_mask, length_penalty, max_new_tokens):
        sources = (source_ids, source_padding_mask)
        outputs = translate_greedily(
            _SharedEncoder(self), *sources, self.bos_token_id, self.eos_token_id, max_new_tokens
        )
        token_ids, counts = outputs["token_ids"], outputs["num_new_tokens"]
        mask = tf.sequence_mask(counts, tf.shape(token_ids)[1], tf.int32)
        log_probability = tf.reduce_sum(self._log_probabilities(*sources, token_ids, mask), axis=1)
        return token_ids, counts, log_probability / tf.cast(counts, tf.float32) ** length_penalty

    def _by_beam_search(self, source_ids, source_padding_mask, length_penalty, max_new_tokens):
        arguments = (source_ids, source_padding_mask, self.bos_token_id, self.eos_token_id, max_new_tokens)
        outputs = translate_by_beam_search(_SharedEncoder(self), *arguments, self.settings["num_beams"], length_penalty)
        return outputs["token_ids"], outputs["num_new_tokens"], outputs["score"]

    def _log_probabilities(self, source_ids, source_padding_mask, token_ids, mask):
        """Of each token (B, T) of targets without their beginning, after those before; 0 where the mask is."""
        begins = tf.fill([tf.shape(token_ids)[0], 1], self.bos_token_id)
        logits = self._score(source_ids, source_padding_mask, tf.concat([begins, token_ids[:, :-1]], axis=1))
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=token_ids, logits=logits)
        return tf.where(mask == 1, -losses, 0.0)

    def _logits_of_targets(self, source_ids, source_padding_mask, target_ids):
        memory = self._read(source_ids, source_padding_mask)
        hidden = self.model.backbone.decode(target_ids, memory, source_padding_mask, training=False)
        return self.model.logits(hidden)


class _SharedEncoder:
    """The model for decoding loops, which read their sources by the function that all signatures share."""

    def __init__(self, signatures):
        self.encode, self._model = signatures._read, signatures.model

    def __getattr__(self, name):
        return getattr(self._model, name)
