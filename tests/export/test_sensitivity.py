"""What the quantization of each weight costs, measured."""

import shutil
import types

import numpy as np
import pytest

from tfgpt.export.onnx_decoder import export_onnx
from tfgpt.export.quantization import write_variant
from tfgpt.export.sensitivity import measure_sensitivity
from tfgpt.models import GPT2CausalLM
from tfgpt.models.gpt2 import hugging_face
from tfgpt.runtime.onnx_runtime import OnnxRunner, open_session

FIRST_ATTENTION = "transformer.h.0.attn.c_attn.weight"
LAST_FEED_FORWARD = "transformer.h.1.mlp.c_fc.weight"


def random_decoder(folder, change=None):
    model = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=0)
    rng = np.random.default_rng(8)
    for variable in model.trainable_variables:
        variable.assign(variable + rng.normal(0, 0.2, variable.shape))
    if change is not None:
        change(model.backbone.blocks)
    export_onnx(model, folder)
    tokens = rng.integers(0, 300, 100)
    return types.SimpleNamespace(folder=folder, config=hugging_face.to_config(model.backbone), tokens=tokens)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return random_decoder(tmp_path_factory.mktemp("decoder"))


def log_probabilities(decoder, variant, folder=None):
    """Of the 3 whole windows of the text, by way of the file."""
    session = open_session((folder or decoder.folder) / f"model_{variant}.onnx")
    text = decoder.tokens[:96].reshape(3, 32)
    logits = OnnxRunner(decoder.config, session, variant).logits(text, np.ones_like(text)).astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def measure(decoder, variant, on_progress=None):
    return measure_sensitivity(decoder.folder, variant, decoder.tokens, decoder.config, on_progress)


@pytest.mark.parametrize("variant", ["int8", "int8_weight_only", "int4"])
def test_costs_are_those_of_files_in_which_one_weight_is_quantized(decoder, tmp_path, variant):
    for name in ("model.onnx.data", "model_float32.onnx"):
        shutil.copyfile(decoder.folder / name, tmp_path / name)
    lines = []
    costs = measure(decoder, variant, lines.append)
    names = [cost.weight for cost in costs]
    assert sorted(lines) == sorted(f"onnx/{variant}: sensitivity to {name}" for name in names)
    assert len(set(names)) == 9
    assert [cost.kl_divergence for cost in costs] == sorted((cost.kl_divergence for cost in costs), reverse=True)
    expected = log_probabilities(decoder, "float32")
    found = {}
    for name in (names[0], names[4], names[-1]):
        write_variant(tmp_path, variant, keep=set(names) - {name})
        other = log_probabilities(decoder, variant, tmp_path)
        found[name] = (np.exp(expected) * (expected - other)).sum(axis=-1).mean()
    assert found[names[0]] > found[names[4]] > found[names[-1]] > 0
    for cost in costs:
        if cost.weight in found:
            assert cost.kl_divergence == pytest.approx(found[cost.weight], rel=0.02, abs=1e-7)
    assert {cost.weight: cost.bytes for cost in costs}[FIRST_ATTENTION] == 4 * 32 * 96
    assert {cost.weight: cost.bytes for cost in costs}["transformer.wte.weight"] == 4 * 300 * 32


def test_four_bits_cost_more_than_eight(decoder):
    eight, four = ({c.weight: c.kl_divergence for c in measure(decoder, v)} for v in ("int8_weight_only", "int4"))
    assert all(four[name] > 5 * eight[name] for name in four)


@pytest.mark.parametrize("variant", ["int8", "int4"])
@pytest.mark.parametrize("name, layer, sublayer", [(FIRST_ATTENTION, 0, "attention"), (LAST_FEED_FORWARD, 1, "ffn")])
def test_a_weight_with_an_outlier_costs_most(tmp_path, decoder, stretch, variant, name, layer, sublayer):
    def change(blocks):
        part = blocks[layer].attention if sublayer == "attention" else blocks[layer].feed_forward
        dense = part.sublayer.query_key_value if sublayer == "attention" else part.sublayer.intermediate_dense
        stretch(part.norm, dense, channel=5)

    changed = random_decoder(tmp_path, change)
    np.testing.assert_allclose(
        log_probabilities(changed, "float32"), log_probabilities(decoder, "float32"), atol=1e-3, rtol=0
    )
    before = {cost.weight: cost.kl_divergence for cost in measure(decoder, variant)}
    costs = measure(changed, variant)
    assert costs[0].weight == name
    assert costs[0].kl_divergence > 20 * before[name]
    assert costs[0].kl_divergence > 3 * costs[1].kl_divergence


def test_measuring_writes_nothing(decoder, list_files):
    before = list_files(decoder.folder)
    measure(decoder, "int4")
    assert list_files(decoder.folder) == before == ["model.onnx", "model.onnx.data", "model_float32.onnx"]


def test_a_text_shorter_than_the_window(decoder):
    costs = measure_sensitivity(decoder.folder, "int8", decoder.tokens[:7], decoder.config)
    assert all(np.isfinite(cost.kl_divergence) for cost in costs)
