"""A version of a model on TensorFlow: its SavedModel in a session, which is how TensorFlow Serving runs it."""

from __future__ import annotations

import functools
import itertools
import pathlib
import threading

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from tfgpt.classification import is_classifier
from tfgpt.json_file import read_json
from tfgpt.runtime.release_files import read_release_config
from tfgpt.runtime.serving_messages import message
from tfgpt.runtime.tensor_messages import from_message
from tfgpt.server.saved_model_slots import SavedModelSlots
from tfgpt.server.status import NAMES, RequestError, invalid
from tfgpt.server.text_model import TextFiles, TextModel

WARM_UP = pathlib.PurePath("assets.extra", "tf_serving_warmup_requests")
MOST_WARM_UP_REQUESTS = 1000


class SavedModelServable:
    """A loaded SavedModel.

    Not `tf.saved_model.load`: a signature there refuses arrays of another rank than it declares, which a session does
    not check and the server neither, so that graphs see, and answer for, what they see under TensorFlow Serving.

    Args:
        path: the directory of a version.
        threads: of one operator; 0 lets TensorFlow choose.

    Attributes:
        signatures: name → `SignatureDef`'s message.
        texts: variant → `TextModel`: of a release's SavedModel one, "saved_model", else none.

    Raises:
        RequestError: if TensorFlow cannot load it, or a warm-up request fails.
    """

    def __init__(self, path, threads=0):
        self.path = pathlib.Path(path)
        self._lock, self._callables, self.texts = threading.Lock(), {}, {}
        config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=threads)
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        try:
            self.signatures = self._load()
            self._warm_up()
        except BaseException:
            self.close()
            raise

    def run(self, signature, inputs, outputs):
        """Runs a signature.

        Args:
            signature: its name, one of `signatures`.
            inputs: name → array, all those declared.
            outputs: names of those wanted.

        Returns:
            Name → array; strings are Python objects, bytes.

        Raises:
            RequestError: with TensorFlow's code and message.
        """
        names = tuple(sorted(inputs))
        call = self._callable(signature, names, tuple(outputs))
        try:
            found = call(*(inputs[name] for name in names))
        except tf.errors.OpError as error:
            raise RequestError(NAMES.get(error.error_code, "UNKNOWN"), error.message) from error
        except (TypeError, ValueError) as error:  # what TensorFlow's Python says of arrays that it cannot convert
            raise invalid(str(error)) from error
        # A string without a shape comes as bytes.
        arrays = (np.array(one, object) if isinstance(one, bytes) else np.asarray(one) for one in found)
        return dict(zip(outputs, arrays, strict=True))

    def close(self):
        """Finishes texts, and gives its memory back."""
        for model in self.texts.values():
            model.close()
        self.texts = {}
        with self._lock:
            self._callables.clear()  # before the session that they belong to
            self._session.close()

    def continue_texts(self, name, slots, max_queue, chat_template=None):
        """Has texts continued by its `decode_step`, if it is the SavedModel of a release directory that it is in.

        Args:
            name: of the model.
            slots, max_queue, chat_template: as `OnnxServable` takes them.

        Raises:
            UserError: if the release's texts cannot be continued token by token.
        """
        release = self.path.resolve().parent.parent.parent  # RELEASE/saved_model/NAME/VERSION
        if "decode_step" not in self.signatures or not (release / "manifest.json").is_file():
            return
        config = read_json(release / "config.json")
        if config.get("is_encoder_decoder") or is_classifier(config):
            return
        files = TextFiles(release, chat_template)
        rows = SavedModelSlots(functools.partial(self.run, "decode_step"), read_release_config(release), slots)
        self.texts["saved_model"] = TextModel(name, name, "saved_model", files, rows, max_queue)

    def _load(self):
        try:
            with self._session.graph.as_default():
                loaded = tf.compat.v1.saved_model.load(self._session, [tf.saved_model.SERVING], str(self.path))
        except tf.errors.OpError as error:
            raise RequestError(NAMES.get(error.error_code, "UNKNOWN"), error.message) from error
        except (OSError, RuntimeError, ValueError, KeyError, IndexError) as error:
            raise RequestError("NOT_FOUND", f"{self.path} cannot be loaded: {error}") from error
        definition = message("SignatureDef")
        return {name: definition.FromString(one.SerializeToString()) for name, one in loaded.signature_def.items()}

    def _callable(self, signature, inputs, outputs):
        with self._lock:
            key = (signature, inputs, outputs)
            if key not in self._callables:
                declared = self.signatures[signature]
                options = config_pb2.CallableOptions(
                    feed=[declared.inputs[name].name for name in inputs],
                    fetch=[declared.outputs[name].name for name in outputs],
                )
                # The public make_callable and run compare ranks with the placeholders' first.
                self._callables[key] = self._session._make_callable_from_options(options)
            return self._callables[key]

    def _warm_up(self):
        """Runs the requests that came with the model, as the server does before it calls a version available."""
        path = self.path / WARM_UP
        if not path.is_file():
            return
        log = message("serving.PredictionLog")
        try:
            records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
            for record in itertools.islice(records, MOST_WARM_UP_REQUESTS):
                self._warm_up_by(log.FromString(record))
        except tf.errors.DataLossError as error:
            raise RequestError("DATA_LOSS", f"{path} is no file of TFRecords: {error.message}") from error

    def _warm_up_by(self, record):
        if record.WhichOneof("log_type") != "predict_log":
            return
        request = record.predict_log.request
        signature = request.model_spec.signature_name or "serving_default"
        if signature not in self.signatures:
            raise RequestError("FAILED_PRECONDITION", f"a warm-up request has no signature {signature!r} to run")
        inputs = {name: from_message(tensor) for name, tensor in request.inputs.items()}
        self.run(signature, inputs, sorted(self.signatures[signature].outputs))
