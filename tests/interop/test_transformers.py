"""PyTorch and transformers open what tfgpt writes, and the reverse, and both train alike."""

import json
import math

import keras
import numpy as np
import pytest
import safetensors.numpy

from tests.models import gpt2_numpy
from tfgpt.models import PRESETS, GPT2CausalLM
from tfgpt.models.gpt2.hugging_face import named_variables
from tfgpt.text import BytePairTokenizer, CharacterTokenizer
from tfgpt.training.optimizer import make_optimizer
from tfgpt.training.run_config import RunConfig
from tfgpt.weights import load

pytestmark = pytest.mark.interop

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = (3, 32, 300, 64)  # layers, width, vocabulary, positions
SMALL = {"num_layers": 3, "num_heads": 4, "hidden_dim": 32, "intermediate_dim": 128, "max_sequence_length": 64}


def made(preset="gpt2-test", sizes=SIZES, config=SMALL, **options):
    model = GPT2CausalLM.from_preset(preset, load_weights=False, **config, **options)
    weights = gpt2_numpy.random_weights(*sizes)
    for name, variable in named_variables(model.backbone).items():
        variable.assign(weights[name])
    return model


def opened(directory):
    """The directory as a transformers model, none of whose weights is missing, left over or newly made."""
    model, report = transformers.GPT2LMHeadModel.from_pretrained(
        directory, output_loading_info=True, local_files_only=True
    )
    assert {key: list(names) for key, names in report.items()} == {key: [] for key in report}
    return model.eval()


def torch_logits(model, token_ids, padding_mask=None):
    with torch.no_grad():
        mask = None if padding_mask is None else torch.tensor(padding_mask)
        return model(torch.tensor(token_ids), attention_mask=mask).logits.numpy()


# === Models ===


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu", "relu", "silu", "tanh"])
def test_transformers_opens_a_model_directory(activation, tmp_path):
    model = made(activation=activation, layer_norm_epsilon=1e-4)
    model.save_to_preset(tmp_path / "model")
    theirs = opened(tmp_path / "model")
    ids = np.random.default_rng(0).integers(0, 300, (2, 64))
    assert gpt2_numpy.relative_error(model(ids), torch_logits(theirs, ids)) < 1e-5
    assert theirs.num_parameters() == model.count_params()


def test_padded_rows_have_equal_logits(tmp_path):
    model = made()
    model.save_to_preset(tmp_path / "model")
    ids, mask = np.random.default_rng(0).integers(0, 300, (3, 20)), np.ones((3, 20), "int64")
    mask[0, 15:], mask[1, 1:] = 0, 0  # on the right, where transformers needs no positions
    found, expected = (
        model({"token_ids": ids, "padding_mask": mask}),
        torch_logits(opened(tmp_path / "model"), ids, mask),
    )
    assert gpt2_numpy.relative_error(np.asarray(found)[mask == 1], expected[mask == 1]) < 1e-5


@pytest.mark.slow
def test_transformers_opens_the_124_million_preset(tmp_path):
    model = made("gpt2", (12, 768, 50257, 1024), config={})
    model.save_to_preset(tmp_path / "model")
    theirs = opened(tmp_path / "model")
    ids = np.random.default_rng(0).integers(0, 50257, (1, 128))
    assert gpt2_numpy.relative_error(model(ids), torch_logits(theirs, ids)) < 1e-4
    assert theirs.num_parameters() == model.count_params() == 124_439_808
    (tmp_path / "model/model.safetensors").unlink()  # half a gigabyte, which pytest would keep


def test_presets_are_those_of_transformers(tmp_path):
    GPT2CausalLM.from_preset("gpt2-test", load_weights=False).save_to_preset(tmp_path / "model")
    ours, theirs = transformers.GPT2Config.from_pretrained(tmp_path / "model"), transformers.GPT2Config()
    # What a directory does not say is transformers' default, which is GPT-2's; gpt2 is its default size.
    gpt2 = PRESETS["gpt2"]
    assert (gpt2["num_layers"], gpt2["num_heads"], gpt2["hidden_dim"]) == (theirs.n_layer, theirs.n_head, theirs.n_embd)
    assert (gpt2["vocabulary_size"], gpt2["max_sequence_length"]) == (theirs.vocab_size, theirs.n_positions)
    assert gpt2["dropout"] == theirs.resid_pdrop == theirs.embd_pdrop == theirs.attn_pdrop
    for key in ("layer_norm_epsilon", "activation_function", "initializer_range", "scale_attn_weights"):
        assert getattr(ours, key) == getattr(theirs, key), key


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_tfgpt_opens_a_directory_of_transformers(dtype, tmp_path):
    config = transformers.GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=3, n_head=4)
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    theirs.to(getattr(torch, dtype)).save_pretrained(tmp_path)
    model = GPT2CausalLM.from_preset(tmp_path)
    ids = np.random.default_rng(0).integers(0, 300, (2, 64))
    assert gpt2_numpy.relative_error(model(ids), torch_logits(theirs.float(), ids)) < 1e-5
    assert model.backbone.dropout == 0.1


def test_there_and_back_is_exact(tmp_path):
    model = made()
    model.save_to_preset(tmp_path / "ours")
    opened(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    before, after = (safetensors.numpy.load_file(tmp_path / each / "model.safetensors") for each in ("ours", "theirs"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(tensor, after[name])
    ours, again = made().backbone.get_config(), GPT2CausalLM.from_preset(tmp_path / "theirs").backbone.get_config()
    assert {**again, "name": None} == {**ours, "name": None}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_transformers_keeps_the_stored_dtype(dtype, tmp_path):
    """What vLLM and others go by: `dtype` of the opened config, and the tensors behind it."""
    model = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, dtype=dtype, seed=0)
    model.save_to_preset(tmp_path / "model")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "model").dtype == getattr(torch, dtype)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert {parameter.dtype for parameter in theirs.parameters()} == {getattr(torch, dtype)}
    wte = theirs.transformer.wte.weight.detach().float().numpy()
    np.testing.assert_array_equal(wte, model.backbone.token_embedding.embeddings.numpy().astype("float32"))


def test_names_that_transformers_knows_and_directories_miss(tmp_path):
    """A tokenizer saved by transformers has no further file, and its config no key, that ours lacks."""
    tokenizer = BytePairTokenizer.train(DOCUMENTS, vocabulary_size=300)
    tokenizer.save(tmp_path / "ours", model_max_length=64)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours", local_files_only=True)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, saved = ({path.name for path in (tmp_path / each).iterdir()} for each in ("ours", "theirs"))
    assert saved <= ours


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_reordered_attention_computes_the_same_in_float32(dtype, tmp_path):
    """`tfgpt.weights` honours `reorder_and_upcast_attn` by what tfgpt does anyway."""
    config = transformers.GPT2Config(
        vocab_size=300,
        n_positions=64,
        n_embd=32,
        n_layer=3,
        n_head=4,
        reorder_and_upcast_attn=True,
        attn_implementation="eager",
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.to(getattr(torch, dtype)).save_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(0, 300, (2, 64))
    assert gpt2_numpy.relative_error(load(tmp_path)(ids), torch_logits(theirs.float(), ids)) < 1e-5


# === Tokenizers ===

DOCUMENTS = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind.\n" * 3,
    "def encode(text):\n    return [ids[character] for character in text]\n\n\ndef decode(ids):\n    return ids\n",
    "naïve café, 日本語, 🎉🎉  two  spaces\t\ttabs \r\n windows 1234 5678\n",
]


@pytest.mark.parametrize(
    "tokenizer, texts",
    [
        (
            BytePairTokenizer.train(DOCUMENTS, vocabulary_size=300),
            [*DOCUMENTS, "", " Unseen: Ωmega — “x” 👩‍👩‍👧 \x00 end "],
        ),
        (CharacterTokenizer.train(DOCUMENTS), [*DOCUMENTS, "", " the fox , doesn't .\n\n"]),
    ],
    ids=["byte pairs", "characters"],
)
@pytest.mark.parametrize("with_model", [True, False])
def test_auto_tokenizer(tokenizer, texts, with_model, tmp_path):
    if with_model:
        model = made(vocabulary_size=tokenizer.vocabulary_size, sizes=(3, 32, tokenizer.vocabulary_size, 64))
        model.tokenizer = tokenizer
        model.save_to_preset(tmp_path / "model")
    else:
        tokenizer.save(tmp_path / "model", model_max_length=64)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)
    for text in texts:
        ids = tokenizer.encode(text)
        assert theirs(text).input_ids == ids
        assert theirs.decode(ids) == tokenizer.decode(ids) == text
    assert len(theirs) == tokenizer.vocabulary_size
    assert theirs.eos_token_id == tokenizer.end_token_id
    assert theirs.model_max_length == 64


def test_generation_config(tmp_path):
    tokenizer = BytePairTokenizer.train(DOCUMENTS, vocabulary_size=300)
    model = made()
    model.tokenizer = tokenizer
    model.save_to_preset(tmp_path / "model")
    assert json.loads((tmp_path / "model/generation_config.json").read_text())["eos_token_id"] == 299
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path / "model", local_files_only=True)
    assert (theirs.eos_token_id, theirs.do_sample) == (299, False)


# === Training ===


def test_training_takes_the_same_steps(tmp_path):
    config = RunConfig(
        data=["-"],
        out="-",
        steps=20,
        warmup_steps=5,
        learning_rate=3e-3,
        min_learning_rate=3e-4,
        beta_1=0.9,
        beta_2=0.99,
        weight_decay=0.1,
        clip_norm=1.0,
        evaluate_every=20,
    )
    ours = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=0, **SMALL)
    ours.save_to_preset(tmp_path / "model")
    theirs = opened(tmp_path / "model").train()
    random = np.random.default_rng(0)
    # Sequences that ascend by one or two: something to learn, so that the loss falls.
    batches = (random.integers(0, 50, (20, 8, 1)) * 5 + np.cumsum(random.integers(1, 3, (20, 8, 33)), axis=2)) % 300

    ours.compile(
        optimizer=make_optimizer(config, ours.trainable_variables),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    our_losses = []
    for batch in batches:
        ours.reset_metrics()
        our_losses.append(ours.train_on_batch(batch[:, :-1], batch[:, 1:], return_dict=True)["loss"])

    groups = [
        {"params": [p for p in theirs.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.99), eps=1e-8)
    their_losses, norms = [], []
    for step, batch in enumerate(torch.tensor(batches)):
        cosine = (1 + math.cos(math.pi * (step - 5) / 15)) / 2
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * step / 5 if step < 5 else 3e-4 + (3e-3 - 3e-4) * cosine
        logits = theirs(batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)))
        optimizer.step()
        their_losses.append(loss.item())

    np.testing.assert_allclose(our_losses, their_losses, rtol=1e-4)
    assert their_losses[-1] < their_losses[0] - 0.3  # the weights move
    assert max(norms) > 1 > min(norms)  # some steps are clipped and others are not
    state = theirs.state_dict()
    for name, variable in named_variables(ours.backbone).items():
        np.testing.assert_allclose(variable, state[name], atol=1e-3, err_msg=name)
