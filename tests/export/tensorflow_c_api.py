"""A client of TensorFlow's C API in ctypes, for a process that never imports tensorflow: a SavedModel runs without it.

As a script it loads one signature of a SavedModel and runs requests through it:

    python tensorflow_c_api.py SAVED_MODEL SIGNATURE < requests.json > answers.json

A request is an object from inputs to lists (of strings, numbers, or lists of numbers); an answer has `outputs`, from
names to lists, strings among them as UTF-8's hexadecimal digits, or `code` and `message` of TensorFlow's error.
"""

import ctypes
import importlib.util
import json
import math
import pathlib
import struct
import sys

FLOAT, INT32, STRING, INT64 = 1, 3, 7, 9  # TF_DataType in tensorflow/c/tf_datatype.h
FORMATS = {FLOAT: "f", INT32: "i", INT64: "q"}  # of `struct`
TSTRING_BYTES = 24  # sizeof(TF_TString); a string of up to 22 bytes stands in the struct itself, a longer one elsewhere


class Output(ctypes.Structure):  # TF_Output: an operation's output
    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


class Buffer(ctypes.Structure):  # TF_Buffer
    _fields_ = [("data", ctypes.c_void_p), ("length", ctypes.c_size_t), ("deallocator", ctypes.c_void_p)]


POINTER, SIZE, INT, TEXT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p
OUTPUTS, POINTERS = ctypes.POINTER(Output), ctypes.POINTER(ctypes.c_void_p)
FUNCTIONS = {  # name → what it returns, what it takes, as in tensorflow/c/c_api.h, tf_tensor.h and tf_tstring.h
    "TF_NewStatus": (POINTER, []),
    "TF_GetCode": (INT, [POINTER]),
    "TF_Message": (TEXT, [POINTER]),
    "TF_NewGraph": (POINTER, []),
    "TF_NewSessionOptions": (POINTER, []),
    "TF_NewBuffer": (ctypes.POINTER(Buffer), []),
    "TF_LoadSessionFromSavedModel": (
        POINTER,
        [POINTER, POINTER, TEXT, ctypes.POINTER(TEXT), INT, POINTER, ctypes.POINTER(Buffer), POINTER],
    ),
    "TF_GraphOperationByName": (POINTER, [POINTER, TEXT]),
    "TF_SessionRun": (
        None,
        [POINTER, POINTER, OUTPUTS, POINTERS, INT, OUTPUTS, POINTERS, INT, POINTERS, INT, POINTER, POINTER],
    ),
    "TF_AllocateTensor": (POINTER, [INT, ctypes.POINTER(ctypes.c_int64), INT, SIZE]),
    "TF_DeleteTensor": (None, [POINTER]),
    "TF_TensorType": (INT, [POINTER]),
    "TF_NumDims": (INT, [POINTER]),
    "TF_Dim": (ctypes.c_int64, [POINTER, INT]),
    "TF_TensorData": (POINTER, [POINTER]),
    "TF_StringInit": (None, [POINTER]),
    "TF_StringCopy": (None, [POINTER, TEXT, SIZE]),
    "TF_StringGetDataPointer": (POINTER, [POINTER]),
    "TF_StringGetSize": (SIZE, [POINTER]),
}


def load_library():
    """The functions above, from the installed package's libraries, found without importing it."""
    folder = pathlib.Path(importlib.util.find_spec("tensorflow").origin).parent
    framework = ctypes.CDLL(str(folder / "libtensorflow_framework.so.2"), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(folder / "libtensorflow_cc.so.2"), mode=ctypes.RTLD_GLOBAL)
    functions = {}
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(library, name, None) or getattr(framework, name)
        function.restype, function.argtypes = result, arguments
        functions[name.removeprefix("TF_")] = function
    return functions


class TensorFlowError(Exception):
    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Session:
    """One signature of a SavedModel, loaded by TF_LoadSessionFromSavedModel.

    Args:
        path: of the SavedModel's version.
        signature: its name.
    """

    def __init__(self, path, signature):
        self.c = load_library()
        self.graph, meta_graph = self.c["NewGraph"](), self.c["NewBuffer"]()
        status = self.c["NewStatus"]()
        tags = (TEXT * 1)(b"serve")
        options = self.c["NewSessionOptions"]()
        self.session = self.c["LoadSessionFromSavedModel"](
            options, None, str(path).encode(), tags, 1, self.graph, meta_graph, status
        )
        self._check(status)
        contents = ctypes.string_at(meta_graph.contents.data, meta_graph.contents.length)
        self.inputs, self.outputs = read_signatures(contents)[signature]

    def run(self, inputs):
        """Outputs by name, for lists by name."""
        names = list(self.inputs)
        tensors = [self._tensor(self.inputs[name][1], inputs[name]) for name in names]
        results = (POINTER * len(self.outputs))()
        status = self.c["NewStatus"]()
        self.c["SessionRun"](
            self.session,
            None,
            (Output * len(names))(*(self._place(self.inputs[name][0]) for name in names)),
            (POINTER * len(names))(*tensors),
            len(names),
            (Output * len(self.outputs))(*(self._place(place) for place, _ in self.outputs.values())),
            results,
            len(self.outputs),
            None,
            0,
            None,
            status,
        )
        for tensor in tensors:
            self.c["DeleteTensor"](tensor)
        self._check(status)
        return {name: self._values(tensor) for name, tensor in zip(self.outputs, results, strict=True)}

    def _check(self, status):
        if code := self.c["GetCode"](status):
            raise TensorFlowError(code, self.c["Message"](status).decode())

    def _place(self, tensor_name):
        name, _, index = tensor_name.partition(":")
        operation = self.c["GraphOperationByName"](self.graph, name.encode())
        assert operation, f"the graph has no operation {name}"
        return Output(operation, int(index))

    def _tensor(self, dtype, values):
        shape, flat = [], values
        while isinstance(flat, list):
            shape.append(len(flat))
            flat = flat[0] if flat else None
        flat = values if len(shape) == 1 else [value for row in values for value in row]
        data = b"" if dtype == STRING else struct.pack(f"{len(flat)}{FORMATS[dtype]}", *flat)
        size = TSTRING_BYTES * len(flat) if dtype == STRING else len(data)
        tensor = self.c["AllocateTensor"](dtype, (ctypes.c_int64 * len(shape))(*shape), len(shape), size)
        address = self.c["TensorData"](tensor)
        if dtype != STRING:
            ctypes.memmove(address, data, size)
            return tensor
        for i, text in enumerate(flat):
            place, encoded = address + i * TSTRING_BYTES, text.encode()
            self.c["StringInit"](place)
            self.c["StringCopy"](place, encoded, len(encoded))
        return tensor

    def _values(self, tensor):
        shape = [self.c["Dim"](tensor, i) for i in range(self.c["NumDims"](tensor))]
        count, address, dtype = math.prod(shape), self.c["TensorData"](tensor), self.c["TensorType"](tensor)
        if dtype == STRING:
            places = [address + i * TSTRING_BYTES for i in range(count)]
            flat = [
                ctypes.string_at(self.c["StringGetDataPointer"](place), self.c["StringGetSize"](place)).hex()
                for place in places
            ]
        else:
            size = count * struct.calcsize(FORMATS[dtype])
            flat = list(struct.unpack(f"{count}{FORMATS[dtype]}", ctypes.string_at(address, size) if size else b""))
        self.c["DeleteTensor"](tensor)
        for width in reversed(shape[1:]):
            flat = [flat[i : i + width] for i in range(0, len(flat), width)] if width else [[] for _ in range(shape[0])]
        return flat


# === As much of protobuf's wire format as a signature needs ===


def read_signatures(meta_graph):
    """Signature → (inputs, outputs), each name → (tensor's name, TF_DataType), of a serialized MetaGraphDef.

    Field numbers are those of tensorflow/core/protobuf/meta_graph.proto.
    """
    signatures = {}
    for number, value in read_fields(meta_graph):
        if number == 5:  # MetaGraphDef.signature_def, a map
            entry = dict(read_fields(value))
            inputs, outputs = {}, {}
            for kind, tensor in read_fields(entry[2]):
                if kind in (1, 2):  # SignatureDef.inputs and outputs, maps to TensorInfo
                    named = dict(read_fields(tensor))
                    info = dict(read_fields(named[2]))
                    (inputs if kind == 1 else outputs)[named[1].decode()] = (info[1].decode(), info.get(2, 0))
            signatures[entry[1].decode()] = (inputs, outputs)
    return signatures


def read_fields(message):
    """Yields (number, value) of each field: an int, or bytes for texts and messages."""
    place = 0

    def varint():
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while place < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        size = {1: 8, 5: 4}.get(kind) or varint()
        yield number, message[place : place + size]
        place += size


def main(path, signature):
    session = Session(path, signature)
    answers = []
    for request in json.load(sys.stdin):
        try:
            answers.append({"outputs": session.run(request)})
        except TensorFlowError as error:
            answers.append({"code": error.code, "message": str(error)})
    assert not {"tensorflow", "keras", "numpy"} & set(sys.modules)
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
