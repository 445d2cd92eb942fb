"""Every way in which an artifact can stop being the model must fail the parity check, and say where."""

import contextlib
import itertools
import re
import shutil
import types

import numpy as np
import onnx
import pytest
from keras import ops

from tfgpt.export import ParityError, export_release, onnx_decoder, prove_release
from tfgpt.export.onnx_rules import RewriteError
from tfgpt.export.release import load_for_export
from tfgpt.export.saved_model import export_saved_model
from tfgpt.generation import decoding
from tfgpt.layers import MultiHeadAttention
from tfgpt.runtime import onnx_runtime

DIFFERENCE = (
    r"the largest logit difference is \d\.\d\de[+-]\d\d of max\(1, \|logit\|\) = [\d.]+, expected at most 1e-04"
)
PERPLEXITY = r"the perplexity is [\d.]+, [\d.]+% above [\d.]+, expected at most \d+\.\d%"
TOKEN = r"the greedy continuation has token \d+, expected \d+"
LOGITS = ("one pass", "prefill then decode")
CACHED = ("prefill then decode", "cache")
SHARING = ("onnx", "onnx/float32")  # the portable and the tuned file have the same weights
QUANTIZED = ("onnx/int8", "onnx/int4")
CACHE = r"the cache moves a logit by .*, expected at most \de-\d\d"
DIFFERENCE_IN_HALF = f"({DIFFERENCE.replace('1e-04', '2e-02')}|{PERPLEXITY}|{CACHE})"


def test_the_undamaged_release_passes(exported, prove):
    assert prove(exported.path) == (0, "")


def test_the_command_says_where_in_one_sentence_and_exits_with_1(exported, tmp_path, onnx_weights, prove):
    release = shutil.copytree(
        exported.path, tmp_path / "copy", ignore=shutil.ignore_patterns("model_int*", "model_float16*")
    )
    with onnx_weights(release / "onnx" / "model.onnx").edit("transformer.h.0.mlp.c_proj.weight") as weight:
        weight[5, 6] += 0.5
    code, stderr = prove(release)
    assert code == 1
    where = rf"({'|'.join(SHARING)}), ({'|'.join(LOGITS)}), prompt \d+, position \d+"
    lines = stderr.splitlines()
    assert re.fullmatch(f"tfgpt: parity failed: {where}: {DIFFERENCE}", lines[0]), stderr
    assert re.fullmatch(r"tfgpt: and \d+ more breaches", lines[1])
    assert len(lines) == 2


# === Weights ===


@pytest.mark.parametrize(
    "name, place",
    [
        ("transformer.wte.weight", (-1, 3)),  # of a token that is in no prompt, but among the answers
        ("transformer.wpe.weight", (-1, 0)),  # of the window's last position
        ("transformer.h.0.attn.c_attn.weight", (4, 70)),
        ("transformer.h.1.mlp.c_fc.bias", (5,)),
        ("transformer.ln_f.weight", (31,)),
    ],
)
def test_one_weight_changed_in_the_onnx_data(release_with, onnx_weights, assert_breach, name, place):
    release = release_with("onnx")
    with onnx_weights(release / "onnx" / "model.onnx").edit(name) as weight:
        weight[place] += 0.5
    for artifact in SHARING:
        assert_breach(release, artifact, LOGITS, DIFFERENCE)


def test_a_nan_in_the_onnx_data(release_with, onnx_weights, assert_breach):
    release = release_with("onnx")
    with onnx_weights(release / "onnx" / "model.onnx").edit("transformer.h.1.attn.c_proj.bias") as weight:
        weight[0] = np.nan
    for artifact in SHARING:
        assert_breach(release, artifact, LOGITS, DIFFERENCE.replace(r"\d\.\d\de[+-]\d\d", "inf"))


@pytest.mark.parametrize("index", [0, 7])
def test_one_variable_changed_in_the_saved_model(release_with, reference, assert_breach, index):
    release = release_with("saved_model")
    variable = reference.model.trainable_variables[index]
    value = variable.numpy()
    damaged = value.copy()
    damaged.flat[value.size // 2] += 0.5
    shutil.rmtree(release / "saved_model" / "served" / "1")
    variable.assign(damaged)
    try:
        export_saved_model(reference.model, release / "saved_model" / "served" / "1")
    finally:
        variable.assign(value)
    assert_breach(release, "saved_model", LOGITS, DIFFERENCE)


# === Integers and their scales ===


def most_frequent(tokens):
    return int(np.bincount(tokens).argmax())


@pytest.mark.parametrize("artifact", QUANTIZED)
def test_a_token_whose_block_of_integers_is_zero(release_with, onnx_weights, reference, assert_breach, artifact):
    release, variant = release_with("onnx"), artifact.removeprefix("onnx/")
    token = most_frequent(reference.tokens)
    with onnx_weights(release / "onnx" / f"model_{variant}.onnx").edit(f"transformer.wte.weight_{variant}") as integers:
        if variant == "int8":
            integers[:, token] = 0
        else:
            assert integers.shape[1:] == (1, 16)  # one block of 32
            integers[token, 0] = 0x88  # two of the 16 levels' middle
    assert_breach(release, artifact, ("perplexity", "prefill then decode"), PERPLEXITY)


@pytest.mark.parametrize("artifact", QUANTIZED)
def test_a_token_whose_scale_is_doubled(release_with, onnx_weights, reference, assert_breach, artifact):
    release, variant = release_with("onnx"), artifact.removeprefix("onnx/")
    with onnx_weights(release / "onnx" / f"model_{variant}.onnx").edit("transformer.wte.weight_scales") as scales:
        scales[most_frequent(reference.tokens)] *= 2
    assert_breach(release, artifact, ("perplexity", "prefill then decode"), PERPLEXITY)


@pytest.mark.parametrize("artifact", QUANTIZED)
def test_scales_in_another_order(release_with, onnx_weights, assert_breach, artifact):
    release, variant = release_with("onnx"), artifact.removeprefix("onnx/")
    weights = onnx_weights(release / "onnx" / f"model_{variant}.onnx")
    for layer, kernel in itertools.product(range(2), ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")):
        with weights.edit(f"transformer.h.{layer}.{kernel}.weight_scales") as scales:
            scales[:] = scales[::-1].copy()
    assert_breach(release, artifact, ("perplexity", "prefill then decode"), PERPLEXITY)


def test_a_scale_that_is_nan(release_with, onnx_weights, measure):
    release = release_with("onnx")
    with onnx_weights(release / "onnx" / "model_int8.onnx").edit("transformer.wte.weight_scales") as scales:
        scales[3] = np.nan  # of a token that is in no text: its logit is NaN everywhere
    report = measure(release, "onnx/int8")
    assert {breach.check for breach in report.breaches} >= {"perplexity", "prefill then decode"}


# === Axes ===


def test_a_transposed_kernel_in_the_onnx_data(release_with, onnx_weights, assert_breach):
    release = release_with("onnx")
    with onnx_weights(release / "onnx" / "model.onnx").edit("transformer.h.0.attn.c_proj.weight") as kernel:
        assert kernel.shape == (32, 32)
        kernel[:] = kernel.T.copy()
    for artifact in SHARING:
        assert_breach(release, artifact, LOGITS, DIFFERENCE)


@contextlib.contextmanager
def edited(path):
    """Yields a graph whose changes are written."""
    model = onnx.load(path, load_external_data=False)
    yield model.graph
    path.write_bytes(model.SerializeToString())


def test_keys_and_values_swapped_in_the_onnx_graph(release_with, assert_breach):
    """In one layer: every shape stays."""
    release = release_with("onnx")
    with edited(release / "onnx" / "model.onnx") as graph:
        split = next(node for node in graph.node if node.op_type == "Split")
        assert len(split.output) == 3
        split.output[1], split.output[2] = split.output[2], split.output[1]
    assert_breach(release, "onnx", LOGITS, DIFFERENCE)


@pytest.mark.parametrize("artifact", [*SHARING, "onnx/float16", *QUANTIZED])
def test_keys_and_values_swapped_in_one_layers_weights(release_with, onnx_weights, assert_breach, artifact):
    release, variant = release_with("onnx"), artifact.removeprefix("onnx").removeprefix("/")
    quantized = artifact in QUANTIZED
    weights = onnx_weights(release / "onnx" / (f"model_{variant}.onnx" if variant else "model.onnx"))
    messages = dict.fromkeys(SHARING, DIFFERENCE) | {"onnx/float16": DIFFERENCE_IN_HALF}
    name = "transformer.h.0.attn.c_attn"
    for part in (f"weight_{variant}", "weight_scales", "bias") if quantized else ("weight", "bias"):
        with weights.edit(f"{name}.{part}") as tensor:
            heads = tensor if variant == "int4" or tensor.ndim == 1 else tensor.T  # (96, …)
            assert len(heads) == 96
            heads[32:64], heads[64:] = heads[64:].copy(), heads[32:64].copy()
    checks = LOGITS if artifact in SHARING else (*LOGITS, "perplexity")
    assert_breach(release, artifact, checks, messages.get(artifact, PERPLEXITY))


@pytest.mark.parametrize("variant", ["float32", "float16", "int8", "int4"])
def test_past_keys_and_values_swapped_in_a_tuned_graph(release_with, assert_breach, variant):
    """A prompt, which has no past, does not tell."""
    release = release_with("onnx")
    with edited(release / "onnx" / f"model_{variant}.onnx") as graph:
        attention = next(node for node in graph.node if node.op_type == "GroupQueryAttention")
        assert list(attention.input[3:5]) == ["past_key_values.0.key", "past_key_values.0.value"]
        attention.input[3], attention.input[4] = attention.input[4], attention.input[3]
    messages = {"float32": DIFFERENCE, "float16": DIFFERENCE_IN_HALF}
    assert_breach(release, f"onnx/{variant}", CACHED, messages.get(variant, f"({PERPLEXITY}|{CACHE})"))


def export_damaged(model, folder):
    """The portable file of a layer that was damaged. No rule takes its attention for attention: there is no other."""
    with pytest.raises(RewriteError, match="Attention fired 0 times, expected 2"):
        onnx_decoder.export_onnx(model, folder)


def test_two_axes_swapped_in_the_model_that_is_exported(release_with, reference, assert_breach, monkeypatch):
    """Heads of 16 taken apart as 16 heads of 2, that is, (H, K) swapped on the way in."""
    heads = MultiHeadAttention._heads

    def swapped(self, projection, x, shape, parts):
        tensors = []
        for tensor in heads(self, projection, x, shape, parts):
            batch, length = ops.shape(tensor)[0], ops.shape(tensor)[2]
            flat = ops.reshape(ops.transpose(tensor, (0, 2, 1, 3)), (batch, length, self.head_dim, self.num_heads))
            tensors.append(ops.transpose(flat, (0, 3, 1, 2)))
        return tensors

    release = release_with("onnx")
    with monkeypatch.context() as patch:
        patch.setattr(MultiHeadAttention, "_heads", swapped)
        export_damaged(reference.model, release / "onnx")
    assert_breach(release, "onnx", LOGITS, DIFFERENCE)


# === One operator in another's place ===


def test_a_tuned_graph_with_the_other_gelu(release_with, assert_breach):
    """GELU itself, of which the model has the approximation by tanh: they differ by 5e-4 at most."""
    release = release_with("onnx")
    with edited(release / "onnx" / "model_float32.onnx") as graph:
        for node in graph.node:
            node.op_type = {"FastGelu": "BiasGelu"}.get(node.op_type, node.op_type)
    assert_breach(release, "onnx/float32", LOGITS, DIFFERENCE)


@pytest.mark.parametrize(
    "operator, attribute, value",
    [("GroupQueryAttention", "scale", 0.2), ("SkipLayerNormalization", "epsilon", 1e-2)],
)
def test_a_tuned_graph_with_another_constant(release_with, assert_breach, operator, attribute, value):
    release = release_with("onnx")
    with edited(release / "onnx" / "model_float32.onnx") as graph:
        [place, *_] = [a for n in graph.node if n.op_type == operator for a in n.attribute if a.name == attribute]
        assert 0 < place.f != value
        place.f = value
    assert_breach(release, "onnx/float32", LOGITS, DIFFERENCE)


def test_a_tuned_graph_without_a_residual_sum(release_with, assert_breach):
    release = release_with("onnx")
    with edited(release / "onnx" / "model_float32.onnx") as graph:
        first, second, *_ = [node for node in graph.node if node.op_type == "SkipLayerNormalization"]
        assert second.input[0] == first.output[3]
        second.input[0] = first.output[0]  # the normalized vectors go on in place of the sum
    assert_breach(release, "onnx/float32", LOGITS, DIFFERENCE)


# === The growing cache: ONNX, and the SavedModel's decode_step ===


def _rolled(past, new):  # each key one slot too late: seen only where padding tells slots apart
    return ops.concatenate([past[:, :, -1:], past[:, :, :-1], new], axis=2)


def _oldest_dropped(past, new):
    return ops.concatenate([past[:, :, 1:], past[:, :, -1:], new], axis=2)


def _newest_dropped(past, new):
    return ops.concatenate([past[:, :, :1], past[:, :, :-1], new], axis=2)


GROWN_WRONG = {"rolled": _rolled, "oldest dropped": _oldest_dropped, "newest dropped": _newest_dropped}


@contextlib.contextmanager
def growing_cache_as(grow):
    extend = MultiHeadAttention._extend

    def damaged(cache, k, v, cache_index):
        if cache_index is not None:
            return extend(cache, k, v, cache_index)
        return tuple(grow(past, new) for past, new in zip(cache, (k, v), strict=True))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MultiHeadAttention, "_extend", staticmethod(damaged))
        yield


@pytest.mark.parametrize("damage", GROWN_WRONG)
def test_the_growing_cache_is_off_by_one_in_onnx(release_with, reference, assert_breach, damage):
    release = release_with("onnx")
    with growing_cache_as(GROWN_WRONG[damage]):
        export_damaged(reference.model, release / "onnx")
    assert_breach(release, "onnx", ["prefill then decode"], DIFFERENCE)


def test_the_growing_cache_is_off_by_one_in_the_saved_model(release_with, reference, assert_breach):
    release = release_with("saved_model")
    shutil.rmtree(release / "saved_model" / "served" / "1")
    with growing_cache_as(_oldest_dropped):
        export_saved_model(reference.model, release / "saved_model" / "served" / "1")
    assert_breach(release, "saved_model", ["prefill then decode"], DIFFERENCE)


def test_positions_are_off_by_one_once_there_is_a_cache_in_onnx(release_with, reference, assert_breach, monkeypatch):
    step = onnx_decoder.decoder_step

    def late(model, input_ids, attention_mask, position_ids, *past):
        behind = ops.cast(ops.shape(past[0])[2] > 0, position_ids.dtype)
        return step(model, input_ids, attention_mask, ops.maximum(position_ids - behind, 0), *past)

    release = release_with("onnx")
    with monkeypatch.context() as patch:
        patch.setattr(onnx_decoder, "decoder_step", late)
        onnx_decoder.export_onnx(reference.model, release / "onnx")
    assert_breach(release, "onnx", ["prefill then decode"], DIFFERENCE)
    assert_breach(release, "onnx/float32", LOGITS, DIFFERENCE)  # whose cache has a length from the start


# === The preallocated cache: the runner of the tuned variants ===


@contextlib.contextmanager
def runs_with(change, steps):
    """Changes what the graph reads, in place: in every step behind a prompt, or in every prompt."""
    run = onnx_runtime.Call.run

    def damaged(call, offsets, *counts):
        if bool(counts) == steps:  # a prompt's rows have counts of their own
            return run(call, offsets, *counts)
        session = call.session

        def run_with_iobinding(binding):
            change(call.arrays)
            session.run_with_iobinding(binding)

        call.session = types.SimpleNamespace(run_with_iobinding=run_with_iobinding)
        try:
            return run(call, offsets, *counts)
        finally:
            call.session = session

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_runtime.Call, "run", damaged)
        yield


def _positions_late(arrays):
    arrays["position_ids"][:] = np.maximum(arrays["position_ids"] - 1, 0)


def _positions_early(arrays):
    arrays["position_ids"][:] = np.minimum(arrays["position_ids"] + 1, 31)


def _lengths_short(arrays):
    """The new key takes the place of the last one."""
    arrays["seqlens_k"][:] -= 1
    arrays["total_sequence_length"][...] -= 1


def _lengths_of_the_next_row(arrays):
    arrays["seqlens_k"][:] = np.roll(arrays["seqlens_k"], 1)


@pytest.mark.parametrize("damage", [_positions_late, _positions_early, _lengths_short, _lengths_of_the_next_row])
def test_steps_of_the_tuned_decoder_are_off_by_one(release_with, assert_breach, damage):
    release = release_with("onnx")
    with runs_with(damage, steps=True):
        assert_breach(release, "onnx/float32", ["prefill then decode"], DIFFERENCE)
        assert_breach(release, "onnx/float16", CACHED, DIFFERENCE_IN_HALF)


@pytest.mark.parametrize("artifact", QUANTIZED)
@pytest.mark.parametrize("damage", [_positions_late, _positions_early, _lengths_of_the_next_row])
def test_steps_of_a_quantized_decoder_are_off_by_one(release_with, assert_breach, damage, artifact):
    release = release_with("onnx")
    with runs_with(damage, steps=True):
        assert_breach(release, artifact, CACHED, f"({PERPLEXITY}|{CACHE})")


def test_the_first_token_of_a_short_row_comes_from_its_padding(release_with, assert_breach):
    """Only greedy continuations can tell: the other checks ask for the logits of every position."""

    def last_column(arrays):
        if arrays["logit_indices"].shape[1] == 1:
            arrays["logit_indices"][:] = arrays["input_ids"].shape[1] - 1

    release = release_with("onnx")
    with runs_with(last_column, steps=False):
        assert_breach(release, "onnx/float32", ["greedy continuation"], TOKEN)


# === The preallocated cache: the SavedModel's generate loop ===


@pytest.mark.parametrize("offset", [-1, 1])
def test_the_preallocated_cache_is_off_by_one(release_with, reference, assert_breach, offset):
    """Only greedy continuations can tell: nothing else runs this loop."""
    extend = MultiHeadAttention._extend

    def shifted(cache, k, v, cache_index):
        if cache_index is not None:
            cache_index = ops.minimum(cache_index + offset, ops.shape(cache[0])[2] - 1)
        return extend(cache, k, v, cache_index)

    release = release_with("saved_model")
    shutil.rmtree(release / "saved_model" / "served" / "1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MultiHeadAttention, "_extend", staticmethod(shifted))
        export_saved_model(reference.model, release / "saved_model" / "served" / "1")
    assert_breach(release, "saved_model", ["greedy continuation"], TOKEN)


def test_positions_are_off_by_one_in_the_generate_loop(release_with, reference, assert_breach, monkeypatch):
    prefill = decoding.prefill

    def late(*arguments):
        logits, cache, key_mask, positions = prefill(*arguments)
        return logits, cache, key_mask, positions - 1

    release = release_with("saved_model")
    shutil.rmtree(release / "saved_model" / "served" / "1")
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "prefill", late)
        export_saved_model(reference.model, release / "saved_model" / "served" / "1")
    assert_breach(release, "saved_model", ["greedy continuation"], TOKEN)


def test_the_first_token_is_chosen_from_the_wrong_logits(release_with, reference, assert_breach, monkeypatch):
    release = release_with("saved_model")
    shutil.rmtree(release / "saved_model" / "served" / "1")
    choose = decoding.choose_tokens
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "choose_tokens", lambda logits, *others: choose(-logits, *others))
        export_saved_model(reference.model, release / "saved_model" / "served" / "1")
    assert_breach(release, "saved_model", ["greedy continuation"], TOKEN)


# === Another model ===


def test_a_release_of_another_model(exported, model_directory, text_file, tmp_path):
    other = tmp_path / "other"
    model = load_for_export(model_directory)
    model.backbone.final_norm.beta.assign_add(np.full(32, 0.1))
    model.save_to_preset(other)
    with pytest.raises(ParityError) as error:
        prove_release(exported.path, other, text=text_file)
    assert {breach.artifact for breach in error.value.breaches} >= {"saved_model", *SHARING}


# === The gate ===


@pytest.mark.parametrize("artifact", SHARING)
def test_a_damaged_artifact_is_not_published(model_directory, tmp_path, monkeypatch, list_files, artifact):
    """And what was published before stays."""
    export, name = onnx_decoder.export_onnx, {"onnx": "model.onnx", "onnx/float32": "model_float32.onnx"}[artifact]

    def damaged(model, folder, source=""):
        export(model, folder, source)
        with edited(folder / name) as graph:
            [epsilon, *_] = [a for node in graph.node for a in node.attribute if a.name == "epsilon"]
            epsilon.f = 0.1

    out = tmp_path / "release"
    out.mkdir()
    (out / "earlier").write_text("release")
    monkeypatch.setattr(onnx_decoder, "export_onnx", damaged)
    with pytest.raises(ParityError, match=f"parity failed: {artifact}, ({'|'.join(LOGITS)}), prompt") as error:
        export_release(model_directory, out, ["onnx"], overwrite=True)
    assert {breach.artifact for breach in error.value.breaches} == {artifact}
    excesses = [breach.excess for breach in error.value.breaches]
    assert excesses == sorted(excesses, reverse=True)
    assert excesses[0] > 1
    assert list_files(tmp_path) == ["release/earlier"]
    assert [path.name for path in tmp_path.iterdir()] == ["release"]
