"""Every way in which an artifact can stop being the model must fail the parity check, and say where."""

import contextlib
import re
import shutil

import numpy as np
import onnx
import pytest
from keras import ops

from tfgpt.export import ParityError, export_release, onnx_decoder, prove_release
from tfgpt.export.release import load_for_export
from tfgpt.export.saved_model import export_saved_model
from tfgpt.generation import decoding
from tfgpt.layers import MultiHeadAttention

DIFFERENCE = (
    r"the largest logit difference is \d\.\d\de[+-]\d\d of max\(1, \|logit\|\) = [\d.]+, expected at most 1e-04"
)
TOKEN = r"the greedy continuation has token \d+, expected \d+"
LOGITS = ("one pass", "prefill then decode")


def test_the_undamaged_release_passes(exported, prove):
    assert prove(exported.path) == (0, "")


def test_the_command_says_where_in_one_sentence_and_exits_with_1(exported, tmp_path, onnx_weights, prove):
    release = shutil.copytree(exported.path, tmp_path / "copy")
    with onnx_weights(release / "onnx" / "model.onnx").edit("transformer.h.0.mlp.c_proj.weight") as weight:
        weight[5, 6] += 0.5
    code, stderr = prove(release)
    assert code == 1
    where = rf"onnx, ({'|'.join(LOGITS)}), prompt \d+, position \d+"
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
    assert_breach(release, "onnx", LOGITS, DIFFERENCE)


def test_a_nan_in_the_onnx_data(release_with, onnx_weights, assert_breach):
    release = release_with("onnx")
    with onnx_weights(release / "onnx" / "model.onnx").edit("transformer.h.1.attn.c_proj.bias") as weight:
        weight[0] = np.nan
    assert_breach(release, "onnx", LOGITS, DIFFERENCE.replace(r"\d\.\d\de[+-]\d\d", "inf"))


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


# === Axes ===


def test_a_transposed_kernel_in_the_onnx_data(release_with, onnx_weights, assert_breach):
    release = release_with("onnx")
    with onnx_weights(release / "onnx" / "model.onnx").edit("transformer.h.0.attn.c_proj.weight") as kernel:
        assert kernel.shape == (32, 32)
        kernel[:] = kernel.T.copy()
    assert_breach(release, "onnx", LOGITS, DIFFERENCE)


def test_keys_and_values_swapped_in_the_onnx_graph(release_with, assert_breach):
    """In one layer: every shape stays."""
    release = release_with("onnx")
    path = release / "onnx" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    split = next(node for node in model.graph.node if node.op_type == "Split")
    assert len(split.output) == 3
    split.output[1], split.output[2] = split.output[2], split.output[1]
    path.write_bytes(model.SerializeToString())
    assert_breach(release, "onnx", LOGITS, DIFFERENCE)


def test_two_axes_swapped_in_the_model_that_is_exported(release_with, reference, assert_breach, monkeypatch):
    """Heads of 16 taken apart as 16 heads of 2, that is, (H, K) swapped on the way in."""
    heads = MultiHeadAttention._heads

    def swapped(self, projection, x, parts):
        tensors = []
        for tensor in heads(self, projection, x, parts):
            batch, length = ops.shape(tensor)[0], ops.shape(tensor)[2]
            flat = ops.reshape(ops.transpose(tensor, (0, 2, 1, 3)), (batch, length, self.head_dim, self.num_heads))
            tensors.append(ops.transpose(flat, (0, 3, 1, 2)))
        return tensors

    release = release_with("onnx")
    with monkeypatch.context() as patch:
        patch.setattr(MultiHeadAttention, "_heads", swapped)
        onnx_decoder.export_onnx(reference.model, release / "onnx" / "model.onnx")
    assert_breach(release, "onnx", LOGITS, DIFFERENCE)


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
        onnx_decoder.export_onnx(reference.model, release / "onnx" / "model.onnx")
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
        onnx_decoder.export_onnx(reference.model, release / "onnx" / "model.onnx")
    assert_breach(release, "onnx", ["prefill then decode"], DIFFERENCE)


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
    assert {breach.artifact for breach in error.value.breaches} == {"saved_model", "onnx"}


# === The gate ===


def test_a_damaged_artifact_is_not_published(model_directory, tmp_path, monkeypatch, onnx_weights, list_files):
    """And what was published before stays."""
    export = onnx_decoder.export_onnx

    def damaged(model, path, source=""):
        export(model, path, source)
        with onnx_weights(path).edit("transformer.h.0.ln_1.weight") as weight:
            weight[3] += 0.5

    out = tmp_path / "release"
    out.mkdir()
    (out / "earlier").write_text("release")
    monkeypatch.setattr(onnx_decoder, "export_onnx", damaged)
    with pytest.raises(ParityError, match="parity failed: onnx, (one pass|prefill then decode), prompt") as error:
        export_release(model_directory, out, ["onnx"], overwrite=True)
    excesses = [breach.excess for breach in error.value.breaches]
    assert excesses == sorted(excesses, reverse=True)
    assert excesses[0] > 1
    assert list_files(tmp_path) == ["release/earlier"]
    assert [path.name for path in tmp_path.iterdir()] == ["release"]
