"""`attention` and `logit_lens` of GPT-2 and of the translator, beside NumPy's."""

import keras
import numpy as np
import pytest

from tests.models import encoder_decoder_numpy, gpt2_numpy
from tfgpt.errors import UserError
from tfgpt.layers.observation import observe
from tfgpt.models import EncoderDecoderBackbone, EncoderDecoderTransformer, GPT2Backbone, GPT2CausalLM
from tfgpt.models.encoder_decoder import model_directory
from tfgpt.models.gpt2.hugging_face import named_variables
from tfgpt.text import BytePairTokenizer, CharacterTokenizer
from tfgpt.text.joint_tokenizer import train_joint_tokenizer

SIZES = {"vocabulary_size": 300, "num_layers": 3, "num_heads": 2, "hidden_dim": 16, "max_sequence_length": 24}
WEIGHTS = gpt2_numpy.random_weights(3, 16, 300, 24)
IDS = np.random.default_rng(0).integers(0, 300, 9)
TOKENIZER = BytePairTokenizer.train(["to be or not to be " * 9], 300)


def made(tokenizer=None, **options):
    model = GPT2CausalLM(GPT2Backbone(**(SIZES | options)), tokenizer=tokenizer)
    for name, variable in named_variables(model.backbone).items():
        variable.assign(WEIGHTS[name])
    return model


@pytest.fixture(scope="module")
def model():
    return made(TOKENIZER)


def softmax_of_products(q, k, num_heads, causal):
    """Attention weights (H, T, S) of queries (T, D) and keys (S, D)."""
    heads = []
    for q_h, k_h in zip(np.split(q, num_heads, axis=-1), np.split(k, num_heads, axis=-1)):
        scores = q_h @ k_h.T / np.sqrt(q_h.shape[-1])
        if causal:
            scores[np.triu_indices(len(q), k=1)] = -np.inf
        exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
        heads.append(exponentials / exponentials.sum(axis=-1, keepdims=True))
    return np.stack(heads)


def witnessed_gpt2(monkeypatch):
    """The attention weights and the residual stream behind each layer, as NumPy has them."""
    weights = {name: w.astype("float64") for name, w in WEIGHTS.items()}
    seen, added = [], []

    def attention(weights, prefix, x, num_heads):
        q, k, _ = np.split(gpt2_numpy.affine(weights, prefix + "c_attn", x[0]), 3, axis=-1)
        seen.append(softmax_of_products(q, k, num_heads, causal=True))
        added.append(original(weights, prefix, x, num_heads))
        return added[-1]

    def feed_forward(weights, prefix, x):
        added.append(original_feed_forward(weights, prefix, x))
        return added[-1]

    original, original_feed_forward = gpt2_numpy.attention, gpt2_numpy.feed_forward
    monkeypatch.setattr(gpt2_numpy, "attention", attention)
    monkeypatch.setattr(gpt2_numpy, "feed_forward", feed_forward)
    gpt2_numpy.forward(weights, IDS[None], num_heads=2)
    x = weights["transformer.wte.weight"][IDS] + weights["transformer.wpe.weight"][: len(IDS)]
    states = x + np.cumsum([branch[0] for branch in added], axis=0)[1::2]
    return weights, np.stack(seen), states


def test_attention_is_numpys(model, monkeypatch):
    _, expected, _ = witnessed_gpt2(monkeypatch)
    view = model.attention(IDS.tolist())
    assert view.weights.shape == (3, 2, 9, 9) and view.weights.dtype == "float32"
    np.testing.assert_allclose(view.weights, expected, atol=1e-5)
    assert not np.allclose(expected[0], expected[1], atol=0.05)  # layers differ, or their order would not show


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_rows_sum_to_one_and_none_looks_ahead(policy):
    weights = made(dtype=policy).attention(IDS.tolist()).weights
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)
    assert (weights[..., np.triu_indices(9, 1)[0], np.triu_indices(9, 1)[1]] == 0).all()
    assert (weights >= 0).all()


def test_the_logit_lens_is_numpys(model, monkeypatch):
    weights, _, states = witnessed_gpt2(monkeypatch)
    lens = model.logit_lens(IDS.tolist(), top_k=300)
    for layer in range(3):
        x = gpt2_numpy.normalize(weights, "transformer.ln_f", states[layer], 1e-5)
        logits = x @ weights["transformer.wte.weight"].T
        expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        found = np.take_along_axis(expected, lens.top_ids[layer], axis=-1)
        np.testing.assert_allclose(lens.probabilities[layer], found, rtol=1e-3)
    assert (np.diff(lens.probabilities, axis=-1) <= 0).all()
    assert not np.array_equal(lens.top_ids[0, :, 0], lens.top_ids[2, :, 0])


def test_the_last_layer_of_the_lens_is_the_model(model):
    lens = model.logit_lens(IDS.tolist(), top_k=4)
    expected = keras.ops.softmax(model(IDS[None])[0], axis=-1)
    top, ids = keras.ops.top_k(expected, 4)
    np.testing.assert_array_equal(lens.probabilities[-1], top)
    np.testing.assert_array_equal(lens.top_ids[-1], ids)


def test_a_text_is_shown_with_its_tokens(model):
    text = "to bé"
    view, lens = model.attention(text), model.logit_lens(text, top_k=2)
    token_ids = TOKENIZER.encode(text)
    assert view.queries == view.keys == lens.tokens
    assert view.queries[-2:] == ("\\xc3", "\\xa9") and "".join(view.queries[:-2]) == "to b"
    np.testing.assert_array_equal(view.weights, model.attention(token_ids).weights)
    assert lens.top_tokens[-1][-1] == TOKENIZER.token_texts(lens.top_ids[-1, -1])


def test_to_be_looked_at_changes_nothing(model):
    before = model(IDS[None]).numpy()
    with observe() as shown:
        np.testing.assert_array_equal(model(IDS[None]), before)
    assert len(shown) == 3 * 3
    model(IDS[None, :2])
    assert shown[model.backbone.blocks[0].attention].shape == (1, 9, 16)  # nobody looked any more
    half = made(dtype="mixed_bfloat16")
    before = half(IDS[None]).numpy()
    with observe():
        np.testing.assert_array_equal(half(IDS[None]), before)


@pytest.mark.parametrize(
    "text, options, expected",
    [
        ("", {}, "^the text has 0 tokens, expected 1 to the window's 24$"),
        ([], {}, "^the text has 0 tokens, expected 1 to the window's 24$"),
        ([1, 300], {}, "the text has token id 300, expected ids from 0 to 299"),
        ([1] * 25, {}, "^the text has 25 tokens, expected 1 to the window's 24$"),
        ([1], {"top_k": 0}, "top_k is 0, expected 1 to 300, the size of the vocabulary"),
        ([1], {"top_k": 301}, "top_k is 301, expected 1 to 300"),
    ],
)
def test_bad_input(model, text, options, expected):
    with pytest.raises(UserError, match=expected):
        model.logit_lens(text, **options)


def test_text_without_a_tokenizer():
    with pytest.raises(UserError, match="the model has no tokenizer, expected a text of token ids"):
        made().attention("to be")
    assert made().attention([4, 2]).queries == ("4", "2")


# === A translation pair ===

PAIRS = {
    "vocabulary_size": 300,
    "num_encoder_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 2,
    "hidden_dim": 16,
    "max_sequence_length": 24,
}


def translator(normalization="pre", tokenizer=None):
    model = EncoderDecoderTransformer(EncoderDecoderBackbone(**PAIRS, normalization=normalization), tokenizer)
    variables = model_directory.named_variables(model.backbone)
    weights = encoder_decoder_numpy.randomized({name: variable.shape for name, variable in variables.items()})
    for name, variable in variables.items():
        variable.assign(weights[name])
    return model, weights


@pytest.mark.parametrize("normalization", ["pre", "post"])
def test_attention_of_a_pair_is_numpys(normalization, monkeypatch):
    model, weights = translator(normalization)
    source, target = IDS[:7], IDS[4:]
    expected = {"encoder": [], "decoder": [], "cross": []}

    def attend(weights, prefix, q, k, v, num_heads, causal=False):
        kind = "cross" if "memory" in prefix else prefix.split(".")[0]
        expected[kind].append(softmax_of_products(q, k, num_heads, causal))
        return original(weights, prefix, q, k, v, num_heads, causal)

    original = encoder_decoder_numpy.attend
    monkeypatch.setattr(encoder_decoder_numpy, "attend", attend)
    logits = encoder_decoder_numpy.forward(weights, source, target, num_heads=2, pre_norm=normalization == "pre")
    attention = model.attention(source.tolist(), target.tolist())
    for kind, shape in (("encoder", (2, 2, 7, 7)), ("decoder", (3, 2, 5, 5)), ("cross", (3, 2, 5, 7))):
        view = getattr(attention, kind)
        assert view.weights.shape == shape == (*view.weights.shape[:2], len(view.queries), len(view.keys))
        np.testing.assert_allclose(view.weights, np.stack(expected[kind]), atol=1e-5)
    lens = model.logit_lens(source.tolist(), target.tolist(), top_k=3)
    np.testing.assert_array_equal(lens.top_ids[-1, :, 0], logits.argmax(-1))


def test_a_pair_of_texts_has_the_tokens_of_training():
    tokenizer = train_joint_tokenizer(["a cat sat", "eine katze sass"] * 9, 300)
    model, _ = translator(tokenizer=tokenizer)
    attention = model.attention("a cat", "eine")
    assert attention.encoder.queries[-1] == "</s>" and "".join(attention.encoder.queries[:-1]) == "a cat"
    assert attention.cross.queries[0] == "<s>" and "".join(attention.cross.queries[1:]) == "eine"
    assert attention.cross.keys == attention.encoder.queries


# === Tokens ===


@pytest.mark.parametrize("text", ["naïve 中文 👩‍🚀 e\u0301\u202e", " \n\t<|endoftext|>", "a\x00b\x7f"])
def test_texts_of_tokens_are_the_text(text):
    import re

    shown = "".join(TOKENIZER.token_texts(TOKENIZER.encode(text)))
    joined = re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), shown.encode())
    assert joined.decode() == text


def test_texts_of_characters():
    tokenizer = CharacterTokenizer.train(["héé\n"])
    assert tokenizer.token_texts(tokenizer.encode("é\nh")) == ["é", "\n", "h"]
    assert tokenizer.token_texts([99]) == [""]
