"""KerasHub's GPT-2, with the same weights, gives the same logits."""

import numpy as np
import pytest

from tests.models import gpt2_numpy
from tfgpt.models import GPT2Backbone, GPT2CausalLM
from tfgpt.models.gpt2.hugging_face import named_variables

pytestmark = pytest.mark.interop

keras_hub = pytest.importorskip("keras_hub")

WIDTH, HEADS = 32, 4
WEIGHTS = gpt2_numpy.random_weights(3, WIDTH, 300, 64)


@pytest.fixture(scope="module")
def ours():
    model = GPT2CausalLM(
        GPT2Backbone(vocabulary_size=300, num_layers=3, num_heads=HEADS, hidden_dim=WIDTH, max_sequence_length=64)
    )
    for name, variable in named_variables(model.backbone).items():
        variable.assign(WEIGHTS[name])
    return model


@pytest.fixture(scope="module")
def theirs():
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=300,
        num_layers=3,
        num_heads=HEADS,
        hidden_dim=WIDTH,
        intermediate_dim=4 * WIDTH,
        dropout=0.0,
        max_sequence_length=64,
    )

    def weights(name):
        return [WEIGHTS[f"transformer.{name}.weight"], WEIGHTS[f"transformer.{name}.bias"]]

    backbone.get_layer("token_embedding").embeddings.assign(WEIGHTS["transformer.wte.weight"])
    backbone.get_layer("position_embedding").position_embeddings.assign(WEIGHTS["transformer.wpe.weight"])
    backbone.get_layer("layer_norm").set_weights(weights("ln_f"))
    for i in range(3):
        block, name = backbone.get_layer(f"transformer_layer_{i}"), f"h.{i}"
        attention = block._self_attention_layer
        kernels, biases = (np.split(w, 3, axis=-1) for w in weights(f"{name}.attn.c_attn"))
        for part, kernel, bias in zip(
            (attention.query_dense, attention.key_dense, attention.value_dense), kernels, biases
        ):
            part.set_weights([kernel.reshape(WIDTH, HEADS, -1), bias.reshape(HEADS, -1)])
        kernel, bias = weights(f"{name}.attn.c_proj")
        attention.output_dense.set_weights([kernel.reshape(HEADS, -1, WIDTH), bias])
        block._self_attention_layer_norm.set_weights(weights(f"{name}.ln_1"))
        block._feedforward_layer_norm.set_weights(weights(f"{name}.ln_2"))
        block._feedforward_intermediate_dense.set_weights(weights(f"{name}.mlp.c_fc"))
        block._feedforward_output_dense.set_weights(weights(f"{name}.mlp.c_proj"))
    return keras_hub.models.GPT2CausalLM(backbone=backbone, preprocessor=None)


def test_logits(ours, theirs):
    ids = np.random.default_rng(0).integers(0, 300, (2, 64))
    expected = theirs({"token_ids": ids, "padding_mask": np.ones_like(ids)})
    assert gpt2_numpy.relative_error(ours(ids), np.asarray(expected)) < 1e-5
    assert ours.count_params() == theirs.count_params()


def test_logits_of_padded_rows(ours, theirs):
    ids, mask = np.random.default_rng(0).integers(0, 300, (3, 20)), np.ones((3, 20), "int32")
    mask[0, 15:], mask[1, 1:] = 0, 0
    inputs = {"token_ids": ids, "padding_mask": mask}
    found, expected = np.asarray(ours(inputs))[mask == 1], np.asarray(theirs(inputs))[mask == 1]
    assert gpt2_numpy.relative_error(found, expected) < 1e-5
