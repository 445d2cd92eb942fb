"""Quantized and half-precision variants, made from the tuned decoder's file, one weight at a time.

A quantized product takes the place of each product with a weight matrix: 4 a layer, and the output head. The token
vectors come out of the head's integers, so that the tied matrix is stored once here as well. Biases, normalizations and
positions stay float32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import TapeBuilder

from tfgpt.errors import UserError
from tfgpt.export.onnx_file import ExternalData, save_decoder
from tfgpt.export.onnx_rules import MICROSOFT
from tfgpt.runtime.variants import data_path, onnx_path

BITS = {"int8_weight_only": 8, "int4": 4}
BLOCKS = (128, 64, 32, 16)  # weights that share a scale: the largest that divides every width


def write_variant(folder, variant, keep=()):
    """Writes a variant of `model_float32.onnx` beside it.

    Args:
        folder: the release's `onnx` folder, a `pathlib.Path`.
        variant: "float16", "int8", "int8_weight_only" or "int4".
        keep: names of weights that stay float32; float16 has all of them in float16.

    Raises:
        UserError: if no block divides the model's widths.
    """
    decoder = ir.load(folder / onnx_path("float32").name)
    with ExternalData(folder / data_path(variant).name) as data:
        if variant == "float16":
            to_float16(decoder, data)
        else:
            quantize(decoder, variant, data, keep)
        passes.RemoveUnusedNodesPass()(decoder)
        for name, value in decoder.graph.initializers.items():
            tensor = value.const_value
            # Shapes and the like stay in the graph, where runtimes look for them.
            if isinstance(tensor, ir.ExternalTensor) and tensor.location != data.path.name:
                value.const_value = data.add(name, tensor.numpy())
    save_decoder(decoder, folder / onnx_path(variant).name, decoder.metadata_props.get("source", ""))


def weight_matrices(decoder):
    """Name → (K, N) of each weight matrix that a product multiplies with, in the order of the graph."""
    return {
        node.inputs[1].name: tuple(node.inputs[1].shape)[:: -1 if node.op_type == "Gemm" else 1]
        for node in decoder.graph
        if _is_product(node)
    }


def quantize(decoder, variant, data, keep=()):
    """Replaces products with weight matrices by quantized ones, in place.

    Args:
        decoder: the tuned decoder, an `onnx_ir.Model`.
        variant: "int8", "int8_weight_only" or "int4".
        data: the `ExternalData` that the integers go to, or anything with its `add`.
        keep: names of weights that stay float32.
    """
    graph = decoder.graph
    decoder.opset_imports[MICROSOFT] = 1
    widths = [inner for inner, _ in weight_matrices(decoder).values()]
    block = common_block(widths, variant) if variant in BITS else None
    for node in [node for node in graph if _is_product(node)]:
        weight = node.inputs[1]
        if weight.name in keep:
            continue

        def store(part, array, weight=weight):
            name = f"{weight.name}_{part}"
            value = ir.Value(name=name, const_value=data.add(name, array))
            value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
            graph.register_initializer(value)
            return value

        kernel = weight.const_value.numpy()
        kernel = kernel.T if node.op_type == "Gemm" else kernel  # (K, N)
        if variant == "int8":
            quantized = DynamicInt8(kernel, store)
        else:
            quantized = WeightOnly(kernel, store, BITS[variant], block)
        for use in weight.uses():
            if use.node.op_type == "Gather":
                _replace(graph, use.node, quantized.lookup)
        _replace(graph, node, quantized.product)


def common_block(widths, variant):
    """The largest of `BLOCKS` that divides every product's inner width.

    Raises:
        UserError: if there is none.
    """
    for block in BLOCKS:
        if all(width % block == 0 for width in widths):
            return block
    smallest, found = BLOCKS[-1], ", ".join(map(str, sorted(set(widths))))
    raise UserError(f"{variant} needs widths divisible by {smallest}, its smallest block of weights, found {found}")


class DynamicInt8:
    """Weights as int8 with a scale a column; activations in 8 bits, quantized anew in each product, a scale a row.

    ONNX Runtime's DynamicQuantizeMatMul does it in one operator, with one scale for all rows: 5 to 10 % faster, but
    what a text gets would depend on whom it is computed with, and a row of small numbers would keep few bits.

    Args:
        kernel: (K, N).
        store: a function `(part, array)` that gives a graph's value.
    """

    def __init__(self, kernel, store):
        scales = np.abs(kernel).max(axis=0) / 127
        scales = np.where(scales == 0, 1, scales).astype(np.float32)
        self.integers = store("int8", np.rint(kernel / scales).astype(np.int8))  # (K, N)
        self.scales = store("scales", scales)  # (N,)

    def product(self, op, x, _):
        largest = op.ReduceMax(op.Abs(x), op.Constant(value_ints=[-1]), keepdims=1)
        step, zero = op.Constant(value_float=1 / 127), op.Constant(value=ir.tensor(np.uint8(128)))
        # A row of zeros becomes integers that mean nothing, and zeros again by its scale.
        rows = op.QuantizeLinear(op.Div(x, largest), step, zero)
        product = op.MatMulIntegerToFloat(rows, self.integers, step, self.scales, zero, _domain=MICROSOFT)
        return op.Mul(product, largest)

    def lookup(self, op, _, token_ids):
        columns = op.Transpose(op.Gather(self.integers, token_ids, axis=1), perm=[1, 2, 0])  # (B, T, K)
        scales = op.Unsqueeze(op.Gather(self.scales, token_ids), op.Constant(value_ints=[2]))
        return op.Mul(op.Cast(columns, to=ir.DataType.FLOAT), scales)


class WeightOnly:
    """Weights as 4 or 8 bits with a scale a block of the inner width; activations in 8 bits, a scale a block of a row.

    The scale is the block's value of largest magnitude over -2^(bits - 1), so that this value is exact and no level
    is lost, made smaller where that lowers the block's squared error.

    Args:
        kernel: (K, N).
        store: as in `DynamicInt8`.
        bits: 4 or 8.
        block: the length of a block, which divides K.
    """

    def __init__(self, kernel, store, bits, block):
        self.bits, self.block = bits, block
        self.inner, self.outer = kernel.shape
        integers, scales = quantize_blocks(kernel.T, bits, block)
        if bits == 4:
            integers = integers[..., 0::2] | integers[..., 1::2] << 4
        self.integers = store(f"int{bits}", integers)  # (N, K / block, bytes of a block)
        self.scales = store("scales", scales)  # (N, K / block)

    def product(self, op, x, _):
        return op.MatMulNBits(
            *(x, self.integers, self.scales),
            K=self.inner,
            N=self.outer,
            bits=self.bits,
            block_size=self.block,
            accuracy_level=4,  # activations in 8 bits, too: integer products are several times faster
            _domain=MICROSOFT,
        )

    def lookup(self, op, _, token_ids):
        rows = op.Gather(self.integers, token_ids, axis=0)  # (B, T, blocks, bytes)
        if self.bits == 4:
            low = op.BitwiseAnd(rows, op.Constant(value=ir.tensor(np.uint8(15))))
            high = op.BitShift(rows, op.Constant(value=ir.tensor(np.uint8(4))), direction="RIGHT")
            last = op.Constant(value_ints=[4])
            rows = op.Concat(op.Unsqueeze(low, last), op.Unsqueeze(high, last), axis=4)
            rows = op.Reshape(rows, op.Constant(value_ints=[0, 0, 0, self.block]))
        centered = op.Sub(op.Cast(rows, to=ir.DataType.FLOAT), op.Constant(value_float=2.0 ** (self.bits - 1)))
        scales = op.Unsqueeze(op.Gather(self.scales, token_ids, axis=0), op.Constant(value_ints=[3]))
        return op.Reshape(op.Mul(centered, scales), op.Constant(value_ints=[0, 0, self.inner]))


def quantize_blocks(rows, bits, block):
    """Symmetric quantization by blocks.

    Args:
        rows: (N, K) float32.
        bits: 4 or 8.
        block: divides K.

    Returns:
        Integers (N, K / block, block) uint8 around 2^(bits - 1), and scales (N, K / block) float32, with
        `rows ≈ (integers - 2^(bits - 1)) * scales`.
    """
    half = 2 ** (bits - 1)
    shrinkages = (1.0, 0.95, 0.9, 0.85) if bits == 4 else (1.0,)  # 8 bits have levels to spare
    integers = np.empty((rows.shape[0], rows.shape[1] // block, block), np.uint8)
    scales = np.empty(integers.shape[:2], np.float32)
    for start in range(0, len(rows), 4096):  # so that no second copy of a whole matrix is made
        part = slice(start, start + 4096)
        blocks = np.ascontiguousarray(rows[part]).reshape(-1, rows.shape[1] // block, block)
        largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1, keepdims=True), axis=-1)
        best = np.full(largest.shape, np.inf, np.float32)
        for shrinkage in shrinkages:
            scale = np.where(largest == 0, 1, largest * (shrinkage / -half)).astype(np.float32)
            levels = np.clip(np.rint(blocks / scale), -half, half - 1)
            error = np.square(levels * scale - blocks).sum(axis=-1, keepdims=True)
            better = error < best
            best = np.where(better, error, best)
            scales[part] = np.where(better[..., 0], scale[..., 0], scales[part])
            integers[part] = np.where(better, (levels + half).astype(np.uint8), integers[part])
    return integers, scales


def to_float16(decoder, data):
    """Turns every float32 tensor of a tuned decoder into float16, in place, but for the logits that leave it."""
    graph = decoder.graph
    logits = graph.outputs[0]
    for name, value in graph.initializers.items():
        if value.dtype == ir.DataType.FLOAT:
            value.const_value = data.add(name, value.const_value.numpy().astype(np.float16))
    values = [*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs)]
    for value in values:
        if value.dtype == ir.DataType.FLOAT:
            value.dtype = ir.DataType.FLOAT16
    op = TapeBuilder()
    as_float32 = op.Cast(logits, to=ir.DataType.FLOAT)
    logits.name, as_float32.name = f"{logits.name}_float16", logits.name
    as_float32.dtype, as_float32.shape = ir.DataType.FLOAT, logits.shape
    graph.extend(op.nodes)
    graph.outputs[0] = as_float32


def _is_product(node):
    return node.op_type in ("MatMul", "Gemm") and node.inputs[1].is_initializer()


def _replace(graph, node, make):
    """Puts what `make(op, *inputs)` gives in a node's place."""
    op = TapeBuilder()
    new = make(op, *node.inputs)
    ir.convenience.replace_nodes_and_values(graph, node, [node], op.nodes, node.outputs, [new])
