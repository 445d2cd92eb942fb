"""A release's SavedModel, loaded as TensorFlow Serving loads it: signatures, and nothing of Keras."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import tensorflow as tf

from tfgpt.classification import BATCH_SIZE, encode_texts
from tfgpt.context_window import pad_left
from tfgpt.errors import UserError
from tfgpt.generation_settings import GenerationSettings
from tfgpt.runtime.classifier_runner import ClassifierRunner
from tfgpt.runtime.release_files import read_release_config
from tfgpt.runtime.runner import Runner
from tfgpt.runtime.translator import Translator


class SavedModelClassifier(ClassifierRunner):
    """Runs the newest version of a classifier: text by its own tokenizer, in the graph.

    Args:
        release: the release directory.

    Raises:
        UserError: if there is no SavedModel, or TensorFlow cannot load it.
    """

    name = "saved_model"

    def __init__(self, release):
        super().__init__(read_release_config(release, sizes=()), pathlib.Path(release) / "config.json")
        self.path, self._module = load_newest(release)
        self.signatures = self._module.signatures

    def logits(self, token_ids, padding_mask):
        outputs = self.signatures["tokens"](
            token_ids=tf.constant(token_ids, tf.int32), padding_mask=tf.constant(padding_mask, tf.int32)
        )
        return outputs["logits"].numpy()

    def probabilities(self, tokenizer, texts, truncate=False):
        if truncate or "classify" not in self.signatures:  # the graph refuses texts that are longer than the window
            return super().probabilities(tokenizer, texts, truncate)
        encode_texts(tokenizer, texts, self.window)  # for its checks, which name the text
        found = []
        for start in range(0, len(texts), BATCH_SIZE):
            outputs = self.signatures["serving_default"](text=tf.constant(texts[start : start + BATCH_SIZE]))
            found.append(outputs["probabilities"].numpy())
        return np.concatenate(found)

    def scores_of_examples(self, texts):
        """What the Classify signature gives for texts in `tf.train.Example`s: classes (N, C) bytes, scores (N, C)."""
        examples = [
            tf.train.Example(
                features=tf.train.Features(
                    feature={"text": tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode("utf-8")]))}
                )
            ).SerializeToString()
            for text in texts
        ]
        outputs = self.signatures["classify"](inputs=tf.constant(examples))
        return outputs["classes"].numpy(), outputs["scores"].numpy()


class SavedModelRunner(Runner):
    """Runs the newest version under `saved_model/NAME/` of a release directory.

    Args:
        release: the release directory.

    Raises:
        UserError: if there is no SavedModel, or TensorFlow cannot load it.
    """

    name = "saved_model"

    def __init__(self, release):
        super().__init__(read_release_config(release))
        self.path, self._module = load_newest(release)  # kept: signatures do not keep their variables alive
        self.signatures = self._module.signatures
        parts = [f"{i}_{part}" for i in range(self.num_layers) for part in ("key", "value")]
        self.past_names = [f"past_key_values_{part}" for part in parts]
        self.present_names = [f"present_{part}" for part in parts]

    def step(self, token_ids, padding_mask, position_ids, cache):
        outputs = self.signatures["decode_step"](
            input_ids=tf.constant(token_ids, tf.int64),
            attention_mask=tf.constant(padding_mask, tf.int64),
            position_ids=tf.constant(position_ids, tf.int64),
            **{name: tf.constant(tensor) for name, tensor in zip(self.past_names, cache, strict=True)},
        )
        return outputs["logits"].numpy(), [outputs[name].numpy() for name in self.present_names]

    def logits(self, token_ids, padding_mask):
        self.check(token_ids)
        # The signature knows no padding: tokens to the front, where what stands behind them changes nothing.
        order = np.argsort(np.asarray(padding_mask) == 0, axis=1, kind="stable")
        outputs = self.signatures["logits"](
            token_ids=tf.constant(np.take_along_axis(np.asarray(token_ids), order, axis=1), tf.int32)
        )
        return np.take_along_axis(outputs["logits"].numpy(), np.argsort(order, axis=1)[:, :, None], axis=1)

    def complete(self, texts, max_new_tokens):
        """Greedy continuations by `generate_text`: a dictionary a text, of what the signature gives.

        Args:
            texts: strings.
            max_new_tokens: of each; a row ends earlier at a stop token or at the window's end.
        """
        rows = len(texts)
        outputs = self.signatures["generate_text"](
            text=tf.constant(texts), **self._settings(rows, GenerationSettings(max_new_tokens=max_new_tokens))
        )
        outputs = {name: tensor.numpy() for name, tensor in outputs.items()}
        rows = [{name: values[row] for name, values in outputs.items()} for row in range(rows)]
        for row in rows:
            row["token_ids"] = row["token_ids"][: row["num_new_tokens"]].tolist()
            row |= {name: row[name].decode("utf-8") for name in ("text", "new_text", "finish_reason")}
        return rows

    def _decode(self, contexts, count, settings, seeds, first_index):
        """One call of the `continue_tokens` signature: the whole loop runs inside TensorFlow."""
        token_ids, padding_mask = pad_left(contexts)
        rows = len(contexts)
        outputs = self.signatures["continue_tokens"](
            token_ids=tf.constant(token_ids),
            padding_mask=tf.constant(padding_mask),
            first_index=tf.fill([rows], first_index),
            stop_token_ids=tf.tile(tf.constant([settings.stop_token_ids or ()], tf.int32), [rows, 1]),
            **self._settings(rows, settings)
            | {"max_new_tokens": tf.fill([rows], count), "seed": tf.constant(seeds, tf.int64)},
        )
        lengths = outputs["num_new_tokens"].numpy()
        return [tokens[:length].tolist() for tokens, length in zip(outputs["token_ids"].numpy(), lengths, strict=True)]

    @staticmethod
    def _settings(rows, settings):
        """The inputs of a request that chooses tokens in the same way for each row."""
        return {
            "max_new_tokens": tf.fill([rows], settings.max_new_tokens),
            "temperature": tf.fill([rows], np.float32(settings.temperature)),
            "top_k": tf.fill([rows], settings.top_k),
            "top_p": tf.fill([rows], np.float32(settings.top_p)),
            "repetition_penalty": tf.fill([rows], np.float32(settings.repetition_penalty)),
            "seed": tf.constant(settings.row_seeds(rows), tf.int64),
        }


class SavedModelTranslator(Translator):
    """Runs the newest version under `saved_model/NAME/` of a translation model's release directory.

    Args:
        release: the release directory.
        config: the contents of its config.json.

    Raises:
        UserError: if there is no SavedModel, or TensorFlow cannot load it.
    """

    name = "saved_model"

    def __init__(self, release, config):
        super().__init__(config)
        self.path, self._module = load_newest(release)
        self.signatures = self._module.signatures
        layers = range(self.num_layers)
        names = {
            stack: [f"{i}_{stack}_{part}" for i in layers for part in ("key", "value")]
            for stack in ("decoder", "encoder")
        }
        self.past_names = [f"past_key_values_{name}" for stack in names.values() for name in stack]
        self.present_names = {stack: [f"present_{name}" for name in names[stack]] for stack in names}

    def encode(self, source_ids, source_padding_mask):
        outputs = self._call("encode", source_ids=source_ids, source_padding_mask=source_padding_mask)
        width = np.shape(source_ids)[1]  # the signature leaves out columns that are padding in all rows

        def widened(tensor):
            return np.pad(tensor, [(0, 0), (0, 0), (0, width - tensor.shape[2]), (0, 0)])

        return [widened(outputs[name]) for name in self.present_names["encoder"]]

    def step(self, target_ids, source_padding_mask, memory, cache):
        past = dict(zip(self.past_names, [*cache, *memory], strict=True))
        outputs = self._call("decode_step", encoder_attention_mask=source_padding_mask, input_ids=target_ids, **past)
        return outputs["logits"], [outputs[name] for name in self.present_names["decoder"]]

    def logits(self, source_ids, source_padding_mask, target_ids):
        sources = {"source_ids": source_ids, "source_padding_mask": source_padding_mask}
        return self._call("logits", **sources, target_ids=target_ids)["logits"]

    def serve(self, texts):
        """The translations of texts, (B,) strings, by the default signature."""
        return [text.decode("utf-8") for text in self._call("serving_default", text=texts)["text"]]

    def _translate(self, source_ids, source_padding_mask, limit, settings, seeds):
        """One call of the `translate_tokens` signature: the whole search runs inside TensorFlow."""
        if settings.temperature > 0 or settings.repetition_penalty != 1:
            raise UserError("a SavedModel does not sample translations, expected temperature 0 and no penalty")
        rows = len(source_ids)
        try:
            outputs = self._call(
                "translate_tokens",
                source_ids=source_ids,
                source_padding_mask=source_padding_mask,
                num_beams=[settings.num_beams] * rows,
                length_penalty=[settings.length_penalty] * rows,
                max_new_tokens=[limit] * rows,
            )
        except tf.errors.InvalidArgumentError as error:
            raise UserError(_sentence(error)) from error
        scores = outputs["scores"].tolist() if settings.num_beams > 1 else [None] * rows
        rows = zip(outputs["token_ids"], outputs["num_new_tokens"], scores, strict=True)
        return [(tokens[:length].tolist(), score) for tokens, length, score in rows]

    def _call(self, signature, **inputs):
        function = self.signatures[signature]
        _, specifications = function.structured_input_signature
        tensors = {name: tf.constant(value, specifications[name].dtype) for name, value in inputs.items()}
        return {name: tensor.numpy() for name, tensor in function(**tensors).items()}


def load_newest(release):
    """The path and the module of the newest version under `saved_model/NAME/` of a release directory.

    Raises:
        UserError: if there is no SavedModel, or TensorFlow cannot load it.
    """
    folder = pathlib.Path(release) / "saved_model"
    versions = [path for path in folder.glob("*/*") if path.name.isdecimal()]
    if not versions:
        raise UserError(f"{folder} holds no NAME/VERSION, expected a release exported with the format saved_model")
    path = max(versions, key=lambda path: int(path.name))
    try:
        return path, tf.saved_model.load(str(path))
    except (OSError, ValueError, IndexError, tf.errors.OpError) as error:  # IndexError: a shortened file
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path} cannot be loaded by TensorFlow: {reason}") from error


def _sentence(error):
    """What an assertion in the graph says, without TensorFlow's words around it."""
    found = re.search(r"assertion failed: \[(.*?)\]", error.message)
    return found.group(1) if found else error.message.splitlines()[0]
