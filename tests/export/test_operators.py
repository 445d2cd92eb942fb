"""What a server must have to run a SavedModel: TensorFlow's core operators, and weights that are stored once."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

# Reviewed by hand: operators of TensorFlow's own kernels on the CPU, which every stock server has. None of XLA's,
# which a server may be built without, none that calls back into Python, none of another package such as
# tensorflow-text. What a new one does is to be looked up before it is added.
OPERATORS = """
    Add AddV2 All Any ArgMax AsString Assert AssignVariableOp BatchMatMulV2 BatchMatMulV3 BiasAdd BitwiseAnd
    BitwiseOr BitwiseXor BroadcastTo Cast ConcatV2 Const Cos Cumsum DecodeRaw DisableCopyOnRead Equal Exp
    ExpandDims Fill FloorDiv FloorMod GatherNd GatherV2 Greater GreaterEqual HashTableV2 Identity If IsFinite
    LeftShift Less LessEqual LogSoftmax LogicalAnd LogicalNot LogicalOr LookupTableFindV2 LookupTableImportV2
    LowerBound MatMul Max Maximum Mean MergeV2Checkpoints Minimum Mul Neg NoOp NotEqual OnesLike Pack Pad
    Placeholder Pow Prod RaggedGather RaggedRange RaggedTensorToTensor Range ReadVariableOp RealDiv ReduceJoin Relu
    Reshape RestoreV2 RightShift Rsqrt SaveV2 ScatterNd Select SelectV2 Shape ShardedFilename Sin Size Softmax
    SparseSoftmaxCrossEntropyWithLogits Split Square Squeeze StatefulPartitionedCall StatelessIf StatelessWhile
    StaticRegexFullMatch StaticRegexReplace StridedSlice StringJoin StringLength Sub Substr Sum Tanh
    TensorListReserve TensorListSetItem TensorListStack TensorScatterUpdate TensorStridedSliceUpdate Tile TopKV2
    Transpose UnicodeDecode UnicodeEncode UnicodeTranscode Unique UnsortedSegmentJoin UnsortedSegmentSum
    VarHandleOp Where While ZerosLike
"""
ALLOWED = set(OPERATORS.split())


# In a process of its own: here, other tests may have imported packages that register operators.
REGISTERED = """
import json, sys
from tensorflow.python.framework import op_def_registry
print(json.dumps([name for name in json.load(sys.stdin) if op_def_registry.get(name) is None]))
assert not any(name.startswith(("tensorflow_text", "tensorflow_serving", "tfgpt")) for name in sys.modules)
"""


@pytest.fixture(scope="module", params=["served", "served_characters", "served_tokens"])
def graph(request):
    """The graph of a SavedModel: all nodes with the function they stand in, and that function's definition."""
    served = request.getfixturevalue(request.param)
    proto = saved_model_pb2.SavedModel.FromString((served.path / "saved_model.pb").read_bytes())
    (meta_graph,) = proto.meta_graphs
    functions = {function.signature.name: function for function in meta_graph.graph_def.library.function}
    nodes = [*meta_graph.graph_def.node, *(node for f in functions.values() for node in f.node_def)]
    return types.SimpleNamespace(nodes=nodes, functions=functions)


def operators(graph):
    return {node.op for node in graph.nodes} - set(graph.functions)


def test_every_operator_is_on_the_list(graph):
    found = operators(graph)
    assert {"MatMul", "While", "Const"} <= found  # the loop and its body were looked into
    assert found - ALLOWED == set()


def test_the_list_is_of_tensorflows_core_operators():
    assert not [name for name in ALLOWED if "Xla" in name or "PyFunc" in name]
    process = subprocess.run(
        [sys.executable, "-I", "-c", REGISTERED],
        input=json.dumps([*sorted(ALLOWED), "XlaNoSuchOperator"]),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == ["XlaNoSuchOperator"]


def test_nothing_is_to_be_compiled(graph):
    """`jit_compile=True` is an attribute of functions and of the nodes that call them."""
    marks = [
        (name, attribute)
        for holder in (*graph.nodes, *graph.functions.values())
        for name, attribute in holder.attr.items()
        if any(word in name.lower() for word in ("xla", "compile", "jit"))
    ]
    assert not [name for name, attribute in marks if attribute.b or attribute.s]


def test_the_decoding_loop_is_stored_once(graph):
    """Four signatures generate; the graph of their loop is one, in a function that all call."""
    loops = [node for node in graph.nodes if node.op in ("While", "StatelessWhile")]
    decoding = [
        node
        for node in loops
        if any(
            inner.op == "TensorStridedSliceUpdate" for inner in graph.functions[node.attr["body"].func.name].node_def
        )
    ]
    assert len(decoding) == 1


# === Weights ===


def test_each_variable_is_stored_once(served, bpe_model):
    weights = sum(variable.numpy().nbytes for variable in bpe_model.trainable_variables)
    data = (served.path / "variables" / "variables.data-00000-of-00001").stat().st_size
    assert weights <= data <= weights + 8192  # the rest is TensorFlow's object graph
    stored = tf.train.list_variables(str(served.path / "variables" / "variables"))
    sizes = sorted(int(np.prod(shape)) for _, shape in stored if shape)
    assert sizes == sorted(int(np.prod(v.shape)) for v in bpe_model.variables if v.shape)
    assert sum(sizes) == bpe_model.count_params()


def test_no_weight_is_a_constant(graph):
    """The tokenizer's tables are integers and strings; a weight has at least the 8 numbers of a hidden vector."""
    floats = []
    for node in graph.nodes:
        if node.op == "Const":
            tensor = node.attr["value"].tensor
            if tf.as_dtype(tensor.dtype).is_floating:
                floats.append(np.prod([axis.size for axis in tensor.tensor_shape.dim], dtype=int))
    assert floats
    assert max(floats) < 8
