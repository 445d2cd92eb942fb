"""Each rule alone: on a graph that has its pattern, on graphs that nearly have it, and on the converted model."""

import collections

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxruntime
import pytest

from tfgpt.export import onnx_decoder, onnx_rules
from tfgpt.export.onnx_rules import RewriteError, Rule, apply_rules, portable_rules, tuned_rules
from tfgpt.models import GPT2CausalLM
from tfgpt.models.gpt2 import hugging_face

RNG = np.random.default_rng(0)


def floats(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def run(model, feeds):
    """Outputs by name, without any optimization of the runtime's own."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    names = {value.name for value in session.get_inputs()}
    outputs = session.run(None, {name: array for name, array in feeds.items() if name in names})
    return dict(zip((value.name for value in session.get_outputs()), outputs, strict=True))


def parsed(text):
    """A graph in ONNX's own text format."""
    proto = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]>\n' + text)
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(proto)


def applied(make_rule, model, feeds):
    """Applies a rule, compares what the graph gives before and after, and returns its operators."""
    before = run(model, feeds)
    rule = make_rule({value.name: value for value in model.graph.inputs})
    assert rule.apply(model) == 1
    passes.TopologicalSortPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    after = run(model, feeds)
    assert list(after) == list(before)
    for name, expected in before.items():
        np.testing.assert_allclose(after[name], expected, atol=1e-5, rtol=0)
    return [node.op_type for node in model.graph if node.op_type != "Constant"]


def times(make_rule, model):
    """How often a rule finds its pattern in a graph that does not have it."""
    return make_rule({value.name: value for value in model.graph.inputs}).apply(model)


# === PlainGather ===


def gather(size=5, zero="0.0", axis=0, plain="ids"):
    shape = "B,T,5" if axis == 0 else "5,B,T"
    return parsed(f"""
        g (float[5,5] table, int64[B,T] ids, int64[B,T] other) => (float[{shape}] y)
        <int64 size = {{{size}}}, float zero = {{{zero}}}> {{
            as_float = Cast<to = 1>(ids)
            negative = Less(as_float, zero)
            is_negative = Cast<to = 7>(negative)
            shifted = Add(ids, size)
            from_end = Mul(is_negative, shifted)
            positive = Not(negative)
            is_positive = Cast<to = 7>(positive)
            from_start = Mul({plain}, is_positive)
            index = Add(from_end, from_start)
            y = Gather<axis = {axis}>(table, index)
        }}""")


def plain_gather(_):
    return onnx_rules.PlainGather(1)


def test_plain_gather():
    feeds = {"table": floats(5, 5), "ids": np.array([[0, -1, 4], [-5, 2, -2]]), "other": np.zeros((2, 3), int)}
    assert applied(plain_gather, gather(), feeds) == ["Gather"]


@pytest.mark.parametrize("difference", [{"axis": 1}, {"zero": "-2.0"}, {"plain": "other"}, {"size": 3}], ids=str)
def test_what_is_no_plain_gather(difference):
    assert times(plain_gather, gather(**difference)) == 0


# === LayerNormalization ===


def normalization(axis=-1, squared="centered, centered", epsilon="float epsilon = {1e-3}", scale="float[4] scale"):
    return parsed(f"""
        g (float[B,4,4] x, {scale}, float[4] bias) => (float[B,4,4] y)
        <int64[1] axis = {{{axis}}}, {epsilon}> {{
            mean = ReduceMean<keepdims = 1>(x, axis)
            centered = Sub(x, mean)
            squares = Mul({squared})
            variance = ReduceMean<keepdims = 1>(squares, axis)
            stable = Add(variance, epsilon)
            deviation = Sqrt(stable)
            inverse = Reciprocal(deviation)
            normalized = Mul(centered, inverse)
            scaled = Mul(normalized, scale)
            y = Add(scaled, bias)
        }}""")


def layer_normalization(_):
    return onnx_rules.LayerNormalization(1)


@pytest.mark.parametrize("epsilon", ["1e-5", "1e-3", "0.3"])
def test_layer_normalization(epsilon):
    model = normalization(epsilon=f"float epsilon = {{{epsilon}}}")
    feeds = {"x": 0.1 * floats(3, 4, 4) + 1, "scale": floats(4), "bias": floats(4)}
    assert applied(layer_normalization, model, feeds) == ["LayerNormalization"]


@pytest.mark.parametrize(
    "difference",
    [
        {"axis": 1},
        {"squared": "x, centered"},
        {"epsilon": "float[4] epsilon = {1, 2, 3, 4}"},
        {"scale": "float[4,1] scale"},  # along another axis
    ],
    ids=str,
)
def test_what_is_no_layer_normalization(difference):
    assert times(layer_normalization, normalization(**difference)) == 0


# === DenseToHeads ===

CONSTANTS = """int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int32[1] width = {6}, int32[1] heads = {3},
    int32[1] head_width = {2}, int32[1] rest = {-1}"""


def lengths_of(value):
    """The first two axes of a value, as tf2onnx takes them apart."""
    return f"""
            all = Shape({value})
            axes = Cast<to = 6>(all)
            batch = Slice(axes, zero, one)
            length = Slice(axes, one, two)"""


def dense(shape="batch, length, heads, head_width", of="x", rows="-1,4"):
    axes = ",".join(f"y{i}" for i in range(shape.count(",") + 1))
    return parsed(f"""
        g (float[B,T,4] x, float[P,Q,4] other, float[{rows.split(",")[1]},6] kernel, float[6] bias) => (float[{axes}] y)
        <int64[2] rows = {{{rows}}}, {CONSTANTS}> {{{lengths_of(of)}
            folded = Reshape(x, rows)
            product = MatMul(folded, kernel)
            biased = Add(product, bias)
            as_int32 = Concat<axis = 0>({shape})
            shape = Cast<to = 7>(as_int32)
            y = Reshape(biased, shape)
        }}""")


def dense_to_heads(_):
    return onnx_rules.DenseToHeads(1)


def test_dense_to_heads():
    feeds = {"x": floats(2, 3, 4), "other": floats(2, 3, 4), "kernel": floats(4, 6), "bias": floats(6)}
    assert applied(dense_to_heads, dense(), feeds) == ["MatMul", "Add", "Reshape"]


@pytest.mark.parametrize(
    "difference",
    [
        {"shape": "batch, length, width"},
        {"shape": "rest, width"},
        {"rows": "6,4"},  # of one size only
        {"rows": "-1,2", "shape": "batch, rest, heads, head_width"},
        {"of": "other"},
        {"shape": "batch, length, heads, rest, head_width"},
        {"shape": "length, batch, heads, head_width"},
        {"shape": "batch, heads, length, head_width"},
    ],
    ids=str,
)
def test_what_is_no_dense_to_heads(difference):
    assert times(dense_to_heads, dense(**difference)) == 0


# === DenseFromHeads ===


def dense_from_heads(shape="batch, length, width", perm="0,2,1,3", rows="-1,4", second="length"):
    axes = ",".join(f"y{i}" for i in range(shape.count(",") + 1))
    return parsed(f"""
        g (float[B,T,5] x, float[P,Q,5] other, float[B,2,T,2] y_heads, float[{rows.split(",")[1]},6] kernel,
           float[6] bias) => (float[{axes}] y)
        <int64[2] rows = {{{rows}}}, {CONSTANTS}> {{{lengths_of("x")}
            all_of_other = Shape(other)
            other_axes = Cast<to = 6>(all_of_other)
            other_length = Slice(other_axes, one, two)
            joined = Transpose<perm = [{perm}]>(y_heads)
            folded = Reshape(joined, rows)
            product = MatMul(folded, kernel)
            biased = Add(product, bias)
            as_int32 = Concat<axis = 0>({shape})
            shape = Cast<to = 7>(as_int32)
            y = Reshape(biased, shape)
        }}""")


def from_heads(_):
    return onnx_rules.DenseFromHeads(1)


def test_dense_from_heads():
    feeds = {"x": floats(3, 5, 5), "other": floats(3, 5, 5), "y_heads": floats(3, 2, 5, 2)}
    feeds |= {"kernel": floats(4, 6), "bias": floats(6)}
    assert applied(from_heads, dense_from_heads(), feeds) == ["Transpose", "Reshape", "MatMul", "Add"]


@pytest.mark.parametrize(
    "difference",
    [
        {"perm": "0,1,2,3"},
        {"rows": "15,4"},
        {"rows": "-1,2", "shape": "batch, rest, width"},
        {"shape": "length, batch, width"},
        {"shape": "batch, other_length, width"},
        {"shape": "batch, length, heads, head_width"},
        {"shape": "rest, width"},
    ],
    ids=str,
)
def test_what_is_no_dense_from_heads(difference):
    assert times(from_heads, dense_from_heads(**difference)) == 0


# === UnfoldedRows and KeptRows ===


def unfolded(rows="-1,4", kernel="kernel"):
    return parsed(f"""
        g (float[B,T,4] x, float[{rows.split(",")[1]},6] kernel) => (float[P,6] y)
        <int64[2] rows = {{{rows}}}> {{
            folded = Reshape(x, rows)
            other = Neg(kernel)
            y = MatMul(folded, {kernel})
        }}""")


def unfolded_rows(_):
    return onnx_rules.UnfoldedRows(1)


def test_unfolded_rows():
    model, feeds = unfolded(), {"x": floats(2, 3, 4), "kernel": floats(4, 6)}
    before = run(model, feeds)["y"]
    assert unfolded_rows(None).apply(model) == 1
    model.graph.outputs[0].shape = None  # it has its axes again
    passes.RemoveUnusedNodesPass()(model)
    assert [node.op_type for node in model.graph] == ["MatMul"]
    np.testing.assert_allclose(run(model, feeds)["y"].reshape(before.shape), before, atol=1e-6)


@pytest.mark.parametrize("difference", [{"rows": "6,4"}, {"kernel": "other"}], ids=str)
def test_what_are_no_unfolded_rows(difference):
    assert times(unfolded_rows, unfolded(**difference)) == 0


def kept(shape="batch, length, width", of="x", hidden="active", activation="Tanh(inner)"):
    axes = ",".join(f"y{i}" for i in range(shape.count(",") + 1))
    return parsed(f"""
        g (float[B,T,4] x, float[B,T,4] other, float[4,4] first, float[4,6] kernel, float[6] bias) => (float[{axes}] y)
        <{CONSTANTS}> {{{lengths_of(of)}
            inner = MatMul(x, first)
            activated = {activation}
            active = Mul(inner, activated)
            alone = Tanh(other)
            product = MatMul({hidden}, kernel)
            biased = Add(product, bias)
            as_int32 = Concat<axis = 0>({shape})
            shape = Cast<to = 7>(as_int32)
            y = Reshape(biased, shape)
        }}""")


def kept_rows(_):
    return onnx_rules.KeptRows(1)


def test_kept_rows():
    feeds = {"x": floats(2, 3, 4), "other": floats(2, 3, 4)}
    feeds |= {"first": floats(4, 4), "kernel": floats(4, 6), "bias": floats(6)}
    assert applied(kept_rows, kept(), feeds) == ["MatMul", "Tanh", "Mul", "MatMul", "Add"]


@pytest.mark.parametrize(
    "difference",
    [
        {"shape": "length, batch, width"},
        {"shape": "batch, length, heads, head_width"},
        {"shape": "rest, width"},
        {"of": "other"},
        {"hidden": "alone"},
        {"hidden": "activated", "activation": "Transpose<perm = [1, 0, 2]>(inner)"},
    ],
    ids=str,
)
def test_what_are_no_kept_rows(difference):
    assert times(kept_rows, kept(**difference)) == 0


# === TiedHead ===


def head(perm="1, 0", rows="-1,4"):
    axes = ",".join(f"y{i}" for i in range(rows.count(",") + 1))
    return parsed(f"""
        g (float[B,T,4] x, float[4,4] embeddings) => (float[{axes}] y)
        <int64[{rows.count(",") + 1}] rows = {{{rows}}}> {{
            folded = Reshape(x, rows)
            kernel = Transpose<perm = [{perm}]>(embeddings)
            y = MatMul(folded, kernel)
        }}""")


def tied_head(_):
    return onnx_rules.TiedHead(1)


def test_tied_head():
    assert applied(tied_head, head(), {"x": floats(2, 3, 4), "embeddings": floats(4, 4)}) == ["Reshape", "Gemm"]


@pytest.mark.parametrize("difference", [{"perm": "0, 1"}, {"rows": "3,2,4"}], ids=str)
def test_what_is_no_tied_head(difference):
    assert times(tied_head, head(**difference)) == 0


# === MaskedScores ===


def masking(inverted="mask", chosen="mask, scores"):
    return parsed(f"""
        g (bool[B,1,T,S] mask, bool[B,1,T,S] other, float[B,H,T,S] scores) => (float[B,H,T,S] y)
        <float masked = {{-1e9}}> {{
            hides = Not({inverted})
            hidden_share = Cast<to = 1>(hides)
            hidden = Mul(masked, hidden_share)
            share = Cast<to = 1>({chosen.split(",")[0]})
            seen = Mul(share, scores)
            y = Add(seen, hidden)
        }}""")


def masked_scores(_):
    return onnx_rules.MaskedScores(1)


def test_masked_scores():
    masks = {name: RNG.random((2, 1, 3, 4)) < 0.5 for name in ("mask", "other")}
    assert applied(masked_scores, masking(), {**masks, "scores": floats(2, 2, 3, 4)}) == ["Where"]


@pytest.mark.parametrize("difference", [{"inverted": "other"}, {"chosen": "other, scores"}], ids=str)
def test_what_are_no_masked_scores(difference):
    assert times(masked_scores, masking(**difference)) == 0


# === Attention ===


def attention(
    keys="past_key, k",
    values="past_value, v",
    scaled="q",
    split="0, 2, 1, 3",
    softmax=-1,
    mixed="weights, present_value",
    parts="q, k, v",
    causal="LessOrEqual(key_row, query_column)",
    mask="And(not_later, not_padding)",
):
    return parsed(f"""
        g (float[B,T,48] qkv, float[B,2,P,8] past_key, float[B,2,P,8] past_value, int64[B,S] attention_mask,
           int64 past, int64 total, int32[B] seqlens_k, int32 total_sequence_length)
          => (float[B,T,16] y, float[B,2,S,8] present_key, float[B,2,S,8] present_value)
        <int64[4] heads_shape = {{0, 0, 6, 8}}, float scale = {{0.35}}, float masked = {{-1e9}},
         int64[3] shape = {{0, 0, 16}}, int64 zero = {{0}}, int64 one = {{1}},
         int64[1] first = {{0}}, int64[1] second = {{1}}, int64[2] front = {{0, 1}}, int64[2] middle = {{1, 2}}> {{
            new = Sub(total, past)
            numbers = Range(zero, new, one)
            queries = Add(numbers, past)
            keys = Range(zero, total, one)
            query_column = Unsqueeze(queries, second)
            key_row = Unsqueeze(keys, first)
            causal = {causal}
            not_later = Unsqueeze(causal, front)
            real = Cast<to = 9>(attention_mask)
            not_padding = Unsqueeze(real, middle)
            mask = {mask}
            all = Reshape(qkv, heads_shape)
            heads = Transpose<perm = [{split}]>(all)
            {parts} = Split<axis = 1, num_outputs = 3>(heads)
            scaled = Mul({scaled}, scale)
            present_key = Concat<axis = 2>({keys})
            present_value = Concat<axis = 2>({values})
            turned = Transpose<perm = [0, 1, 3, 2]>(present_key)
            scores = MatMul(scaled, turned)
            seen = Where(mask, scores, masked)
            weights = Softmax<axis = {softmax}>(seen)
            mixture = MatMul({mixed})
            rows = Transpose<perm = [0, 2, 1, 3]>(mixture)
            y = Reshape(rows, shape)
        }}""")


def attention_rule(inputs):
    return onnx_rules.Attention(1, [inputs["seqlens_k"], inputs["total_sequence_length"]])


@pytest.mark.parametrize("rows, past, new", [(2, 0, 5), (2, 5, 1), (1, 5, 3), (3, 0, 1)])
def test_attention(rows, past, new):
    """Prompts, steps with a past, and a piece of a prompt behind another, which ONNX Runtime takes of one row."""
    total = past + new
    feeds = {
        "qkv": floats(rows, new, 48),
        "past_key": floats(rows, 2, past, 8),
        "past_value": floats(rows, 2, past, 8),
        "attention_mask": np.ones((rows, total), np.int64),
        "past": np.array(past),
        "total": np.array(total),
        "seqlens_k": np.full(rows, total - 1, np.int32),
        "total_sequence_length": np.array(total, np.int32),
    }
    assert applied(attention_rule, attention(), feeds) == ["GroupQueryAttention"]


@pytest.mark.parametrize(
    "difference",
    [
        {"keys": "k, past_key"},
        {"values": "v, past_value"},
        {"scaled": "k"},
        {"split": "0, 2, 1, 3", "parts": "k, q, v"},
        {"parts": "q, v, k"},
        {"softmax": 2},
        {"causal": "Less(key_row, query_column)"},
        {"causal": "GreaterOrEqual(key_row, query_column)"},
        {"causal": "LessOrEqual(query_column, key_row)"},
        {"mask": "Or(not_later, not_padding)"},
        {"mask": "And(not_padding, not_padding)"},  # sees what comes later
        {"mask": "And(not_later, not_later)"},  # sees padding
    ],
    ids=str,
)
def test_what_is_no_attention(difference):
    assert times(attention_rule, attention(**difference)) == 0


# === SkipLayerNormalization and EmbeddingLayerNormalization ===


def residual(total="x, biased", axis=-1, biased="y, y_bias", y_bias="4", scale="4"):
    return parsed(f"""
        g (float[B,T,4] x, float[B,T,4] y, float[{y_bias}] y_bias, float[{scale}] scale, float[{scale}] bias)
          => (float[B,T,4] normalized, float[B,T,4] sum)
        {{
            biased = Add({biased})
            total = Add({total})
            normalized = LayerNormalization<epsilon = 0.01, axis = {axis}>(total, scale, bias)
            sum = Identity(total)
        }}""")


def skip_layer_normalization(_):
    return onnx_rules.SkipLayerNormalization(1)


def test_skip_layer_normalization():
    feeds = {"x": floats(2, 3, 4), "y": floats(2, 3, 4)}
    feeds |= {"y_bias": floats(4), "scale": floats(4), "bias": floats(4)}
    assert applied(skip_layer_normalization, residual(), feeds) == ["SkipLayerNormalization", "Identity"]


@pytest.mark.parametrize(
    "difference",
    [
        {"axis": -2, "scale": "T,4"},
        {"total": "x, y"},
        {"total": "biased, x"},  # the sum of two sublayers, of which the first has the bias
        {"y_bias": "B,T,4"},  # a sum of three
    ],
    ids=str,
)
def test_what_is_no_skip_layer_normalization(difference):
    assert times(skip_layer_normalization, residual(**difference)) == 0


def embedding(sum="Add", axis=-1, position_axis=0, positions="B,T"):
    return parsed(f"""
        g (float[4,4] tokens, float[4,4] positions, int64[B,T] token_ids, int64[{positions}] position_ids,
           float[4] scale, float[4] bias) => (float[B,y1,y2] normalized, float[B,y1,y2] sum)
        {{
            token = Gather<axis = 0>(tokens, token_ids)
            position = Gather<axis = {position_axis}>(positions, position_ids)
            total = {sum}(token, position)
            normalized = LayerNormalization<epsilon = 0.01, axis = {axis}>(total, scale, bias)
            sum = Identity(total)
        }}""")


def embedding_layer_normalization(_):
    return onnx_rules.EmbeddingLayerNormalization(1)


def test_embedding_layer_normalization():
    ids = {name: RNG.integers(0, 4, (2, 3)) for name in ("token_ids", "position_ids")}
    tables = {"tokens": floats(4, 4), "positions": floats(4, 4), "scale": floats(4), "bias": floats(4)}
    operators = applied(embedding_layer_normalization, embedding(), {**ids, **tables})
    assert operators == ["Gather", "Gather", "SkipLayerNormalization", "Identity"]


@pytest.mark.parametrize("difference", [{"sum": "Sub"}, {"axis": 2}], ids=str)
def test_what_is_no_embedding_layer_normalization(difference):
    assert times(embedding_layer_normalization, embedding(**difference)) == 0


# === FastGelu ===


def gelu(cubic="0.044715", factor="0.7978845608028654", half="0.5", one="1.0", scaled="x", bias="4"):
    return parsed(f"""
        g (float[B,T,4] product, float[{bias}] bias) => (float[B,T,4] y)
        <float cubic = {{{cubic}}}, float factor = {{{factor}}}, float half = {{{half}}}, float one = {{{one}}}> {{
            x = Add(product, bias)
            x1 = Mul(cubic, x)
            x2 = Mul(x1, x)
            x3 = Mul(x2, x)
            sum = Add(x, x3)
            inside = Mul(factor, sum)
            tanh = Tanh(inside)
            share = Add(one, tanh)
            halved = Mul(half, {scaled})
            y = Mul(halved, share)
        }}""")


def fast_gelu(_):
    return onnx_rules.FastGelu(1)


def test_fast_gelu():
    assert applied(fast_gelu, gelu(), {"product": 3 * floats(2, 3, 4), "bias": floats(4)}) == ["FastGelu"]


@pytest.mark.parametrize(
    "difference",
    [
        {"cubic": "0.0447"},
        {"factor": "0.7979"},
        {"half": "0.51"},
        {"one": "1.001"},
        {"scaled": "product"},
        {"bias": "B,T,4"},
    ],
    ids=str,
)
def test_what_is_no_fast_gelu(difference):
    assert times(fast_gelu, gelu(**difference)) == 0


# === ChosenLogits ===


def logits(gemm="transB = 1", shape="batch, length, size", embeddings="5,4"):
    return parsed(f"""
        g (float[B,T,4] hidden, float[4] gamma, float[{embeddings}] embeddings, int64[B,M] logit_indices)
          => (float[y0,y1,5] y)
        <int64[2] rows = {{-1, 4}}, int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}},
         int32[1] size = {{5}}> {{
            x = Mul(hidden, gamma)
            folded = Reshape(x, rows)
            product = Gemm<{gemm}>(folded, embeddings)
            all = Shape(x)
            axes = Cast<to = 6>(all)
            batch = Slice(axes, zero, one)
            length = Slice(axes, one, two)
            as_int32 = Concat<axis = 0>({shape})
            shape = Cast<to = 7>(as_int32)
            y = Reshape(product, shape)
        }}""")


def chosen_logits(inputs):
    return onnx_rules.ChosenLogits(1, inputs["logit_indices"])


@pytest.mark.parametrize("indices", [[[2], [0]], [[0, 1, 2], [0, 1, 2]], [[1, 1], [2, 0]]], ids=str)
def test_chosen_logits(indices):
    model, indices = logits(), np.array(indices)
    feeds = {"hidden": floats(2, 3, 4), "gamma": floats(4), "embeddings": floats(5, 4), "logit_indices": indices}
    [expected] = run(model, feeds).values()
    rule = chosen_logits({value.name: value for value in model.graph.inputs})
    assert rule.apply(model) == 1  # and not again in what it wrote
    passes.TopologicalSortPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    [found] = run(model, feeds).values()
    np.testing.assert_allclose(found, np.take_along_axis(expected, indices[:, :, None], axis=1), atol=1e-6, rtol=0)
    operators = [node.op_type for node in model.graph]
    assert operators.index("GatherND") < operators.index("Gemm")  # what is not asked for is not multiplied


@pytest.mark.parametrize(
    "difference",
    [
        {"gemm": "transB = 0", "embeddings": "4,5"},
        {"gemm": "transB = 1, alpha = 0.5"},
        {"shape": "length, batch, size"},
    ],
    ids=str,
)
def test_what_are_no_chosen_logits(difference):
    assert times(chosen_logits, logits(**difference)) == 0


# === ChosenRows ===


def last_sublayers(source="attended", residual="total", of="normalized", projected="hidden"):
    return parsed(f"""
        g (float[B,T,16] x, float[B,T,48] qkv, float[B,2,P,8] past_key, float[B,2,P,8] past_value,
           int32[B] seqlens_k, int32 total_sequence_length, int64[B,M,1] at,
           float[16,16] output, float[16,16] fc, float[16,16] projection,
           float[16] bias1, float[16] bias2, float[16] bias3,
           float[16] scale1, float[16] offset1, float[16] scale2, float[16] offset2)
          => (float[B,M,16] chosen)
        {{
            attended, present_key, present_value = com.microsoft.GroupQueryAttention
                <num_heads = 2, kv_num_heads = 2, scale = 0.35>
                (qkv, , , past_key, past_value, seqlens_k, total_sequence_length)
            doubled = Add(attended, attended)
            mixed = MatMul({source}, output)
            first, m1, d1, total = com.microsoft.SkipLayerNormalization
                <epsilon = 0.01> (x, mixed, scale1, offset1, bias1)
            wide = MatMul(first, fc)
            hidden = com.microsoft.FastGelu(wide, bias2)
            narrow = MatMul({projected}, projection)
            normalized, m2, d2, last_total = com.microsoft.SkipLayerNormalization
                <epsilon = 0.2> ({residual}, narrow, scale2, offset2, bias3)
            chosen = GatherND<batch_dims = 1>({of}, at)
        }}""")


def chosen_rows(_):
    return onnx_rules.ChosenRows(1)


@pytest.mark.parametrize("at", [[[2], [0]], [[1, 1], [2, 0]]], ids=str)
def test_chosen_rows(at):
    feeds = {"x": floats(2, 3, 16), "qkv": floats(2, 3, 48), "at": np.array(at)[:, :, None]}
    feeds |= {"past_key": floats(2, 2, 0, 8), "past_value": floats(2, 2, 0, 8)}
    feeds |= {"seqlens_k": np.full(2, 2, np.int32), "total_sequence_length": np.array(3, np.int32)}
    feeds |= {name: floats(16, 16) / 4 for name in ("output", "fc", "projection")}
    feeds |= {name: floats(16) for name in ("bias1", "bias2", "bias3", "scale1", "offset1", "scale2", "offset2")}
    operators = applied(chosen_rows, last_sublayers(), feeds)
    assert operators[0] == "GroupQueryAttention" and operators[1:3] == ["GatherND"] * 2
    sublayers = ["MatMul", "SkipLayerNormalization", "MatMul", "FastGelu", "MatMul", "SkipLayerNormalization"]
    assert [operator for operator in operators[1:] if operator != "GatherND"] == sublayers


@pytest.mark.parametrize(
    "difference",
    [
        {"source": "doubled"},  # not the attention itself
        {"residual": "x"},
        {"residual": "first"},
        {"of": "last_total"},
        {"projected": "wide"},
    ],
    ids=str,
)
def test_what_are_no_chosen_rows(difference):
    assert times(chosen_rows, last_sublayers(**difference)) == 0


# === The converted model ===


@pytest.fixture(scope="module")
def model():
    """All weights far from 0 and 1, or a term left out would make no difference."""
    model = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=0)
    for variable in model.trainable_variables:
        variable.assign(variable + RNG.normal(0, 0.3, variable.shape))
    return model


@pytest.fixture(scope="module")
def converted(model):
    """What tf2onnx writes, before any rule."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_decoder, "apply_rules", lambda decoder, rules: None)
        return ir.to_proto(onnx_decoder.convert(model))


@pytest.fixture(scope="module")
def portable(model):
    return ir.to_proto(onnx_decoder.convert(model))


def model_feeds(model, past, new, rows=2):
    shape = (rows, new)
    return {
        "input_ids": RNG.integers(0, 300, shape),
        "attention_mask": np.ones((rows, past + new), np.int64),
        "position_ids": np.tile(np.arange(past, past + new), (rows, 1)),
        "seqlens_k": np.full(rows, past + new - 1, np.int32),
        "total_sequence_length": np.array(past + new, np.int32),
        "logit_indices": np.tile(np.arange(new), (rows, 1)),
        **{
            f"past_key_values.{i}.{part}": floats(rows, 2, past, 16)
            for i in range(model.backbone.num_layers)
            for part in ("key", "value")
        },
        **{name: variable.numpy() for name, variable in hugging_face.named_variables(model.backbone).items()},
    }


def assert_same(found, expected):
    assert list(found) == list(expected)
    assert np.abs(expected["logits"]).max() > 3
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=2e-5, rtol=0)


@pytest.mark.parametrize("number", range(8), ids=[rule.name for rule in portable_rules(2)])
def test_each_rule_fires_in_the_converted_model(model, converted, number):
    decoder, rules = ir.from_proto(converted), portable_rules(2)
    for rule in rules[:number]:
        rule.apply(decoder)
    feeds = model_feeds(model, past=4, new=3)
    feeds["attention_mask"][0, :2] = 0
    expected = run(decoder, feeds)
    assert rules[number].apply(decoder) == rules[number].count > 0
    passes.TopologicalSortPass()(decoder)
    assert_same(run(decoder, feeds), expected)


@pytest.mark.parametrize("number", range(6), ids=[rule.name for rule in tuned_rules(2, True, [], None)])
def test_each_rule_fires_in_the_portable_decoder(model, portable, number):
    decoder = ir.from_proto(portable)
    lengths = [onnx_decoder._input("seqlens_k", ir.DataType.INT32, ["batch_size"])]
    lengths += [onnx_decoder._input("total_sequence_length", ir.DataType.INT32, [])]
    indices = onnx_decoder._input("logit_indices", ir.DataType.INT64, ["batch_size", "num_logits"])
    decoder.graph.inputs.extend([*lengths, indices])
    decoder.graph.outputs[0].shape = None  # there may be fewer logits than tokens
    rules = tuned_rules(2, True, lengths, indices)
    for rule in rules[:number]:
        rule.apply(decoder)
    passes.TopologicalSortPass()(decoder)
    feeds = model_feeds(model, past=5, new=1)
    expected = run(decoder, feeds)
    assert rules[number].apply(decoder) == rules[number].count > 0
    passes.TopologicalSortPass()(decoder)
    passes.RemoveUnusedNodesPass()(decoder)
    assert_same(run(decoder, feeds), expected)


def test_the_portable_decoder_has_standard_operators_only(portable):
    assert [(opset.domain, opset.version) for opset in portable.opset_import] == [("", 18)]
    assert {node.domain for node in portable.graph.node} == {""}
    operators = collections.Counter(node.op_type for node in portable.graph.node)
    expected = {"LayerNormalization": 5, "MatMul": 4 * 2 + 2 * 2, "Gemm": 1, "Softmax": 2, "Where": 2, "Gather": 2}
    assert {name: operators[name] for name in expected} == expected
    assert not {"Erf", "ReduceMean", "Less", "Neg"} & set(operators)  # of what the rules took away


@pytest.mark.parametrize("layers, activation", [(2, "gelu_tanh"), (1, "gelu_tanh"), (3, "relu")])
def test_what_the_tuned_decoder_is_made_of(tmp_path, layers, activation):
    model = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, num_layers=layers, activation=activation)
    decoder = onnx_decoder.convert(model)
    onnx_decoder.bind_weights(decoder, hugging_face.named_variables(model.backbone), tmp_path / "weights")
    onnx_decoder.tune(decoder, model.backbone)
    operators = collections.Counter(node.op_type for node in decoder.graph if node.domain == "com.microsoft")
    expected = {"GroupQueryAttention": layers, "SkipLayerNormalization": 2 * layers + 1}
    assert operators == expected | ({"FastGelu": layers} if activation == "gelu_tanh" else {})
    assert dict(decoder.opset_imports) == {"": 18, "com.microsoft": 1}
    standard = collections.Counter(node.op_type for node in decoder.graph if not node.domain)
    assert (standard["Gemm"], standard["MatMul"], standard["Gather"]) == (1, 4 * layers, 2)
    assert not {"LayerNormalization", "Softmax", "Transpose", "Split", "Where", "Tanh"} & set(standard)


# === Counting ===


@pytest.mark.parametrize("layers", [1, 3])
def test_a_rule_that_fires_another_number_of_times_is_named(converted, layers):
    with pytest.raises(RewriteError) as error:
        apply_rules(ir.from_proto(converted), portable_rules(layers))
    assert str(error.value) == (
        f"the rewriting rule LayerNormalization fired 5 times, expected {2 * layers + 1}; the installed Keras or "
        "tf2onnx writes another graph than those it was written for"
    )


@pytest.mark.parametrize("name", [rule.name for rule in portable_rules(2)])
def test_a_rule_that_does_not_fire_is_named(converted, name):
    """Each of them, were Keras to write something else in its place."""
    rules = portable_rules(2)
    [broken] = [rule for rule in rules if rule.name == name]
    broken.check = lambda context, **values: False
    with pytest.raises(RewriteError, match=f"the rewriting rule {name} fired 0 times, expected {broken.count}; "):
        apply_rules(ir.from_proto(converted), rules)


def test_a_tuned_rule_that_fires_too_often_is_named(model):
    """Of a model whose activation is said to be another."""
    decoder = onnx_decoder.convert(model)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RewriteError) as error:
        patch.setattr(model.backbone, "activation", "relu")
        onnx_decoder.tune(decoder, model.backbone)
    assert "the rewriting rule FastGelu fired 2 times, expected 0; " in str(error.value)


def test_a_rule_needs_a_pattern_and_a_replacement():
    with pytest.raises(NotImplementedError, match="Rule has no pattern"):
        Rule(1).pattern(None)
    with pytest.raises(NotImplementedError, match="Rule has no replacement"):
        Rule(1).rewrite(None)
