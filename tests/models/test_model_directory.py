import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tests.models import gpt2_numpy
from tfgpt.errors import UserError
from tfgpt.models import GPT2CausalLM
from tfgpt.models.gpt2.model_directory import read_weights
from tfgpt.text import BytePairTokenizer

IDS = np.random.default_rng(0).integers(0, 300, (2, 9))


@pytest.fixture(scope="module")
def model():
    return GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=0)


@pytest.fixture
def saved(model, tmp_path):
    model.save_to_preset(tmp_path / "model")
    return tmp_path / "model"


def change_config(directory, **changes):
    config = json.loads((directory / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not ...}
    (directory / "config.json").write_text(json.dumps(config))


def change_tensors(directory, **changes):
    path = directory / "model.safetensors"
    tensors = safetensors.numpy.load_file(path) | changes
    safetensors.numpy.save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


# === What is written ===


def test_files(saved):
    assert {path.name for path in saved.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    assert saved.stat().st_mode & 0o777 == 0o755


def test_config_has_hugging_face_keys(saved):
    assert json.loads((saved / "config.json").read_text()) == {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 300,
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 32,
        "n_inner": 128,
        "n_positions": 32,
        "n_ctx": 32,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": True,
        "use_cache": True,
        "torch_dtype": "float32",
    }


def test_weights_have_hugging_face_names_and_layouts(saved, model):
    tensors = safetensors.numpy.load_file(saved / "model.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == gpt2_numpy.shapes(2, 32, 300, 32)
    assert {tensor.dtype.name for tensor in tensors.values()} == {"float32"}
    found = gpt2_numpy.forward(tensors, IDS, num_heads=2)
    assert gpt2_numpy.relative_error(model(IDS), found) < 1e-5
    with safetensors.safe_open(saved / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}  # without it transformers refuses the file


# === What is read ===


def test_a_directory_from_elsewhere(tmp_path):
    """Keys that may be left out, keys of no concern, weights in half precision."""
    config = {"model_type": "gpt2", "vocab_size": 300, "n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 32}
    (tmp_path / "config.json").write_text(json.dumps(config | {"n_ctx": 32, "summary_type": "cls_index"}))
    weights = gpt2_numpy.random_weights(2, 32, 300, 32)
    for dtype in ("float32", "float16", ml_dtypes.bfloat16):
        stored = {name: tensor.astype(dtype) for name, tensor in weights.items()}
        safetensors.numpy.save_file(stored, tmp_path / "model.safetensors")
        model = GPT2CausalLM.from_preset(tmp_path)
        assert (model.backbone.dropout, model.backbone.intermediate_dim) == (0.1, 128)
        assert all(w.dtype == "float32" for w in model.weights)
        expected = gpt2_numpy.forward({name: t.astype("float32") for name, t in stored.items()}, IDS, num_heads=2)
        assert gpt2_numpy.relative_error(model(IDS), expected) < 1e-5


def test_inner_width_of_none_is_four_times_the_width(saved):
    change_config(saved, n_inner=None)
    assert GPT2CausalLM.from_preset(saved).backbone.intermediate_dim == 128


@pytest.mark.parametrize(
    "theirs, ours", [("gelu_new", "gelu_tanh"), ("gelu", "gelu"), ("relu", "relu"), ("silu", "silu"), ("tanh", "tanh")]
)
def test_activations(saved, theirs, ours):
    change_config(saved, activation_function=theirs)
    assert GPT2CausalLM.from_preset(saved).backbone.activation == ours


# === What is refused, in one sentence ===


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "llama"}, "has model_type 'llama', expected 'gpt2'"),
        ({"model_type": ...}, "has model_type None, expected 'gpt2'"),
        ({"n_layer": ...}, "has n_layer None, expected a positive integer"),
        ({"n_embd": "32"}, "has n_embd '32', expected a positive integer"),
        ({"vocab_size": 0}, "has vocab_size 0, expected a positive integer"),
        ({"n_head": 5}, "has n_embd 32, expected a multiple of n_head 5"),
        ({"activation_function": "mish"}, "has activation_function 'mish', expected one of gelu_new"),
        ({"scale_attn_by_inverse_layer_idx": True}, "has scale_attn_by_inverse_layer_idx True, expected False"),
        ({"scale_attn_weights": False}, "has scale_attn_weights False, expected True"),
        ({"add_cross_attention": True}, "has add_cross_attention True, expected False"),
        ({"tie_word_embeddings": False}, "has tie_word_embeddings False, expected True"),
        ({"embd_pdrop": 0.3}, r"has differing dropout rates \[0.0, 0.3\]"),
    ],
)
def test_config_that_is_not_ours(saved, changes, message):
    change_config(saved, **changes)
    with pytest.raises(UserError, match=f"config.json {message}"):
        GPT2CausalLM.from_preset(saved)


def test_harmless_settings_are_accepted(saved):
    change_config(saved, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    assert GPT2CausalLM.from_preset(saved).backbone.num_layers == 2


@pytest.mark.parametrize(
    "contents, message",
    [
        (b"", "is not JSON"),
        (b'{"model_type": "gpt2",', "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[1, 2]", "holds a JSON list, expected an object"),
    ],
)
def test_config_that_is_not_json(saved, contents, message):
    (saved / "config.json").write_bytes(contents)
    with pytest.raises(UserError, match=f"config.json {message}"):
        GPT2CausalLM.from_preset(saved)


def test_no_config(saved):
    (saved / "config.json").unlink()
    with pytest.raises(UserError, match="config.json is missing, expected a model directory"):
        GPT2CausalLM.from_preset(saved)


@pytest.mark.parametrize("length", [0, 7, 100, -1000, -1])
def test_truncated_weights(saved, length):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match="model.safetensors is not a whole safetensors file"):
        GPT2CausalLM.from_preset(saved)


def test_weights_that_are_no_safetensors(saved):
    (saved / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n" * 5)
    with pytest.raises(UserError, match="model.safetensors is not a whole safetensors file"):
        GPT2CausalLM.from_preset(saved)


def test_missing_and_unknown_tensors_are_named(saved):
    change_tensors(saved, **{"transformer.h.1.ln_2.bias": None})
    with pytest.raises(UserError, match="lacks transformer.h.1.ln_2.bias, expected the 28 tensors"):
        GPT2CausalLM.from_preset(saved)
    change_tensors(saved, **{"transformer.h.2.ln_1.bias": np.zeros(32, "float32")})
    with pytest.raises(UserError, match="lacks transformer.h.1.ln_2.bias and has unknown transformer.h.2.ln_1.bias"):
        GPT2CausalLM.from_preset(saved)


def test_shape_of_another_size(saved):
    change_tensors(saved, **{"transformer.wpe.weight": np.zeros((31, 32), "float32")})
    with pytest.raises(UserError, match=r"transformer.wpe.weight of shape \(31, 32\), expected \(32, 32\)"):
        GPT2CausalLM.from_preset(saved)


def test_weights_that_are_no_floats(saved):
    change_tensors(saved, **{"transformer.wpe.weight": np.zeros((32, 32), "int64")})
    with pytest.raises(UserError, match="has transformer.wpe.weight of dtype I64, expected one of F32, F16, BF16"):
        GPT2CausalLM.from_preset(saved)


def test_nothing_is_assigned_before_every_tensor_was_found_right(saved, model):
    backbone = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=5).backbone
    before = [weight.numpy() for weight in backbone.weights]
    change_tensors(saved, **{"transformer.ln_f.bias": np.zeros(31, "float32")})
    with pytest.raises(UserError, match=r"transformer.ln_f.bias of shape \(31,\), expected \(32,\)"):
        read_weights(backbone, saved / "model.safetensors")
    for old, weight in zip(before, backbone.weights):
        np.testing.assert_array_equal(weight.numpy(), old)


def test_tokenizer_that_the_embedding_has_no_rows_for(model, tmp_path):
    text = "the cat sat on the mat, the cat ate the rat that sat; " * 3
    tokenizer = BytePairTokenizer.train([text], vocabulary_size=270)
    for vocabulary_size in (tokenizer.vocabulary_size, tokenizer.vocabulary_size + 50):  # embeddings may be padded
        saved = tmp_path / str(vocabulary_size)
        config = {"load_weights": False, "vocabulary_size": vocabulary_size}
        larger = GPT2CausalLM.from_preset("gpt2-test", **config)
        larger.tokenizer = tokenizer
        larger.save_to_preset(saved)
        assert GPT2CausalLM.from_preset(saved).tokenizer.vocabulary_size == tokenizer.vocabulary_size
    change_config(saved, vocab_size=260)
    change_tensors(saved, **{"transformer.wte.weight": np.zeros((260, 32), "float32")})
    with pytest.raises(
        UserError, match=f"the tokenizer of .* has {tokenizer.vocabulary_size} tokens, expected at most"
    ):
        GPT2CausalLM.from_preset(saved)


def test_config_of_another_size(saved):
    change_config(saved, n_layer=3)
    with pytest.raises(UserError, match="lacks transformer.h.2.attn.c_attn.bias"):
        GPT2CausalLM.from_preset(saved)


# === Writing that fails ===


@pytest.mark.parametrize("limit", [0, 10_000])
def test_a_full_disk_leaves_nothing_half_written(saved, tmp_path, limit):
    """The system refuses to write files beyond a limit; 10,000 bytes let the configuration pass, not the weights."""
    script = """
import resource, signal, sys
from tfgpt.errors import UserError
from tfgpt.models import GPT2CausalLM
model = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
for path, overwrite in (sys.argv[2], True), (sys.argv[3], False):
    try:
        model.save_to_preset(path, overwrite=overwrite)
    except UserError as error:
        print(error)
"""
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    arguments = [sys.executable, "-c", script, str(limit), str(saved), str(tmp_path / "new")]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)
    messages = result.stdout.splitlines()
    assert len(messages) == 2
    for message in messages:
        assert "cannot write" in message and "file too large" in message.lower()
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_directory_that_may_not_be_written(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        model.save_to_preset(tmp_path / "file" / "model")


def test_a_failure_between_the_files_leaves_nothing(model, tmp_path):
    class Broken:
        end_token_id = 0

        def save(self, directory, model_max_length):
            (directory / "vocab.json").write_text("{}")
            raise RuntimeError("on its way")

    model = GPT2CausalLM(model.backbone, tokenizer=Broken())
    with pytest.raises(RuntimeError, match="on its way"):
        model.save_to_preset(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
