"""What an ONNX model is on disk: a graph, and a file of weights beside it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from tfgpt.version import __version__

ALIGNMENT = 64  # bytes; lets runtimes map tensors in place


class ExternalData:
    """Writes tensors one behind the other, each aligned, as they are made: no two need to be in memory at once.

    Args:
        path: of the file, beside the graph that will name it.

    Example:

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder, ExternalData(pathlib.Path(folder) / "model.onnx.data") as data:
    ...     _ = data.add("a", np.zeros(3, np.float32))
    ...     data.add("b", np.ones((2, 2), np.int8)).offset
    64
    """

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        self.file = open(self.path, "wb")
        return self

    def __exit__(self, *error):
        self.file.close()

    def add(self, name, array):
        """Writes an array, and gives the `onnx_ir.ExternalTensor` that stands for it."""
        array = np.ascontiguousarray(array)
        self.file.write(b"\0" * (-self.file.tell() % ALIGNMENT))
        offset = self.file.tell()
        self.file.write(memoryview(array).cast("B"))
        return ir.ExternalTensor(
            self.path.name,
            offset,
            array.nbytes,
            ir.DataType.from_numpy(array.dtype),
            shape=ir.Shape(array.shape),
            name=name,
            base_dir=self.path.parent,
        )


def save_decoder(decoder, path, source=""):
    """Writes a decoder's graph, checked, with inferred shapes, and saying where it comes from."""
    decoder.producer_name, decoder.producer_version = "tfgpt", __version__
    decoder.metadata_props.update({"source": str(source), "tfgpt_version": __version__})
    outputs = set(decoder.graph.outputs)
    for value in (value for node in decoder.graph for value in node.outputs):
        if value not in outputs:
            value.shape = None  # to be inferred from the named axes: the converter's own names mean nothing
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(decoder))
    path.write_bytes(proto.SerializeToString())
    onnx.checker.check_model(str(path))
