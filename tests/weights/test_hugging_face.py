"""Hugging Face's directories in every form, and what is wrong with others."""

import json

import numpy as np
import pytest
import safetensors.numpy

from tests.models import gpt2_numpy
from tests.weights.checkpoints import (
    CONFIG,
    DTYPES,
    HEADS,
    TOKENIZER,
    VOCABULARY,
    WIDTH,
    WINDOW,
    same,
    weights,
    write_hugging_face,
    write_shards,
)
from tfgpt.errors import UserError
from tfgpt.models import GPT2CausalLM
from tfgpt.models.gpt2.hugging_face import named_variables
from tfgpt.weights import convert, load
from tfgpt.weights.origins import read

IDS = np.random.default_rng(0).integers(0, VOCABULARY, (2, WINDOW))
WTE = "transformer.wte.weight"


def without_prefix(tensors):
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def with_buffers(tensors, prefix="transformer."):
    mask = np.tril(np.ones((1, 1, WINDOW, WINDOW), "uint8"))
    masks = {f"{prefix}h.{i}.attn.bias": mask for i in range(2)}
    return tensors | masks | {f"{prefix}h.{i}.attn.masked_bias": np.array(-1e4, "float32") for i in range(2)}


def with_output(tensors):
    return tensors | {"lm_head.weight": tensors[WTE].copy()}


FORMS = {
    "plain": lambda folder, tensors: write_hugging_face(folder, tensors),
    "no prefix": lambda folder, tensors: write_hugging_face(folder, without_prefix(tensors)),
    "masks": lambda folder, tensors: write_hugging_face(folder, with_buffers(tensors)),
    "masks, no prefix": lambda folder, tensors: write_hugging_face(folder, with_buffers(without_prefix(tensors), "")),
    "lm_head": lambda folder, tensors: write_hugging_face(folder, with_output(tensors)),
    "lm_head said to be untied": lambda folder, tensors: write_hugging_face(
        folder, with_output(tensors), config=CONFIG | {"tie_word_embeddings": False}
    ),
    "shards": write_shards,
    "shards, no prefix, masks": lambda folder, tensors: write_shards(folder, with_buffers(without_prefix(tensors), "")),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_forms(form, dtype, tmp_path):
    tensors = weights(dtype)
    checkpoint, _ = read(FORMS[form](tmp_path / "model", tensors))
    same(checkpoint.tensors, tensors)
    assert checkpoint.dtype == dtype


@pytest.mark.parametrize("form", ["plain", "no prefix", "masks, no prefix", "lm_head"])
def test_from_preset_takes_forms_of_one_file(form, tmp_path):
    model = GPT2CausalLM.from_preset(FORMS[form](tmp_path / "model", weights()))
    same({name: v.numpy() for name, v in named_variables(model.backbone).items()}, weights())
    tensors = with_output(weights())
    tensors["lm_head.weight"][17, 3] += 1e-3
    write_hugging_face(tmp_path / "model", tensors)
    with pytest.raises(UserError, match=r"lm_head.weight of its own, expected the token embedding's"):
        GPT2CausalLM.from_preset(tmp_path / "model")


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_and_dtypes(dtype, tmp_path):
    model = load(write_shards(tmp_path / "model", weights(dtype)))
    assert {variable.dtype for variable in model.weights} == {"float32"}
    tensors = {name: tensor.astype("float32") for name, tensor in weights(dtype).items()}
    assert gpt2_numpy.relative_error(model(IDS), gpt2_numpy.forward(tensors, IDS, HEADS)) < 1e-5
    same({name: v.numpy() for name, v in zip(["wte"], load(tmp_path / "model", dtype=dtype).weights)},
         {"wte": weights(dtype)[WTE]})  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_keeps_the_dtype_and_says_so(dtype, tmp_path):
    convert(write_shards(tmp_path / "model", weights(dtype)), tmp_path / "converted")
    same(safetensors.numpy.load_file(tmp_path / "converted/model.safetensors"), weights(dtype))
    assert json.loads((tmp_path / "converted/config.json").read_text())["torch_dtype"] == dtype
    model = GPT2CausalLM.from_preset(tmp_path / "converted")
    assert {variable.dtype for variable in model.weights} == {"float32"}
    np.testing.assert_array_equal(model.weights[0], weights(dtype)[WTE].astype("float32"))


def test_end_token_without_a_tokenizer(tmp_path):
    convert(write_hugging_face(tmp_path / "a", weights(), config=CONFIG | {"eos_token_id": 7}), tmp_path / "b")
    for file in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "b" / file).read_text())["eos_token_id"] == 7


# === Tokenizers ===


@pytest.mark.parametrize("files", [{"tokenizer.json"}, {"vocab.json", "merges.txt"}])
def test_tokenizer_files(files, tmp_path):
    directory = write_hugging_face(tmp_path / "model", weights())
    TOKENIZER.save(directory)
    for name in {"tokenizer.json", "vocab.json", "merges.txt"} - files:
        (directory / name).unlink()
    model = load(directory)
    assert model.backbone.vocabulary_size == VOCABULARY > model.tokenizer.vocabulary_size  # a padded embedding
    assert model.tokenizer.encode("the cat<|endoftext|>") == TOKENIZER.encode("the cat<|endoftext|>")
    assert convert(directory, tmp_path / "out")[0].end_token_id == TOKENIZER.end_token_id


def test_added_tokens(tmp_path):
    directory = write_hugging_face(tmp_path / "model", weights())
    TOKENIZER.save(directory)
    (directory / "tokenizer.json").unlink()
    (directory / "added_tokens.json").write_text(json.dumps({"<|endoftext|>": TOKENIZER.end_token_id}))
    load(directory)
    (directory / "added_tokens.json").write_text(json.dumps({"<|pad|>": 299}))
    with pytest.raises(UserError, match=r"added_tokens.json adds <\|pad\|>, expected"):
        load(directory)


@pytest.mark.parametrize("open_model", [load, GPT2CausalLM.from_preset])
def test_a_tokenizer_larger_than_the_embedding(open_model, tmp_path):
    small = weights() | {WTE: weights()[WTE][:260]}
    directory = write_hugging_face(tmp_path / "model", small, config=CONFIG | {"vocab_size": 260})
    TOKENIZER.save(directory)
    size = TOKENIZER.vocabulary_size
    assert size > 260
    with pytest.raises(UserError, match=f"the tokenizer of .* has {size} tokens, expected at most the embedding's 260"):
        open_model(directory)


# === What config.json asks for ===


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ({"n_inner": 4 * WIDTH}, {"intermediate_dim": 4 * WIDTH}),
        ({"n_inner": None}, {"intermediate_dim": 4 * WIDTH}),
        ({"activation_function": "gelu"}, {"activation": "gelu"}),
        ({"activation_function": "gelu_pytorch_tanh"}, {"activation": "gelu_tanh"}),
        ({"activation_function": "gelu_fast"}, {"activation": "gelu_tanh"}),
        ({"activation_function": "swish"}, {"activation": "silu"}),
        ({"layer_norm_epsilon": 1e-3}, {"layer_norm_epsilon": 1e-3}),
        ({"pruned_heads": {}, "reorder_and_upcast_attn": False}, {}),
    ],
)
def test_honoured(theirs, ours, tmp_path):
    checkpoint, _ = read(write_hugging_face(tmp_path / "model", weights(), config=CONFIG | theirs))
    assert {name: checkpoint.config[name] for name in ours} == ours
    assert checkpoint.notes == []


def test_an_inner_width_of_its_own(tmp_path):
    tensors = {
        name: tensor[..., :20] if "c_fc" in name else tensor[:20] if "mlp.c_proj.weight" in name else tensor
        for name, tensor in weights().items()
    }
    directory = write_hugging_face(tmp_path / "model", tensors, config=CONFIG | {"n_inner": 20})
    assert gpt2_numpy.relative_error(load(directory)(IDS), gpt2_numpy.forward(tensors, IDS, HEADS)) < 1e-5
    with pytest.raises(UserError, match="intermediate_dim 20, expected 32: OpenAI's code computes nothing else"):
        convert(directory, tmp_path / "openai", to="openai")
    convert(directory, tmp_path / "preset", to="keras_hub")  # which has a word for it
    same(read(tmp_path / "preset")[0].tensors, tensors)


def test_reordered_attention_is_said_aloud(tmp_path):
    config = CONFIG | {"reorder_and_upcast_attn": True}
    [note] = read(write_hugging_face(tmp_path / "model", weights(), config=config))[0].notes
    assert "reorder_and_upcast_attn" in note


@pytest.mark.parametrize(
    "theirs, expected",
    [
        ({"activation_function": "gelu_10"}, "activation_function 'gelu_10', expected one of gelu_new"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True, expected False"),
        ({"scale_attn_weights": False}, "scale_attn_weights False, expected True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings False, expected True"),
        ({"add_cross_attention": True}, "add_cross_attention True, expected False"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads {'0': \\[1\\]}, expected {}"),
        ({"quantization_config": {"bits": 4}}, "quantization_config {'bits': 4}, expected None"),
        ({"model_type": "gpt_neo"}, "model_type 'gpt_neo', expected 'gpt2'"),
        ({"n_head": 3}, "n_embd 8, expected a multiple of n_head 3"),
    ],
)
def test_refused(theirs, expected, tmp_path):
    with pytest.raises(UserError, match=expected):
        load(write_hugging_face(tmp_path / "model", weights(), config=CONFIG | theirs))


@pytest.mark.parametrize("tied", [{}, {"tie_word_embeddings": False}])
def test_an_output_projection_of_its_own(tied, tmp_path):
    tensors = with_output(weights())
    tensors["lm_head.weight"][17, 3] += 1e-3
    with pytest.raises(UserError, match=r"lm_head.weight of its own, expected the token embedding's"):
        load(write_hugging_face(tmp_path / "model", tensors, config=CONFIG | tied))


# === Tensors that are not the model's ===


def test_all_missing_and_unknown_tensors_are_named(tmp_path):
    tensors = without_prefix(weights())
    del tensors["h.0.attn.c_attn.bias"], tensors["ln_f.weight"]
    tensors |= {"score.weight": np.zeros(2, "float32"), "h.2.ln_1.bias": np.zeros(2, "float32")}
    with pytest.raises(UserError) as error:
        load(write_hugging_face(tmp_path / "model", tensors))
    assert str(error.value).endswith(
        "model.safetensors lacks h.0.attn.c_attn.bias, ln_f.weight and has unknown h.2.ln_1.bias, score.weight, "
        "expected the 28 tensors of its configuration"
    )


def test_a_tensor_with_and_without_prefix(tmp_path):
    with pytest.raises(UserError, match=r"has both (transformer\.)?wte.weight and (transformer\.)?wte.weight"):
        load(write_hugging_face(tmp_path / "model", weights() | {"wte.weight": weights()[WTE]}))


def test_shapes_that_contradict_the_config(tmp_path):
    directory = write_hugging_face(tmp_path / "model", weights(), config=CONFIG | {"vocab_size": 301})
    with pytest.raises(UserError, match=r"wte.weight of shape \(300, 8\), expected \(301, 8\) by its configuration"):
        load(directory)


def test_a_dtype_that_is_none_of_weights(tmp_path):
    with pytest.raises(UserError, match="wte.weight in int8, expected one of float32, float16, bfloat16"):
        load(write_hugging_face(tmp_path / "model", weights() | {WTE: weights()[WTE].astype("int8")}))


# === Shards ===


def change_index(directory, change):
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_missing_shards_are_named(tmp_path):
    directory = write_shards(tmp_path / "model", weights())
    for i in (1, 3):
        (directory / f"model-{i:05}-of-00003.safetensors").unlink()
    files = "model-00001-of-00003.safetensors, model-00003-of-00003.safetensors"
    with pytest.raises(UserError, match=f"lacks {files}, expected every file that model.safetensors.index.json names"):
        load(directory)


def test_an_index_of_tensors_that_are_not_there(tmp_path):
    directory = write_shards(tmp_path / "model", weights())
    change_index(directory, lambda shards: shards.update({"x": "model-00001-of-00003.safetensors"}))
    with pytest.raises(UserError, match=r"index.json names x, expected these tensors in the files that it gives"):
        load(directory)


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/secret.safetensors", "a/b.safetensors", ""])
def test_an_index_that_leads_elsewhere(file, tmp_path):
    directory = write_shards(tmp_path / "model", weights())
    change_index(directory, lambda shards: shards.update({WTE: file}))
    with pytest.raises(UserError, match="expected files beside it|expected every file"):
        load(directory)


def test_no_index(tmp_path):
    directory = write_shards(tmp_path / "model", weights())
    (directory / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(UserError, match="lacks a weight_map"):
        load(directory)
    (directory / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=r"holds no weights, expected one of model.safetensors, .*pytorch_model.bin"):
        load(directory)
