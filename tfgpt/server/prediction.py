"""What a request means, whichever protocol it came by: checks, the version that answers, inputs and outputs."""

from __future__ import annotations

import contextlib
import time

import numpy as np

from tfgpt.runtime.serving_messages import message
from tfgpt.runtime.tensor_messages import BY_NUMBER, NAMES, from_message
from tfgpt.server.metrics import METRICS
from tfgpt.server.status import NUMBERS, RequestError, invalid

DEFAULT = "serving_default"


class Predictor:
    """Answers requests by a server's models.

    Args:
        models: `Models`.
        batcher: a `Batcher`, or None to run each request alone.
    """

    def __init__(self, models, batcher=None):
        self.models, self._batcher = models, batcher

    def predict(self, spec, inputs, outputs=()):
        """Runs a signature.

        Args:
            spec: `serving.ModelSpec`'s message.
            inputs: name → array, or a function of the signature's inputs (name → TensorInfo) that gives them.
            outputs: names of those wanted; by default all.

        Returns:
            Name → array, and the `serving.ModelSpec` of what answered.

        Raises:
            RequestError: with the reason.
        """
        name = spec.signature_name or DEFAULT
        with self.models.borrowed(spec) as version:
            signatures = version.servable.signatures
            if callable(inputs):
                if name not in signatures:
                    raise invalid(f'Serving signature name: "{name}" not found in signature def')
                inputs = inputs(signatures[name].inputs)
            if name not in signatures:
                raise RequestError("FAILED_PRECONDITION", f'Serving signature key "{name}" not found.')
            inputs = complete_inputs(signatures[name], inputs)
            found = self._run(version, name, inputs, wanted_outputs(signatures[name], outputs))
            return found, _answered(spec, name, version)

    def classify(self, spec, request_input):
        """Runs a signature on examples.

        Args:
            spec: `serving.ModelSpec`'s message.
            request_input: `serving.Input`'s message.

        Returns:
            `serving.ClassificationResult`'s message, and the `serving.ModelSpec` of what answered.
        """
        result = message("serving.ClassificationResult")()
        with self._examples(spec, request_input, "classification") as (version, name, signature, examples):
            wanted = [output for output in ("classes", "scores") if output in signature.outputs]
            if len(signature.outputs) not in (1, 2):
                raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
            if not wanted:
                raise RequestError("FAILED_PRECONDITION", f"signature {name} has no outputs classes or scores")
            found = self._run(version, name, {"inputs": examples}, wanted)
            for output, dtype in (("classes", object), ("scores", np.float32)):
                if output in found:
                    _check_output(output, found[output], dtype, len(examples))
            if len({array.shape for array in found.values()}) > 1:
                raise invalid("Tensors class and score should match in shape")
            for row in range(len(examples)):
                added = result.classifications.add()
                for column in range(next(iter(found.values())).shape[1]):
                    one = added.classes.add()
                    if "classes" in found:
                        one.label = found["classes"][row, column].decode("utf-8", "replace")
                    if "scores" in found:
                        one.score = found["scores"][row, column]
            return result, _answered(spec, name, version)

    def regress(self, spec, request_input):
        """Runs a signature on examples, as `classify`; gives `serving.RegressionResult`'s message."""
        result = message("serving.RegressionResult")()
        with self._examples(spec, request_input, "regression") as (version, name, signature, examples):
            if len(signature.outputs) != 1:
                raise invalid("Expected one output Tensor.")
            if "outputs" not in signature.outputs:
                raise RequestError("FAILED_PRECONDITION", f"No regression outputs found in signature {name}")
            array = self._run(version, name, {"inputs": examples}, ["outputs"])["outputs"]
            if array.shape not in ((len(examples),), (len(examples), 1)) or array.dtype != np.float32:
                raise invalid(f"Expected output Tensor of float and shape [{len(examples)}], got {list(array.shape)}")
            for value in array.ravel().tolist():
                result.regressions.add(value=value)
            return result, _answered(spec, name, version)

    def metadata(self, spec):
        """The `serving.ModelSpec` of what answers, and its `serving.SignatureDefMap`."""
        with self.models.borrowed(spec) as version:
            signatures = message("serving.SignatureDefMap")()
            for name, signature in version.servable.signatures.items():
                signatures.signature_def[name].CopyFrom(signature)
            return _answered(spec, "", version), signatures

    def status(self, spec):
        """`serving.GetModelStatusResponse`'s message. A label is ignored here, as TensorFlow Serving does."""
        number = spec.version.value if spec.HasField("version") else None
        response = message("serving.GetModelStatusResponse")()
        states = message("serving.ModelVersionStatus").DESCRIPTOR.enum_types_by_name["State"].values_by_name
        for version in self.models.statuses(spec.name, number):
            row = response.model_version_status.add(version=version.number, state=states[version.state].number)
            row.status.error_code = NUMBERS[version.error.code] if version.error else 0
            row.status.error_message = version.error.message if version.error else ""
        return response

    @contextlib.contextmanager
    def _examples(self, spec, request_input, what):
        """The version, the signature's name, the signature, and the serialized examples of a request."""
        name = spec.signature_name or DEFAULT
        with self.models.borrowed(spec) as version:
            signature = version.servable.signatures.get(name)
            if signature is None:
                raise invalid(f"No signature was found with the name: {name}")
            if len(signature.inputs) != 1:
                raise invalid("Expected one input Tensor.")
            if "inputs" not in signature.inputs:
                raise RequestError("FAILED_PRECONDITION", f"No {what} inputs found in signature {name}")
            yield version, name, signature, serialized_examples(request_input)

    def _run(self, version, signature, inputs, outputs):
        start = time.monotonic()
        try:
            if self._batcher is not None:
                return self._batcher.run(version.servable, signature, inputs, outputs)
            return version.servable.run(signature, inputs, outputs)
        finally:
            METRICS.ran(version.model, time.monotonic() - start)


def complete_inputs(signature, inputs):
    """A signature's inputs, those left out by their defaults, all of the declared dtype.

    Raises:
        RequestError: INVALID_ARGUMENT.
    """
    missing = sorted(set(signature.inputs) - set(inputs) - set(signature.defaults))
    extra = sorted(set(inputs) - set(signature.inputs))
    if missing or extra:
        raise invalid(
            f"input size does not match signature: {len(inputs)}!={len(signature.inputs)}. "
            f"Sent extra: {{{','.join(extra)}}}. Missing but required: {{{','.join(missing)}}}."
        )
    complete = {name: from_message(signature.defaults[name]) for name in signature.inputs if name not in inputs}
    complete |= inputs
    for name, info in signature.inputs.items():
        if info.dtype in BY_NUMBER and complete[name].dtype != BY_NUMBER[info.dtype][0]:
            found = complete[name].dtype
            raise invalid(f"input {name} has dtype {found}, expected {NAMES[info.dtype].removeprefix('DT_').lower()}")
    return complete


def wanted_outputs(signature, names):
    """The names of the outputs to give, those asked for or all.

    Raises:
        RequestError: INVALID_ARGUMENT.
    """
    known = sorted(signature.outputs)
    for name in names:
        if name not in signature.outputs:
            expected = f"Outputs expected to be in the set {{{','.join(known)}}}."
            raise invalid(f"output tensor alias not found in signature: {name} {expected}")
        if list(names).count(name) > 1:
            raise invalid(f"duplicate output tensor alias: {name}")
    return list(names) or known


def serialized_examples(request_input):
    """The examples of `serving.Input`, each behind the context that they share: (N,) bytes."""
    context = b""
    rows = request_input.example_list
    if request_input.WhichOneof("kind") == "example_list_with_context":
        rows = request_input.example_list_with_context
        context = rows.context.SerializeToString()  # messages one behind the other are one message, merged
    if not rows.examples:
        raise invalid("Input is empty.")
    examples = np.empty(len(rows.examples), object)
    examples[:] = [context + example.SerializeToString() for example in rows.examples]
    return examples


def _check_output(name, array, dtype, rows):
    if array.ndim != 2 or len(array) != rows or array.dtype != dtype:
        raise invalid(f"Expected {name} of shape [{rows} num_classes] but got {list(array.shape)} of {array.dtype}")


def _answered(spec, signature, version):
    answered = message("serving.ModelSpec")(name=spec.name, signature_name=signature)
    answered.version.value = version.number
    return answered
