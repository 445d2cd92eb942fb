"""What is stored is what the formats' definitions say, and ONNX Runtime reads it so."""

import collections
import re
import shutil
import types

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from tfgpt.cli.main import main
from tfgpt.errors import UserError
from tfgpt.export.onnx_decoder import export_onnx
from tfgpt.export.quantization import common_block, quantize_blocks, weight_matrices, write_variant
from tfgpt.models import GPT2CausalLM
from tfgpt.models.gpt2 import hugging_face
from tfgpt.runtime.onnx_runtime import OnnxRunner, open_session
from tfgpt.text import BytePairTokenizer

INTEGERS = ("int8", "int8_weight_only", "int4")
EMBEDDINGS = "transformer.wte.weight"
PARTS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
MATRICES = [f"transformer.h.{layer}.{part}.weight" for layer in range(2) for part in PARTS] + [EMBEDDINGS]


def random_model(**settings):
    """Columns, rows and blocks of very unequal sizes, so that scales are not interchangeable."""
    model = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=0, **settings)
    rng = np.random.default_rng(3)
    for variable in model.trainable_variables:
        noise = rng.normal(0, 0.3, variable.shape)
        if len(variable.shape) == 2:
            noise *= rng.uniform(0.1, 1.5, (variable.shape[0], 1)) * rng.uniform(0.1, 1.5, variable.shape[1])
        variable.assign(variable + noise)
    return model


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Every variant of a random model, and its weights."""
    folder, model = tmp_path_factory.mktemp("quantized"), random_model()
    export_onnx(model, folder, "random")
    for variant in (*INTEGERS, "float16"):
        write_variant(folder, variant)
    weights = {name: value.numpy() for name, value in hugging_face.named_variables(model.backbone).items()}
    config = hugging_face.to_config(model.backbone)
    return types.SimpleNamespace(folder=folder, weights=weights, config=config)


def kernel_of(release, name):
    """(K, N)."""
    return release.weights[name].T if name == EMBEDDINGS else release.weights[name]


def stored(folder, variant):
    model = onnx.load(folder / f"model_{variant}.onnx")
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def dequantized(tensors, variant, name):
    """(K, N), by the definition of each format."""
    scales = tensors[f"{name}_scales"].astype(np.float64)
    if variant == "int8":
        return tensors[f"{name}_int8"] * scales  # a scale an output channel
    integers = tensors[f"{name}_{'int8' if variant == 'int8_weight_only' else variant}"]
    if variant == "int4":
        integers = np.stack([integers & 15, integers >> 4], axis=-1).reshape(*integers.shape[:2], -1)
    zero = 8 if variant == "int4" else 128
    return ((integers - float(zero)) * scales[..., None]).reshape(len(integers), -1).T


# === Blocks ===


def blocks_of_all_kinds(rng):
    rows = rng.standard_t(2, (40, 64)).astype(np.float32)
    rows[0] = 0
    rows[1, :32] = 0
    rows[2] = -np.abs(rows[2])
    rows[3] = 1e-3 * np.where(np.arange(64) % 2, 1, -1)  # the largest value stands on both sides
    rows[4, 5] = 1e4
    return rows


@pytest.mark.parametrize("block", [16, 32, 64])
@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_are_as_near_as_their_levels_allow(bits, block):
    rows, half = blocks_of_all_kinds(np.random.default_rng(0)), 2 ** (bits - 1)
    integers, scales = quantize_blocks(rows, bits, block)
    assert (integers.dtype, integers.shape) == (np.uint8, (40, 64 // block, block))
    assert (scales.dtype, scales.shape) == (np.float32, (40, 64 // block))
    assert integers.max() < 2**bits
    levels = integers.astype(np.float64) - half
    blocks = rows.reshape(integers.shape).astype(np.float64)
    error = np.abs(levels * scales[..., None] - blocks)
    inner = (levels > -half) & (levels < half - 1)
    limit = np.abs(scales[..., None]) * (0.5 + 1e-5)
    assert (error <= limit)[inner].all()
    # A value at the edge may lie past it, by the shrinkage or by the level that the other sign lacks.
    assert (error <= limit + np.abs(scales[..., None]) * (1 if bits == 8 else half * (1 / 0.85 - 1) + 1)).all()

    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[..., None], axis=-1)
    plain = np.where(largest == 0, 1, largest / -half)
    plain_error = np.square(np.clip(np.rint(blocks / plain), -half, half - 1) * plain - blocks).sum(axis=-1)
    shrunk_error = np.square(error).sum(axis=-1)
    assert (shrunk_error <= plain_error * (1 + 1e-5) + 1e-12).all()
    if bits == 4:
        assert (shrunk_error < 0.99 * plain_error).sum() > 10
    else:
        np.testing.assert_allclose(levels.min(axis=-1)[largest[..., 0] != 0], -half)  # no level is lost


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_of_zeros(bits):
    integers, scales = quantize_blocks(np.zeros((3, 32), np.float32), bits, 16)
    assert (integers == 2 ** (bits - 1)).all()
    assert np.isfinite(scales).all() and (scales != 0).all()


def test_many_rows_are_quantized_as_few_are():
    """They are worked on in pieces of 4096."""
    rows = np.random.default_rng(1).normal(size=(9000, 16)).astype(np.float32)
    integers, scales = quantize_blocks(rows, 4, 16)
    for part in (slice(0, 10), slice(4090, 4100), slice(8990, 9000)):
        some_integers, some_scales = quantize_blocks(rows[part], 4, 16)
        np.testing.assert_array_equal(integers[part], some_integers)
        np.testing.assert_array_equal(scales[part], some_scales)


@pytest.mark.parametrize(
    "widths, block",
    [((768, 3072), 128), ((64, 256), 64), ((32, 128), 32), ((96, 384), 32), ((48, 192), 16), ((256, 80), 16)],
)
def test_the_largest_block_that_divides_every_width(widths, block):
    assert common_block(widths, "int4") == block


def test_widths_that_no_block_divides():
    with pytest.raises(UserError) as error:
        common_block([96, 24, 24], "int4")
    assert str(error.value) == "int4 needs widths divisible by 16, its smallest block of weights, found 24, 96"


# === What is stored ===


@pytest.mark.parametrize("variant", INTEGERS)
def test_stored_integers_stand_for_the_weights(release, variant):
    tensors = stored(release.folder, variant)
    for name in MATRICES:
        kernel, found = kernel_of(release, name), dequantized(tensors, variant, name)
        assert found.shape == kernel.shape
        scales = np.abs(tensors[f"{name}_scales"])
        if variant == "int8":
            np.testing.assert_allclose(scales, np.abs(kernel).max(axis=0) / 127, rtol=1e-6)
            limit = 0.5 * scales
        else:
            share = 0.5 + (1.0 if variant == "int8_weight_only" else 8 * (1 / 0.85 - 1) + 1)
            limit = share * np.repeat(scales, 32, axis=1).T
        assert (np.abs(found - kernel) <= limit + 1e-6).all()
        spread = np.linalg.norm(found - kernel) / np.linalg.norm(kernel)
        assert spread < (0.12 if variant == "int4" else 0.02)


def test_a_channel_of_zeros_stays_zero(tmp_path):
    model = random_model(num_layers=1)
    kernel = model.backbone.blocks[0].feed_forward.sublayer.output_dense.kernel
    kernel.assign(kernel * (np.arange(32) != 7))
    export_onnx(model, tmp_path)
    for variant in INTEGERS:
        write_variant(tmp_path, variant)
        tensors = stored(tmp_path, variant)
        found = dequantized(tensors, variant, "transformer.h.0.mlp.c_proj.weight")
        assert np.isfinite(found).all()
        assert (found[:, 7] == 0).all() and (found[:, 6] != 0).any()


@pytest.mark.parametrize("variant", INTEGERS)
def test_what_is_no_matrix_stays_as_it_is(release, variant):
    tensors = stored(release.folder, variant)
    others = set(release.weights) - set(MATRICES)
    assert len(others) == 28 - 9
    for name in others:
        np.testing.assert_array_equal(tensors[name], release.weights[name])
    assert not set(tensors) & set(MATRICES)


@pytest.mark.parametrize("variant", INTEGERS)
def test_the_operators_of_a_variant(release, variant):
    model = onnx.load(release.folder / f"model_{variant}.onnx", load_external_data=False)
    operators = collections.Counter(node.op_type for node in model.graph.node)
    assert operators["MatMulIntegerToFloat" if variant == "int8" else "MatMulNBits"] == 9
    assert not operators["MatMul"] + operators["Gemm"]
    assert operators["GroupQueryAttention"] == 2
    if variant != "int8":
        bits = 4 if variant == "int4" else 8
        nodes = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
        attributes = [{a.name: a.i for a in node.attribute} for node in nodes]
        assert all((a["bits"], a["block_size"], a["accuracy_level"]) == (bits, 32, 4) for a in attributes)
        kernels = [weight_shape(release, node.input[1].rpartition("_")[0]) for node in nodes]
        assert [(a["K"], a["N"]) for a in attributes] == kernels


def weight_shape(release, name):
    return kernel_of(release, name).shape


@pytest.mark.parametrize("variant", [*INTEGERS, "float16"])
def test_each_tensor_is_stored_once(release, variant):
    """The tied matrix, too, and with no float32 copy of it; scales and the tensors between are counted."""
    tensors = stored(release.folder, variant)
    elements = sum(release.weights[name].size for name in MATRICES)
    others = sum(array.size for name, array in release.weights.items() if name not in MATRICES)
    if variant == "float16":
        expected = 2 * (elements + others)
    elif variant == "int8":
        expected = elements + 4 * sum(weight_shape(release, name)[1] for name in MATRICES) + 4 * others
    else:
        expected = elements * (8 if variant == "int8_weight_only" else 4) / 8 + elements / 32 * 4 + 4 * others
    size = (release.folder / f"model_{variant}.onnx.data").stat().st_size
    assert expected <= size <= expected + 64 * len(tensors)
    assert (release.folder / f"model_{variant}.onnx").stat().st_size < 40_000


@pytest.mark.parametrize("variant", [*INTEGERS, "float16"])
def test_a_variant_needs_no_other_file(release, variant, tmp_path):
    for name in (f"model_{variant}.onnx", f"model_{variant}.onnx.data"):
        shutil.copyfile(release.folder / name, tmp_path / name)
    onnx.checker.check_model(str(tmp_path / f"model_{variant}.onnx"))
    runner = OnnxRunner(release.config, open_session(tmp_path / f"model_{variant}.onnx"), variant)
    assert np.isfinite(runner.logits(np.array([[1, 2, 3]]), np.ones((1, 3), int))).all()


# === What ONNX Runtime makes of it ===


def run_nodes(model, nodes, output, feeds):
    """What some nodes of a model give by themselves."""
    used = {name for node in nodes for name in node.input}
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in used]
    dtypes = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feeds.items()}
    inputs = [helper.make_tensor_value_info(name, dtype, None) for name, dtype in dtypes.items()]
    outputs = [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "nodes", inputs, outputs, tensors)
    alone = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return onnxruntime.InferenceSession(alone.SerializeToString()).run(None, feeds)[0]


def product_of(release, variant, name, x):
    """x times a weight, by the variant's own nodes."""
    model = onnx.load(release.folder / f"model_{variant}.onnx")
    products = [node for node in model.graph.node if node.op_type in ("MatMulIntegerToFloat", "MatMulNBits")]
    [node] = [node for node in products if node.input[1].startswith(name)]
    if variant != "int8":
        return run_nodes(model, [node], node.output[0], {node.input[0]: x})
    producers = {output: node for node in model.graph.node for output in node.output}
    quantized = producers[node.input[0]]
    divided = producers[quantized.input[0]]
    [scaled] = [other for other in model.graph.node if node.output[0] in other.input]
    largest = producers[divided.input[1]]
    chain = [producers[largest.input[0]], largest, divided, quantized, node, scaled]
    constants = [producers[i] for one in chain for i in one.input if i in producers and producers[i] not in chain]
    constants = [constant for constant in constants if constant.op_type == "Constant"]
    unique = list({constant.output[0]: constant for constant in constants}.values())
    return run_nodes(model, [*unique, *chain], scaled.output[0], {divided.input[0]: x})


def looked_up(release, variant, token_ids):
    """The vectors of tokens, by the nodes that the variant has for them."""
    model = onnx.load(release.folder / f"model_{variant}.onnx")
    producers = {output: node for node in model.graph.node for output in node.output}
    sum_of_vectors = next(node for node in model.graph.node if node.op_type == "SkipLayerNormalization")
    nodes, wanted = [], [sum_of_vectors.input[0]]
    while wanted:
        node = producers.get(wanted.pop())
        if node is not None and node not in nodes:
            nodes.insert(0, node)
            wanted += node.input
    nodes = [node for node in model.graph.node if node in nodes]
    return run_nodes(model, nodes, sum_of_vectors.input[0], {"input_ids": token_ids})


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("name", [MATRICES[0], MATRICES[7], EMBEDDINGS])
@pytest.mark.parametrize("variant", INTEGERS)
def test_products_are_those_of_the_stored_integers(release, variant, name, rows):
    """Within what the quantization of the activations to 8 bits takes away."""
    weight = dequantized(stored(release.folder, variant), variant, name)
    x = np.random.default_rng(rows).normal(size=(rows, len(weight))).astype(np.float32)
    if name != EMBEDDINGS:
        x = x[None]
    found = product_of(release, variant, name, x)
    expected = x.astype(np.float64) @ weight
    assert found.shape == expected.shape
    if variant == "int8":  # a scale a row
        step = np.abs(x).max(axis=-1, keepdims=True) / 127
        limit = 0.5 * step * np.abs(weight).sum(axis=0)
    else:  # a scale for every 32 of a row
        blocks = np.abs(x).reshape(rows, -1, 32).max(axis=-1)
        step = np.repeat(blocks / 127, 32, axis=-1)
        limit = (0.5 * step @ np.abs(weight)).reshape(expected.shape)
    error = np.abs(found - expected)
    assert (error <= 1.01 * limit + 1e-5).all()
    assert np.abs(expected).max() > 20 * error.max()


@pytest.mark.parametrize("name", [MATRICES[0], MATRICES[7], EMBEDDINGS])
def test_a_row_of_int8_does_not_depend_on_the_others(release, name):
    inner = len(dequantized(stored(release.folder, "int8"), "int8", name))
    x = np.random.default_rng(0).normal(size=(5, inner)).astype(np.float32) * np.array([[1e-3, 1, 30, 0, 1]]).T
    x = x.astype(np.float32)

    def product(rows):
        found = product_of(release, "int8", name, rows if name == EMBEDDINGS else rows[None])
        return found.reshape(len(rows), -1)

    together = product(x)
    for row in (0, 1, 2, 4):
        np.testing.assert_array_equal(product(x[row : row + 1])[0], together[row])
    assert not together[3].any()  # a row of zeros


@pytest.mark.parametrize("variant", INTEGERS)
def test_looked_up_vectors_are_exactly_the_stored_ones(release, variant):
    """Out of the head's integers."""
    token_ids = np.array([[0, 299, 7], [7, 150, 31]])
    found = looked_up(release, variant, token_ids)
    weight = dequantized(stored(release.folder, variant), variant, EMBEDDINGS)
    np.testing.assert_array_equal(found, weight.T[token_ids].astype(np.float32))


@pytest.mark.parametrize("variant, limit", [("int8", 0.1), ("int8_weight_only", 0.1), ("int4", 0.5)])
def test_logits_are_near_the_float32_variants(release, variant, limit):
    tokens, mask = np.random.default_rng(4).integers(0, 300, (3, 32)), np.ones((3, 32), int)
    expected, found = (
        OnnxRunner(release.config, open_session(release.folder / f"model_{name}.onnx"), name).logits(tokens, mask)
        for name in ("float32", variant)
    )
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < limit


# === float16 ===


def test_float16(release):
    tensors = stored(release.folder, "float16")
    assert {array.dtype.name for name, array in tensors.items() if name in release.weights} == {"float16"}
    for name, array in release.weights.items():
        np.testing.assert_array_equal(tensors[name], array.astype(np.float16))
    runner = OnnxRunner(release.config, open_session(release.folder / "model_float16.onnx"), "float16")
    assert runner.cache_dtype == np.float16
    exact = OnnxRunner(release.config, open_session(release.folder / "model_float32.onnx"), "float32")
    tokens, mask = np.random.default_rng(5).integers(0, 300, (2, 24)), np.ones((2, 24), int)
    mask[0, :10] = 0
    for way in (runner.logits(tokens, mask), runner.cached_logits(tokens, mask, 12)):
        expected = exact.logits(tokens, mask)
        assert way.dtype == np.float32
        error = np.abs(way - expected)[mask == 1].max() / np.abs(expected).max()
        assert 1e-5 < error < 1e-2
    model = onnx.load(release.folder / "model_float16.onnx", load_external_data=False)
    types = {value.name: value.type.tensor_type.elem_type for value in [*model.graph.input, *model.graph.output]}
    assert types["logits"] == onnx.TensorProto.FLOAT
    assert types["past_key_values.0.key"] == types["present.1.value"] == onnx.TensorProto.FLOAT16


# === Weights that stay ===


@pytest.mark.parametrize("variant", INTEGERS)
@pytest.mark.parametrize("kept", [[MATRICES[2]], [EMBEDDINGS], MATRICES], ids=["one", "tied", "all"])
def test_kept_weights_stay_float32(release, tmp_path, variant, kept):
    for name in ("model.onnx.data", "model_float32.onnx"):
        shutil.copyfile(release.folder / name, tmp_path / name)
    write_variant(tmp_path, variant, keep=set(kept))
    tensors = stored(tmp_path, variant)
    for name in MATRICES:
        assert (name in tensors) == (name in kept)
        assert (f"{name}_scales" in tensors) == (name not in kept)
    for name in kept:
        np.testing.assert_array_equal(tensors[name], release.weights[name])
    tokens, mask = np.random.default_rng(6).integers(0, 300, (1, 32)), np.ones((1, 32), int)
    logits = {
        path: OnnxRunner(release.config, open_session(path), "float32").logits(tokens, mask)
        for path in (
            release.folder / "model_float32.onnx",
            release.folder / f"model_{variant}.onnx",
            tmp_path / f"model_{variant}.onnx",
        )
    }
    exact, without, found = logits.values()
    if kept == MATRICES:
        np.testing.assert_allclose(found, exact, atol=1e-5, rtol=0)
    assert np.abs(found - without).max() > 0


def test_the_weight_matrices_of_a_decoder(release):
    decoder = ir.load(release.folder / "model_float32.onnx")
    assert weight_matrices(decoder) == {name: weight_shape(release, name) for name in MATRICES}
    assert list(weight_matrices(decoder)) == MATRICES


# === Widths that do not fit, on the command line ===


def save_model(folder, text_file, **settings):
    tokenizer = BytePairTokenizer.train([text_file.read_text()], vocabulary_size=300)
    model = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=0, vocabulary_size=300, **settings)
    model.tokenizer = tokenizer
    model.save_to_preset(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def narrow_model(tmp_path_factory, text_file):
    """Of width 24, in heads of 8."""
    return save_model(tmp_path_factory.mktemp("narrow"), text_file, hidden_dim=24, num_heads=3, intermediate_dim=96)


@pytest.fixture(scope="module")
def odd_model(tmp_path_factory, text_file):
    """Of width 20, in heads of 5."""
    return save_model(tmp_path_factory.mktemp("odd"), text_file, hidden_dim=20, num_heads=4, intermediate_dim=80)


def export(model, out, text_file, *options):
    return main(["export", str(model), "--out", str(out), "--formats", "onnx", "--data", str(text_file), *options])


@pytest.mark.parametrize("variant", ["int4", "int8_weight_only"])
def test_blocks_that_do_not_fit_are_told_in_one_sentence(narrow_model, text_file, tmp_path, capsys, variant):
    assert export(narrow_model, tmp_path / "release", text_file, "--quantize", variant) == 2
    expected = f"tfgpt: {variant} needs widths divisible by 16, its smallest block of weights, found 24, 96"
    assert capsys.readouterr().err.strip().splitlines() == [expected]
    assert list(tmp_path.iterdir()) == []


def test_int8_needs_no_blocks(narrow_model, text_file, tmp_path):
    assert export(narrow_model, tmp_path / "release", text_file, "--quantize", "int8") == 0
    assert (tmp_path / "release" / "onnx" / "model_int8.onnx").is_file()


@pytest.mark.parametrize("variant", ["int8", "float16"])
def test_heads_that_onnx_runtimes_attention_does_not_take(odd_model, text_file, tmp_path, capsys, variant):
    assert export(odd_model, tmp_path / "release", text_file, "--quantize", variant) == 2
    assert capsys.readouterr().err.strip().splitlines() == [
        "tfgpt: the model's heads are 5 wide, expected a multiple of 8 for any ONNX variant but the portable one"
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_such_heads_has_the_portable_file_alone(odd_model, text_file, tmp_path, list_files, capsys):
    release = tmp_path / "release"
    assert export(odd_model, release, text_file) == 0
    assert list_files(release / "onnx") == ["model.onnx", "model.onnx.data"]
    capsys.readouterr()
    arguments = ["generate", str(release), "--runtime", "onnx", "--prompt", "we go", "--max_new_tokens", "4"]
    assert main([*arguments, "--variant", "portable"]) == 0
    assert capsys.readouterr().out.startswith("we go")
    assert main(arguments) == 2
    expected = f"tfgpt: {release} has no ONNX variant 'float32', expected one of those it has: portable\n"
    assert capsys.readouterr().err == expected


def test_a_text_too_short_to_measure_a_perplexity(narrow_model, text_file, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("we go " * 100)
    assert export(narrow_model, tmp_path / "release", tmp_path / "text.txt", "--quantize", "int8") == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert re.fullmatch(
        r"tfgpt: the held-out text has \d+ tokens, expected at least 512 to measure the perplexity of quantized "
        "variants; --data gives other text",
        line,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
