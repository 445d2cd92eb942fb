"""What a SavedModel answers to: text and tokens in, text, tokens, probabilities and vectors out.

TensorFlow Serving's rules shape them: a client sends every input that a signature declares; a plain list of instances
needs a signature of one input; a server that batches requests joins them along the first axis, so a setting is a vector
of one value a row, and each row gives what it gives alone.
"""

from __future__ import annotations

import tensorflow as tf

from tfgpt.export.decoder import decoder_inputs, decoder_outputs
from tfgpt.generation.decoding import DECODE_SIGNATURE, decode
from tfgpt.generation.request_checks import (
    require,
    require_rows,
    require_settings,
    require_step,
    require_tokens,
)
from tfgpt.models.gpt2.backbone import positions_from_mask
from tfgpt.text.in_graph_tokenizer import valid_utf8

SERVE_DEFAULT = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
TEXT = tf.TensorSpec([None], tf.string, "text")
TOKENS = {name: DECODE_SIGNATURE[name] for name in ("token_ids", "padding_mask")}
SETTINGS = {
    name: DECODE_SIGNATURE[name]
    for name in ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed")
}


class TokenSignatures:
    """The signatures of token ids, a method each.

    Args:
        model: a `GPT2CausalLM` that computes in float32.
        stop_token_ids: tokens that end a continuation.
    """

    def __init__(self, model, stop_token_ids=()):
        self.model, self.backbone = model, model.backbone
        self.window = model.backbone.max_sequence_length
        self.stop_token_ids = tf.constant(list(stop_token_ids), tf.int32)
        # Functions that the signatures share, so that the model's graph is made and stored twice, not eight times.
        self._read = signature_function(
            self._read_tokens,
            {signature_name(tensor): signature_spec(tensor) for tensor in decoder_inputs(self.backbone)},
        )
        self._decode = signature_function(lambda **inputs: decode(_SharedPrefill(self), **inputs), DECODE_SIGNATURE)

    def functions(self):
        """Name → `tf.function`, the default among them."""
        step_inputs = {signature_name(tensor): signature_spec(tensor) for tensor in decoder_inputs(self.backbone)}
        functions = {
            "generate": signature_function(self.generate, {**TOKENS, **SETTINGS}),
            "continue_tokens": signature_function(self.continue_tokens, DECODE_SIGNATURE),
            "score_tokens": signature_function(self.score_tokens, TOKENS),
            "logits": signature_function(self.logits, {"token_ids": TOKENS["token_ids"]}),
            "prefill": signature_function(self.prefill, TOKENS),
            "decode_step": signature_function(self.decode_step, step_inputs),
        }
        return {SERVE_DEFAULT: functions["logits"], **functions}

    def generate(self, token_ids, padding_mask, **settings):
        """Continues rows of tokens.

        Args:
            token_ids: (B, P) int32, padded on either side.
            padding_mask: (B, P) int32, 1 at tokens.
            **settings: (B,) each: `max_new_tokens` and `top_k` int32, `temperature`, `top_p` and `repetition_penalty`
                float32, `seed` int64 (see `GenerationSettings`).

        Returns:
            `token_ids` (B, N) int32, the new tokens with the stop token, padded with 0, N being the most that a row
            has; `finish_reason` (B,), "stop" at a stop token, "length" at max_new_tokens, "window" where the context
            window is full; `num_prompt_tokens` and `num_new_tokens` (B,) int32.
        """
        token_ids, padding_mask, *values = require_rows(token_ids=token_ids, padding_mask=padding_mask, **settings)
        settings = require_settings(dict(zip(settings, values, strict=True)))
        token_ids, padding_mask = self._tokens(token_ids, padding_mask)
        num_prompt_tokens = tf.reduce_sum(padding_mask, axis=1)
        asked = settings["max_new_tokens"]
        # A prompt of the window's length still has a next token: the last one needs no position.
        settings["max_new_tokens"] = tf.minimum(asked, self.window - num_prompt_tokens + 1)
        rows = tf.shape(token_ids)[0]
        inputs = {
            "token_ids": token_ids,
            "padding_mask": padding_mask,
            "first_index": tf.zeros([rows], tf.int32),
            "stop_token_ids": tf.tile(self.stop_token_ids[None], [rows, 1]),
            **settings,
        }
        outputs = self._decode(*(inputs[name] for name in DECODE_SIGNATURE))
        count = outputs["num_new_tokens"]
        last = tf.gather(outputs["token_ids"], count - 1, batch_dims=1)
        stopped = tf.reduce_any(last[:, None] == self.stop_token_ids, axis=1)
        return {
            "token_ids": outputs["token_ids"][:, : tf.reduce_max(count)],
            "finish_reason": tf.where(stopped, "stop", tf.where(count < asked, "window", "length")),
            "num_prompt_tokens": num_prompt_tokens,
            "num_new_tokens": count,
        }

    def continue_tokens(self, token_ids, padding_mask, stop_token_ids, **settings):
        """`generate` with all that it hides, for runners that cut contexts at the window (`tfgpt.generation.decode`).

        Args:
            token_ids, padding_mask: as in `generate`, but padded on the left.
            stop_token_ids: (B, E) int32.
            **settings: also `first_index` (B,) int32, how many tokens of each row's random stream were drawn before.
                `max_new_tokens` is no more than the window has room for.

        Returns:
            `token_ids` (B, N) int32, padded with 0 up to the largest max_new_tokens, and `num_new_tokens` (B,) int32.
        """
        inputs = {"token_ids": token_ids, "padding_mask": padding_mask, "stop_token_ids": stop_token_ids, **settings}
        inputs = require_settings(dict(zip(inputs, require_rows(**inputs), strict=True)))
        token_ids, padding_mask = self._tokens(inputs["token_ids"], inputs["padding_mask"])
        count, room = inputs["max_new_tokens"], self.window + 1 - tf.reduce_sum(padding_mask, axis=1)
        expected = f"no more than the window of {self.window} has room for"
        inputs |= {
            "token_ids": token_ids,
            "padding_mask": padding_mask,
            "max_new_tokens": require("max_new_tokens", count, count <= room, expected),
        }
        return self._decode(*(inputs[name] for name in DECODE_SIGNATURE))

    def score_tokens(self, token_ids, padding_mask):
        """How likely rows of tokens are.

        Args:
            token_ids, padding_mask: (B, T) int32, padded on either side.

        Returns:
            `log_probabilities` (B, T) float32, of each token after those before it in its row, 0 at the first one, at
            padding, and behind padding within a row; `log_probability` (B,) float32, their sum; `num_scored_tokens`
            (B,) int32. The perplexity of a row is exp(-log_probability / num_scored_tokens).
        """
        token_ids, padding_mask = require_rows(token_ids=token_ids, padding_mask=padding_mask)
        token_ids, padding_mask = self._checked(token_ids, padding_mask)
        widths = tf.fill([tf.shape(token_ids)[0]], tf.shape(token_ids)[1])
        widths = require("the width", widths, widths <= self.window, f"at most {self.window}, the window")
        with tf.control_dependencies([widths]):
            token_ids = tf.identity(token_ids)
        hidden, _ = self.read(token_ids, padding_mask)
        logits, targets = self.model.logits(hidden[:, :-1]), token_ids[:, 1:]
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=targets, logits=logits)
        scored = tf.cast((padding_mask[:, 1:] & padding_mask[:, :-1]) == 1, tf.float32)
        log_probabilities = tf.pad(tf.where(scored > 0, -losses, 0.0), [[0, 0], [1, 0]])
        return {
            "log_probabilities": log_probabilities,
            "log_probability": tf.reduce_sum(log_probabilities, axis=1),
            "num_scored_tokens": tf.cast(tf.reduce_sum(scored, axis=1), tf.int32),
        }

    def logits(self, token_ids):
        """Logits of rows of tokens.

        Args:
            token_ids: (B, T) int32. Rows that are shorter may end in any tokens: what stands behind a token does not
                change its logits.

        Returns:
            `logits` (B, T, V) float32.
        """
        (token_ids,) = require_rows(token_ids=token_ids)
        token_ids, padding_mask = self._checked(token_ids, tf.ones_like(token_ids))
        return {"logits": self.model.logits(self.read(token_ids, padding_mask)[0])}

    def prefill(self, token_ids, padding_mask):
        """Reads prompts: what a client that streams token by token sends first, then `decode_step` for each token.

        Args:
            token_ids, padding_mask: (B, P) int32, padded on either side.

        Returns:
            With P cut to the longest row: `logits` (B, V) float32 after each row's last token; `padding_mask` (B, P)
            and `position_ids` (B, 1) int64, the mask of the cache, to which a client adds a 1 for each token, and the
            place of the next token;
            `present_{i}_key` and `present_{i}_value` (B, H, P, K), the KV cache.
        """
        token_ids, padding_mask = require_rows(token_ids=token_ids, padding_mask=padding_mask)
        token_ids, padding_mask = self._tokens(token_ids, padding_mask)
        hidden, cache = self.read(token_ids, padding_mask)
        return {
            "logits": self.model.logits(hidden[:, -1:])[:, 0],
            "padding_mask": tf.cast(padding_mask, tf.int64),
            "position_ids": tf.reduce_sum(tf.cast(padding_mask, tf.int64), axis=1, keepdims=True),
            **cache,
        }

    def decode_step(self, input_ids, attention_mask, position_ids, **past):
        """One step with the KV cache as inputs and outputs, under the ONNX decoder's names with "_" in place of ".".

        Args:
            input_ids: (B, T) int64, the new tokens.
            attention_mask: (B, S) int64, of the cache and the new tokens.
            position_ids: (B, T) int64.
            **past: `past_key_values_{i}_key` and `past_key_values_{i}_value`, (B, H, S - T, K).

        Returns:
            `logits` (B, T, V) float32, `present_{i}_key` and `present_{i}_value` (B, H, S, K).
        """
        input_ids, attention_mask, position_ids, past = require_step(input_ids, attention_mask, position_ids, past)
        size, window = self.backbone.vocabulary_size, self.window
        input_ids = require("input_ids", input_ids, (input_ids >= 0) & (input_ids < size), f"0 to {size - 1}")
        within = (position_ids >= 0) & (position_ids < window)
        position_ids = require("position_ids", position_ids, within, f"0 to {window - 1}, for the window has {window}")
        outputs = self._read(input_ids, attention_mask, position_ids, *past)
        return {"logits": self.model.logits(outputs.pop("hidden_states")), **outputs}

    def read(self, token_ids, padding_mask):
        """Hidden states (B, T, D) of rows of tokens, and their KV cache as a dictionary of `present_{i}_key|value`."""
        past = tf.nest.flatten(self.backbone.empty_cache(tf.shape(token_ids)[0]))
        inputs = (token_ids, padding_mask, positions_from_mask(padding_mask))
        outputs = self._read(*(tf.cast(tensor, tf.int64) for tensor in inputs), *past)
        return outputs.pop("hidden_states"), outputs

    def _read_tokens(self, input_ids, attention_mask, position_ids, **past):
        """The backbone with a cache that grows: all that is not the decoding loop's step."""
        past = list(past.values())
        hidden, cache = self.backbone(
            {"token_ids": input_ids, "padding_mask": attention_mask},
            cache=list(zip(past[0::2], past[1::2], strict=True)),
            position_ids=position_ids,
            training=False,
        )
        names = [signature_name(tensor) for tensor in decoder_outputs(self.backbone)[1:]]
        return {"hidden_states": hidden, **dict(zip(names, tf.nest.flatten(cache), strict=True))}

    def _checked(self, token_ids, padding_mask):
        return require_tokens(token_ids, padding_mask, self.backbone.vocabulary_size, self.window)

    def _tokens(self, token_ids, padding_mask):
        token_ids, padding_mask = pad_rows_left(*self._checked(token_ids, padding_mask))
        longest = tf.reduce_max(tf.reduce_sum(padding_mask, axis=1))
        return token_ids[:, -longest:], padding_mask[:, -longest:]  # padding that every row has only costs time


class TextSignatures(TokenSignatures):
    """Those of tokens, and of text: the tokenizer is in the graph.

    Args:
        model: a `GPT2CausalLM` that computes in float32.
        tokenizer: of `tfgpt.text.in_graph_tokenizer`.
        settings: `GenerationSettings` with their stop tokens, what the default signature generates with.
        end_token_id: what an empty prompt begins with; None without such a token.
    """

    def __init__(self, model, tokenizer, settings, end_token_id=None):
        super().__init__(model, settings.stop_token_ids)
        self.tokenizer, self.settings, self.end_token_id = tokenizer, settings, end_token_id
        self._encode = signature_function(self._encode_text, {"text": TEXT})

    def functions(self):
        return {
            **super().functions(),
            SERVE_DEFAULT: signature_function(self.complete, {"text": TEXT}),
            "generate_text": signature_function(self.generate_text, {"text": TEXT, **SETTINGS}),
            "score": signature_function(self.score, {"text": TEXT}),
            "embed": signature_function(self.embed, {"text": TEXT}),
        }

    def complete(self, text):
        """`generate_text` with the settings that were baked in.

        Args:
            text: (B,) string.

        Returns:
            `text` (B,) string, each prompt and its continuation.
        """
        rows = tf.shape(text)[0]
        settings = {
            name: tf.fill([rows], tf.constant(getattr(self.settings, name), spec.dtype))
            for name, spec in SETTINGS.items()
        }
        return {"text": self.generate_text(text, **settings)["text"]}

    def generate_text(self, text, **settings):
        """Continues texts.

        Args:
            text: (B,) string, UTF-8; what is not is read as U+FFFD.
            **settings: as in `generate`.

        Returns:
            What `generate` does, and (B,) strings: `new_text`, the continuation without its stop token, always valid
            UTF-8; `new_text_bytes`, its exact bytes, which may end within a character; `text`, prompt and continuation.
        """
        text, *values = require_rows(text=text, **settings)
        outputs = self.generate(*self._encode(text), **dict(zip(settings, values, strict=True)))
        stopped = tf.cast(outputs["finish_reason"] == "stop", tf.int32)
        new = tf.RaggedTensor.from_tensor(outputs["token_ids"], lengths=outputs["num_new_tokens"] - stopped)
        # A padded model may give an id that no token has: it is no text.
        known = tf.ragged.boolean_mask(new, new < self.tokenizer.vocabulary_size)
        new_bytes = self.tokenizer.decode(known)
        new_text = valid_utf8(new_bytes)
        texts = {
            "text": tf.strings.join([valid_utf8(text), new_text]),
            "new_text": new_text,
            "new_text_bytes": new_bytes,
        }
        return {**texts, **outputs}

    def score(self, text):
        """How likely texts are: `score_tokens` of their tokens, and the tokens as `token_ids` (B, T) int32, padded
        with 0 on the right, `num_tokens` (B,) int32 of them in each row.

        Args:
            text: (B,) string.
        """
        (text,) = require_rows(text=text)
        token_ids, padding_mask = self._encode(text)
        return {
            "token_ids": token_ids,
            "num_tokens": tf.reduce_sum(padding_mask, axis=1),
            **self.score_tokens(token_ids, padding_mask),
        }

    def embed(self, text):
        """Vectors of texts, after the last normalization.

        Args:
            text: (B,) string.

        Returns:
            `mean_pooled` (B, D) float32, the mean over a row's tokens; `last_hidden_state` (B, T, D) float32, 0 at
            padding, which is on the right; `num_tokens` (B,) int32.
        """
        (text,) = require_rows(text=text)
        token_ids, padding_mask = self._checked(*self._encode(text))
        hidden, _ = self.read(token_ids, padding_mask)
        hidden = tf.where(padding_mask[:, :, None] == 1, hidden, 0.0)
        num_tokens = tf.reduce_sum(padding_mask, axis=1)
        return {
            "mean_pooled": tf.reduce_sum(hidden, axis=1) / tf.cast(num_tokens, tf.float32)[:, None],
            "last_hidden_state": hidden,
            "num_tokens": num_tokens,
        }

    def _encode_text(self, text):
        """Token ids and mask (B, T), padded on the right; an empty text is the end of another, where there is such."""
        tokens = self.tokenizer.encode(text)
        if self.end_token_id is not None:
            ends = tf.fill([tf.shape(text)[0], 1], self.end_token_id)
            empty = (tokens.row_lengths() == 0)[:, None]
            tokens = tf.concat([tf.ragged.boolean_mask(ends, empty), tokens], axis=1)
        token_ids = tokens.to_tensor()
        return token_ids, tf.sequence_mask(tokens.row_lengths(), tf.shape(token_ids)[1], tf.int32)


class _SharedPrefill:
    """A model for `decode` that reads its prompts by the function that all signatures share."""

    def __init__(self, signatures):
        self.signatures, self.model, self.backbone = signatures, signatures.model, signatures.backbone

    def call_with_cache(self, token_ids, padding_mask, cache, position_ids, cache_index=None, last_only=False):
        if cache_index is not None:
            return self.model.call_with_cache(token_ids, padding_mask, cache, position_ids, cache_index, last_only)
        hidden, cache = self.signatures.read(token_ids, padding_mask)
        names = [signature_name(tensor) for tensor in decoder_outputs(self.backbone)[1:]]
        cache = [cache[name] for name in names]
        return self.model.logits(hidden[:, -1:]), list(zip(cache[0::2], cache[1::2], strict=True))


def pad_rows_left(token_ids, padding_mask):
    """The same rows with all padding on the left: (B, P) both."""
    order = tf.argsort(padding_mask, axis=1, stable=True)
    return tf.gather(token_ids, order, batch_dims=1), tf.gather(padding_mask, order, batch_dims=1)


def signature_function(method, inputs):
    """A `tf.function` that takes tensors in the order of `inputs`, name → `tf.TensorSpec`."""

    @tf.function(input_signature=list(inputs.values()), autograph=False)
    def function(*tensors):
        return method(**dict(zip(inputs, tensors, strict=True)))

    return function


def signature_name(tensor):
    """The name that a `TensorDescription` has in a SavedModel."""
    return tensor.name.replace(".", "_")


def signature_spec(tensor):
    """The `tf.TensorSpec` of a `TensorDescription`."""
    shape = [axis if isinstance(axis, int) else None for axis in tensor.axes]
    return tf.TensorSpec(shape, tensor.dtype, signature_name(tensor))
