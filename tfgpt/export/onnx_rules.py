"""Named rewriting rules: from what tf2onnx writes to the operators that runtimes have kernels for.

Each rule is a pattern and what stands in its place, for onnxscript's rewriter. `portable_rules` give standard operators
only; `tuned_rules` go on to the fused ones of ONNX Runtime. How often a rule fires follows from the architecture, so
`apply_rules` counts: a rule that no longer recognizes what a newer Keras or tf2onnx writes is an error, not a slower
file.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript.rewriter.pattern import RewriteRule

from tfgpt.errors import UserError

MICROSOFT = "com.microsoft"
# Operators that treat each position alike: products with a matrix, and what activations are made of.
ROW_WISE = {"MatMul", "Add", "Sub", "Mul", "Div", "Neg", "Max", "Min", "Relu", "Tanh", "Sigmoid", "Erf", "Exp"}


class RewriteError(UserError):
    """A rule fired another number of times than the architecture demands: the converter writes something new."""


class Rule:
    """A named rewrite.

    Args:
        count: how many places of the graph it is to be found in.
    """

    # Whether the matched nodes go at once. Where other nodes use an inner value, `rewrite` leads these uses elsewhere,
    # and what nothing uses any more goes at the end.
    remove_nodes = True

    def __init__(self, count):
        self.count = count

    @property
    def name(self):
        return type(self).__name__

    def pattern(self, op, *values):
        raise NotImplementedError(f"{self.name} has no pattern")

    def check(self, context, **values):
        """Whether the matched values are what the pattern takes them for."""
        return True

    def rewrite(self, op, **values):
        raise NotImplementedError(f"{self.name} has no replacement")

    def apply(self, model):
        """Rewrites an `onnx_ir.Model` in place, and gives the number of places."""
        rule = RewriteRule(self.pattern, self.rewrite, self.check, name=self.name, remove_nodes=self.remove_nodes)
        return rule.apply_to_model(model)


# === Standard operators ===


class PlainGather(Rule):
    """`ops.take` counts negative indices from the end by arithmetic; ONNX's Gather does so itself."""

    def pattern(self, op, table, ids, size):
        negative = op.Less(op.Cast(ids, to=ir.DataType.FLOAT), 0.0)
        from_end = op.Mul(op.Cast(negative, to=ir.DataType.INT64), op.Add(ids, size))
        from_start = op.Mul(ids, op.Cast(op.Not(negative), to=ir.DataType.INT64))
        return op.Gather(table, op.Add(from_end, from_start), axis=0)

    def check(self, context, table, size, **_):
        return _constant(size) == table.shape[0]

    def rewrite(self, op, table, ids, **_):
        return op.Gather(table, ids, axis=0)


class LayerNormalization(Rule):
    """The formula of `tfgpt.layers.LayerNormalization`: one operator since opset 17."""

    def pattern(self, op, x, scale, bias, axis, epsilon):
        centered = op.Sub(x, op.ReduceMean(x, axis, keepdims=1))
        variance = op.ReduceMean(op.Mul(centered, centered), axis, keepdims=1)
        normalized = op.Mul(centered, op.Reciprocal(op.Sqrt(op.Add(variance, epsilon))))
        return op.Add(op.Mul(normalized, scale), bias)

    def check(self, context, scale, bias, axis, epsilon, **_):
        vectors = len(scale.shape) == len(bias.shape) == 1
        return vectors and _constant(axis) == [-1] and isinstance(_constant(epsilon), float)

    def rewrite(self, op, x, scale, bias, epsilon, **_):
        return op.LayerNormalization(x, scale, bias, axis=-1, epsilon=_constant(epsilon))


class DenseToHeads(Rule):
    """Rows folded, multiplied and split into heads (B, T, heads, K): ONNX's MatMul takes (B, T, D) as it is, and
    Reshape can keep the first axes by a zero."""

    def pattern(self, op, x, kernel, bias, rows, shape):
        product = op.Add(op.MatMul(op.Reshape(x, rows), kernel), bias)
        return op.Reshape(product, op.Cast(shape, to=ir.DataType.INT64))

    def check(self, context, x, kernel, rows, shape, **_):
        return _folds_rows(rows, kernel) and _is_shape_of(shape, x, axes=4)

    def rewrite(self, op, x, kernel, bias, shape, **_):
        _, _, (heads,), (width,) = (_constant(axis) or [0] for axis in _concatenated(shape))
        product = op.Add(op.MatMul(x, kernel), bias)
        return op.Reshape(product, op.Constant(value_ints=[0, 0, heads, width]))


class DenseFromHeads(Rule):
    """Heads (B, T, H, K) joined to rows, multiplied and unfolded: the same."""

    def pattern(self, op, heads, kernel, bias, rows, shape):
        folded = op.Reshape(op.Transpose(heads, perm=[0, 2, 1, 3]), rows)
        return op.Reshape(op.Add(op.MatMul(folded, kernel), bias), op.Cast(shape, to=ir.DataType.INT64))

    def check(self, context, kernel, rows, shape, **_):
        return _folds_rows(rows, kernel) and _is_shape_of(shape, _measured(shape), axes=3)

    def rewrite(self, op, heads, kernel, bias, **_):
        width = kernel.shape[0]
        joined = op.Reshape(op.Transpose(heads, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, width]))
        return op.Add(op.MatMul(joined, kernel), bias)


class UnfoldedRows(Rule):
    """Rows folded before the first product of a feed-forward network: it takes (B, T, D) as it is, and so does all
    that follows up to `KeptRows`."""

    def pattern(self, op, x, kernel, rows):
        return op.MatMul(op.Reshape(x, rows), kernel)

    def check(self, context, kernel, rows, **_):
        return kernel.is_graph_input() and _folds_rows(rows, kernel)

    def rewrite(self, op, x, kernel, **_):
        return op.MatMul(x, kernel)


class KeptRows(Rule):
    """Rows unfolded after the last product of a feed-forward network, where `UnfoldedRows` left nothing to unfold."""

    def pattern(self, op, hidden, kernel, bias, shape):
        product = op.Add(op.MatMul(hidden, kernel), bias)
        return op.Reshape(product, op.Cast(shape, to=ir.DataType.INT64))

    def check(self, context, hidden, shape, **_):
        x = _measured(shape)
        return _is_shape_of(shape, x, axes=3) and self._leads_to(hidden, x)

    def rewrite(self, op, hidden, kernel, bias, **_):
        return op.Add(op.MatMul(hidden, kernel), bias)

    def _leads_to(self, value, x):
        """Whether `value` is computed from `x`, position by position."""
        if value is x:
            return True
        node = None if value is None else value.producer()
        return node is not None and node.op_type in ROW_WISE and any(self._leads_to(v, x) for v in node.inputs)


class TiedHead(Rule):
    """A Transpose of its own would be folded by the runtime into a second copy of the largest matrix."""

    def pattern(self, op, x, embeddings, rows):
        return op.MatMul(op.Reshape(x, rows), op.Transpose(embeddings, perm=[1, 0]))

    def check(self, context, embeddings, rows, **_):
        return _constant(rows) == [-1, embeddings.shape[1]]

    def rewrite(self, op, x, embeddings, rows):
        return op.Gemm(op.Reshape(x, rows), embeddings, transB=1)


class MaskedScores(Rule):
    """`ops.where`, which tf2onnx writes as a sum of products."""

    remove_nodes = False  # the mask's half is shared by all layers

    def pattern(self, op, mask, scores, masked):
        hidden = op.Mul(masked, op.Cast(op.Not(mask), to=ir.DataType.FLOAT))
        return op.Add(op.Mul(op.Cast(mask, to=ir.DataType.FLOAT), scores), hidden)

    def rewrite(self, op, mask, scores, masked):
        return op.Where(mask, scores, masked)


# === Operators of ONNX Runtime ===


class Attention(Rule):
    """Heads, cache, scores, softmax and mixture as one operator, whose past and present can share a buffer.

    Args:
        count: as in `Rule`.
        lengths: the values `seqlens_k` and `total_sequence_length`, which stand for the mask: keys of a row are real
            up to its length, and each query sees those before it.
    """

    remove_nodes = False

    def __init__(self, count, lengths):
        super().__init__(count)
        self.lengths = lengths

    def pattern(self, op, qkv, heads_shape, past_key, past_value, scale, mask, masked, shape):
        heads = op.Transpose(op.Reshape(qkv, heads_shape), perm=[0, 2, 1, 3])
        q, k, v = op.Split(heads, axis=1, num_outputs=3, _outputs=3)
        keys = op.Concat(past_key, k, axis=2, _outputs=["present_key"])
        values = op.Concat(past_value, v, axis=2, _outputs=["present_value"])
        scores = op.MatMul(op.Mul(q, scale), op.Transpose(keys, perm=[0, 1, 3, 2]))
        weights = op.Softmax(op.Where(mask, scores, masked), _outputs=["weights"])
        return op.Reshape(op.Transpose(op.MatMul(weights, values), perm=[0, 2, 1, 3]), shape)

    def check(self, context, mask, weights, **_):
        axis = weights.producer().attributes.get_int("axis", -1)
        return axis in (-1, 3) and _is_causal_padding_mask(mask)

    def rewrite(self, op, qkv, heads_shape, past_key, past_value, scale, present_key, present_value, **_):
        num_heads = _constant(heads_shape)[2] // 3
        y, key, value = op.GroupQueryAttention(
            *(qkv, None, None, past_key, past_value, *self.lengths),
            num_heads=num_heads,
            kv_num_heads=num_heads,
            scale=_constant(scale),
            _domain=MICROSOFT,
            _outputs=3,
        )
        for old, new in ((present_key, key), (present_value, value)):
            new.name, old.name = old.name, f"{old.name}_concatenated"
            new.type, new.shape = old.type, old.shape
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        return y


class SkipLayerNormalization(Rule):
    """The end of a sublayer (bias, residual sum) and the normalization before the next."""

    remove_nodes = False

    def pattern(self, op, x, y, y_bias, scale, bias):
        total = op.Add(x, op.Add(y, y_bias), _outputs=["total"])
        return op.LayerNormalization(total, scale, bias, axis=-1, _outputs=["normalized"])

    def check(self, context, y_bias, **_):
        return len(y_bias.shape) == 1

    def rewrite(self, op, x, y, y_bias, scale, bias, total, normalized):
        return self._fused(op, (x, y, scale, bias, y_bias), total, normalized)

    def _fused(self, op, inputs, total, normalized):
        epsilon = normalized.producer().attributes["epsilon"].as_float()
        y, _, _, new_total = op.SkipLayerNormalization(*inputs, epsilon=epsilon, _domain=MICROSOFT, _outputs=4)
        ir.convenience.replace_all_uses_with(total, new_total)
        return y


class EmbeddingLayerNormalization(SkipLayerNormalization):
    """The sum of token and position vectors, and the normalization before the first sublayer."""

    def pattern(self, op, tokens, positions, token_ids, position_ids, scale, bias):
        total = op.Add(op.Gather(tokens, token_ids), op.Gather(positions, position_ids), _outputs=["total"])
        return op.LayerNormalization(total, scale, bias, axis=-1, _outputs=["normalized"])

    def check(self, context, **_):
        return True

    def rewrite(self, op, scale, bias, total, normalized, **_):
        return self._fused(op, (*total.producer().inputs, scale, bias), total, normalized)


class FastGelu(Rule):
    """Bias and GELU in its tanh form."""

    def pattern(self, op, product, bias):
        x = op.Add(product, bias)
        cubic = op.Add(x, op.Mul(op.Mul(op.Mul(0.044715, x), x), x))
        return op.Mul(op.Mul(0.5, x), op.Add(1.0, op.Tanh(op.Mul(0.7978845608028654, cubic))))

    def check(self, context, bias, **_):
        return len(bias.shape) == 1

    def rewrite(self, op, product, bias):
        return op.FastGelu(product, bias, _domain=MICROSOFT)


class ChosenLogits(Rule):
    """Logits of the positions that are asked for only: the last one of each row, in decoding.

    Args:
        count: as in `Rule`.
        logit_indices: a value (B, M): which of the T positions of each row.
    """

    def __init__(self, count, logit_indices):
        super().__init__(count)
        self.logit_indices = logit_indices

    def pattern(self, op, x, embeddings, rows, shape):
        product = op.Gemm(op.Reshape(x, rows), embeddings, transB=1, _allow_other_attributes=False)
        return op.Reshape(product, op.Cast(shape, to=ir.DataType.INT64))

    def check(self, context, x, shape, **_):
        return _is_shape_of(shape, x, axes=3)

    def rewrite(self, op, x, embeddings, rows, **_):
        indices = op.Unsqueeze(self.logit_indices, op.Constant(value_ints=[2]))
        chosen = op.GatherND(x, indices, batch_dims=1)  # (B, M, D)
        logits = op.Gemm(op.Reshape(chosen, rows), embeddings, transB=1)
        vocabulary_size = op.Constant(value_ints=[embeddings.shape[0]])
        return op.Reshape(logits, op.Concat(op.Shape(self.logit_indices), vocabulary_size, axis=0))


class ChosenRows(Rule):
    """Moves the choice of positions up to the last attention: what follows it treats each position by itself.

    A prompt's positions but the last have done their duty once their keys and values are in the cache.
    """

    remove_nodes = False  # the normalization's other output, the residual sum, is used inside

    def pattern(self, op, x, attended, output, bias1, scale1, shift1, fc, bias2, projection, bias3, scale2, shift2, at):
        first, total = self._skip(op, "first", x, op.MatMul(attended, output), scale1, shift1, bias1)
        hidden = op.FastGelu(op.MatMul(first, fc), bias2, _domain=MICROSOFT)
        second, _ = self._skip(op, "second", total, op.MatMul(hidden, projection), scale2, shift2, bias3)
        return op.GatherND(second, at, batch_dims=1)

    def check(self, context, attended, **_):
        return attended.producer().op_type == "GroupQueryAttention"

    def rewrite(self, op, x, attended, at, first, second, **w):
        def skip(original, *inputs):
            epsilon = original.producer().attributes["epsilon"].as_float()
            y, _, _, total = op.SkipLayerNormalization(*inputs, epsilon=epsilon, _domain=MICROSOFT, _outputs=4)
            return y, total

        x, attended = (op.GatherND(value, at, batch_dims=1) for value in (x, attended))  # (B, M, D)
        y, total = skip(first, x, op.MatMul(attended, w["output"]), w["scale1"], w["shift1"], w["bias1"])
        hidden = op.FastGelu(op.MatMul(y, w["fc"]), w["bias2"], _domain=MICROSOFT)
        return skip(second, total, op.MatMul(hidden, w["projection"]), w["scale2"], w["shift2"], w["bias3"])[0]

    @staticmethod
    def _skip(op, name, *inputs):
        outputs = [name, f"{name}_mean", f"{name}_deviation", f"{name}_total"]
        y, _, _, total = op.SkipLayerNormalization(*inputs, _domain=MICROSOFT, _outputs=outputs)
        return y, total


def portable_rules(num_layers):
    """Rules that write standard operators, in order."""
    return [
        PlainGather(2),
        LayerNormalization(2 * num_layers + 1),
        DenseToHeads(num_layers),
        DenseFromHeads(num_layers),
        UnfoldedRows(num_layers),
        KeptRows(num_layers),
        TiedHead(1),
        MaskedScores(num_layers),
    ]


def tuned_rules(num_layers, has_fast_gelu, lengths, logit_indices):
    """Rules that write ONNX Runtime's own operators, after the portable ones, in order.

    Args:
        num_layers: L.
        has_fast_gelu: whether the activation is GELU in its tanh form.
        lengths: see `Attention`.
        logit_indices: see `ChosenLogits`.
    """
    return [
        Attention(num_layers, lengths),
        SkipLayerNormalization(2 * num_layers),
        EmbeddingLayerNormalization(1),
        FastGelu(num_layers if has_fast_gelu else 0),
        ChosenLogits(1, logit_indices),
        ChosenRows(1 if has_fast_gelu else 0),
    ]


def apply_rules(model, rules):
    """Rewrites an `onnx_ir.Model` in place.

    Raises:
        RewriteError: if a rule does not fire as often as it must; the message names it.
    """
    for rule in rules:
        if (count := rule.apply(model)) != rule.count:
            raise RewriteError(
                f"the rewriting rule {rule.name} fired {count} times, expected {rule.count}; the installed Keras or "
                "tf2onnx writes another graph than those it was written for"
            )
    passes.TopologicalSortPass()(model)
    passes.RemoveUnusedNodesPass()(model)


def _constant(value):
    """The number or the list that a value always has, or None."""
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy().tolist()


def _concatenated(shape):
    """The values that a shape is put together from, or none."""
    producer = shape.producer()
    return producer.inputs if producer is not None and producer.op_type == "Concat" else ()


def _folds_rows(rows, kernel):
    """Whether this shape folds all axes but that which `kernel` multiplies."""
    return _constant(rows) == [-1, kernel.shape[0]]


def _is_shape_of(shape, x, axes):
    """Whether a shape of so many axes begins with the first two of `x`."""
    lengths = _concatenated(shape)
    return x is not None and len(lengths) == axes and _is_axis(lengths[0], x, 0) and _is_axis(lengths[1], x, 1)


def _measured(shape):
    """The value whose first axis a shape that is put together begins with, or None."""
    lengths = _concatenated(shape)
    piece = lengths[0].producer() if lengths else None
    node = None if piece is None or piece.op_type != "Slice" else _without(piece.inputs[0], "Cast").producer()
    return node.inputs[0] if node is not None and node.op_type == "Shape" else None


def _is_axis(value, x, axis):
    """Whether `value` is the length of this axis of `x`: [axis : axis + 1] of its shape."""
    piece = value.producer()
    if piece is None or piece.op_type != "Slice":
        return False
    shape = _without(piece.inputs[0], "Cast").producer()
    of_x = shape is not None and shape.op_type == "Shape" and shape.inputs[0] is x
    return of_x and [_constant(bound) for bound in piece.inputs[1:3]] == [[axis], [axis + 1]]


def _is_causal_padding_mask(mask):
    """Whether a mask is `decoder_mask`'s: keys that come later and keys that are padding, and no others, are hidden."""
    both = mask.producer()
    if both is None or both.op_type != "And":
        return False
    causal, padding = (_without(value, "Slice", "Unsqueeze", "Cast") for value in both.inputs)
    comparison = causal.producer()
    if comparison is None or comparison.op_type != "LessOrEqual" or not padding.is_graph_input():
        return False
    keys, queries = (_without(value, "Unsqueeze").producer() for value in comparison.inputs)
    return keys.op_type == "Range" and queries.op_type == "Add"


def _without(value, *op_types):
    """The value behind a chain of such operators."""
    while value.producer() is not None and value.producer().op_type in op_types:
        value = value.producer().inputs[0]
    return value
