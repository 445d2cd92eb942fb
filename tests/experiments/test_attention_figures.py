"""`tfgpt attention`, and what it draws."""

import json

import numpy as np
import pytest

from tfgpt.cli.main import main
from tfgpt.errors import UserError
from tfgpt.experiments.attention import page
from tfgpt.experiments.attention.figures import PIXELS, attention_figure, lens_figure, mosaic_of
from tfgpt.models import EncoderDecoderTransformer, GPT2CausalLM
from tfgpt.models.views import AttentionView, LogitLens
from tfgpt.text import BytePairTokenizer
from tfgpt.text.joint_tokenizer import train_joint_tokenizer

random = np.random.default_rng(0)


def view_of(layers, heads, queries, keys):
    weights = random.dirichlet(np.ones(keys), size=(layers, heads, queries)).astype("float32")
    return AttentionView(tuple(map(str, range(queries))), tuple(map(str, range(keys))), weights)


def test_the_mosaic_has_layers_down_and_heads_across():
    weights = view_of(2, 3, 4, 5).weights
    mosaic = mosaic_of(weights)
    assert mosaic.shape == (2 * 4, 3 * 5)
    for layer in range(2):
        for head in range(3):
            np.testing.assert_array_equal(
                mosaic[4 * layer : 4 * layer + 4, 5 * head : 5 * head + 5], weights[layer, head]
            )


def test_many_tokens_are_drawn_as_the_largest_of_neighbours():
    weights = np.zeros((1, 1, 2, 2 * PIXELS + 1), "float32")
    weights[0, 0, 0, -1], weights[0, 0, 1, 4] = 0.7, 0.3
    mosaic = mosaic_of(weights)
    assert mosaic.shape == (2, 107)  # three keys a pixel
    assert mosaic[0, 106] == np.float32(0.7) and mosaic[1, 1] == np.float32(0.3) and mosaic.sum() == np.float32(1.0)


def test_a_figure_says_what_is_where():
    figure = attention_figure(view_of(48, 25, 3, 4), "title")
    axes = figure.axes[0]
    assert axes.get_xlabel() == "head (in each: 4 keys across)" and axes.get_title() == "title"
    assert [*axes.get_xticks()][:2] == [1, 3] and axes.get_ylabel().startswith("layer")
    assert max(figure.get_size_inches()) < 30
    assert figure.axes[1].get_ylabel() == "attention weight"


def test_the_lens_figure_has_the_tokens_that_the_font_has():
    lens = LogitLens(
        ("$a$", " b"), np.zeros((1, 2, 1), int), [[["中文"], ["extraordinary"]]], np.array([[[0.9], [0.1]]])
    )
    axes = lens_figure(lens).axes[0]
    assert [text.get_text() for text in axes.texts] == ["\\u4e2d\\…", "extraor…"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["$a$", "␣b"]
    assert not any(label.get_parse_math() for label in axes.get_xticklabels())


def test_a_text_that_is_too_long_for_a_page():
    weights = np.broadcast_to(np.float32(0), (12, 12, 400, 400))
    tokens = tuple(map(str, range(400)))
    expected = "the text has 400 tokens, expected at most 341 for 12 layers of 12 heads: a page holds 16777216 weights"
    with pytest.raises(UserError, match=expected):
        page({"self-attention": AttentionView(tokens, tokens, weights)})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tokenizer = BytePairTokenizer.train(["to be or not to be " * 9], 300)
    model = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=0)
    model.tokenizer = tokenizer
    path = tmp_path_factory.mktemp("attention") / "model"
    model.save_to_preset(path)
    return path


def data_of(path):
    [line] = [line for line in path.read_text().splitlines() if 'id="data"' in line]
    return json.loads(line.split(">", 1)[1].removesuffix("</script>"))


def test_the_command(model, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["attention", str(model), "--text", "to be", "--out", str(out), "--top_k", "3"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["attention.html", "attention.png", "logit_lens.png"]
    assert (out / "attention.png").read_bytes().startswith(b"\x89PNG")
    data = data_of(out / "attention.html")
    tokens = GPT2CausalLM.from_preset(model).attention("to be").queries
    assert [token.replace("␣", " ") for token in data["views"][0]["queries"]] == [*tokens]
    assert np.shape(data["lens"]["probabilities"]) == (2, len(tokens), 3)
    assert f"self-attention: 2 layers of 2 heads, {len(tokens)} tokens" in capsys.readouterr().out


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    model = EncoderDecoderTransformer.from_preset("transformer-test", load_weights=False, seed=0)
    model.tokenizer = train_joint_tokenizer(["a cat sat", "eine katze sass"] * 9, 300)
    path = tmp_path_factory.mktemp("translator") / "model"
    model.save_to_preset(path)
    return path


def test_a_translation_pair(translator, tmp_path):
    arguments = ["attention", str(translator), "--text", "a cat", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--target", "eine katze"]) == 0
    names = [f"attention_{name}.png" for name in ("cross", "decoder", "encoder")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["attention.html", *names, "logit_lens.png"]
    views = data_of(tmp_path / "out" / "attention.html")["views"]
    assert [view["name"] for view in views] == ["encoder", "decoder", "cross"]
    assert [view["lens"] for view in views] == [False, True, True]
    assert views[2]["keys"] == views[0]["queries"] and views[2]["queries"][0] == "<s>"


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--text", ""], "the text has 0 tokens, expected 1 to the window's"),
        (["--text", "to be", "--top_k", "0"], "top_k is 0, expected 1 to 300"),
        (["--text", "to be", "--target", "sein"], "target is 'sein', expected none"),
        (["--text", "be " * 300], "tokens, expected 1 to the window's"),
    ],
)
def test_bad_input(model, tmp_path, options, expected, capsys):
    assert main(["attention", str(model), *options, "--out", str(tmp_path / "out")]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert expected in line
    assert not (tmp_path / "out").exists()


def test_no_model_and_a_folder_that_holds_something(model, tmp_path, capsys):
    assert main(["attention", "no/such/model", "--text", "a", "--out", str(tmp_path / "out")]) == 2
    assert "no/such/model/config.json is missing" in capsys.readouterr().err
    (tmp_path / "kept").write_text("")
    assert main(["attention", str(model), "--text", "a", "--out", str(tmp_path)]) == 2
    assert "expected a new one" in capsys.readouterr().err


def test_a_translator_looks_at_its_own_translation(translator, tmp_path):
    """Whose last normalization leaves only "</s>" to be said."""
    model = EncoderDecoderTransformer.from_preset(translator)
    norm, embeddings = model.backbone.decoder_norm, model.backbone.target_embedding.embeddings
    norm.gamma.assign(0 * norm.gamma)
    norm.beta.assign(99 * embeddings[model.tokenizer.eos_token_id])
    model.save_to_preset(tmp_path / "model")
    assert model.translate("a cat") == ""
    assert main(["attention", str(tmp_path / "model"), "--text", "a cat", "--out", str(tmp_path / "out")]) == 0
    encoder, decoder, cross = data_of(tmp_path / "out" / "attention.html")["views"]
    assert decoder["queries"] == cross["queries"] == ["<s>"] and cross["keys"] == encoder["keys"]
    arguments = [
        "attention",
        str(tmp_path / "model"),
        "--text",
        "a cat " * 99,
        "--target",
        "a",
        "--out",
        str(tmp_path / "no"),
    ]
    assert main(arguments) == 2
