"""The networks, their steps, and a whole ablation that is as small as can be."""

import csv
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfgpt.cli.main import main
from tfgpt.errors import UserError
from tfgpt.experiments.ablation import VARIANTS, AblationNetwork, read_ablation, run_ablation
from tfgpt.experiments.ablation.experiment import Step, unigram_entropy
from tfgpt.experiments.ablation.figures import FIGURES
from tfgpt.training.losses import token_losses

DEPTH = 2
windows = np.random.default_rng(0).integers(0, 10, (3, 7), np.int32)


def made(variant, residual_scaling=False):
    keras.utils.set_random_seed(0)
    return AblationNetwork(variant, 10, DEPTH, num_heads=2, hidden_dim=8, residual_scaling=residual_scaling)


def kernels(network):
    return {v.path.split("/", 1)[1]: v.numpy() for v in network.weights if len(v.shape) == 2}


def test_variants_begin_with_the_same_numbers_and_scaling_changes_output_kernels_alone():
    first = kernels(made("pre"))
    assert len(first) == 1 + 4 * DEPTH
    for variant in VARIANTS:
        for scaling in (False, True):
            found = kernels(made(variant, scaling))
            assert list(found) == list(first)
            for name, kernel in first.items():
                factor = (2 * DEPTH) ** -0.5 if scaling and "output" in name else 1.0
                np.testing.assert_allclose(found[name], kernel * factor, rtol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_network_is_what_its_name_says(variant):
    network = made(variant)
    block = network.blocks[0]
    for residual_block in (block.attention, block.feed_forward):
        assert residual_block.normalization == {"no_residual": "pre"}.get(variant, variant)
        assert residual_block.residual == (variant != "no_residual")
    assert (network.final_norm is not None) == (variant in ("pre", "no_residual"))
    logits, states = network(windows)
    changed = windows.copy()
    changed[:, 4:] = 3
    np.testing.assert_allclose(network(changed)[0][:, :4], logits[:, :4], atol=1e-5)  # causal
    embeddings = network.token_embedding.embeddings.numpy()
    x = states[-1].numpy()
    if network.final_norm is not None:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(logits, x @ embeddings.T, atol=1e-4)


@pytest.fixture(scope="module")
def step():
    return Step(made("post"))


def loss_of(network):
    logits, states = network(windows[:, :-1])
    return tf.reduce_mean(token_losses(logits, windows[:, 1:])), states


def test_norms_of_a_step(step):
    weights = made("post").get_weights()
    step.begin(weights)
    loss, norms = step(windows, 0.0)  # a rate of 0 leaves the weights
    network = step.network
    for before, after in zip(weights, network.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    expected, states = loss_of(network)
    assert loss == pytest.approx(float(expected), rel=1e-5)
    activations = [np.sqrt((x.numpy() ** 2).sum(-1).mean()) for x in states]
    np.testing.assert_allclose(norms[:, 2], activations, rtol=1e-4)
    assert np.isnan(norms[0, :2]).all()
    for number, block in enumerate(network.blocks, start=1):
        kernel = block.feed_forward.sublayer.output_dense.kernel
        for column, variables in enumerate((block.trainable_variables, [kernel])):
            assert norms[number, column] == pytest.approx(slope(network, variables), rel=0.02)


def slope(network, variables, distance=1e-2):
    """The norm of a gradient by finite differences: how fast the loss grows in the gradient's own direction."""
    with tf.GradientTape() as tape:
        loss, _ = loss_of(network)
    gradients = [gradient.numpy() for gradient in tape.gradient(loss, variables)]
    norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients))
    before = [variable.numpy() for variable in variables]
    losses = []
    for sign in (1, -1):
        for variable, value, gradient in zip(variables, before, gradients):
            variable.assign(value + sign * distance * gradient / norm)
        losses.append(float(loss_of(network)[0]))
    for variable, value in zip(variables, before):
        variable.assign(value)
    return (losses[0] - losses[1]) / (2 * distance)


def test_a_run_begins_anew_after_another(step):
    weights = made("post").get_weights()
    losses = []
    for _ in range(2):
        step.begin(weights)
        losses.append([step(windows, 1e-2)[0] for _ in range(5)])
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]


def test_no_prediction_without_context_is_below_the_unigram_entropy():
    tokens = np.repeat(np.arange(4), [5, 3, 1, 1])
    best = np.log([0.5, 0.3, 0.1, 0.1])
    logits = np.stack([best, np.zeros(4), best + [0.1, 0, 0, 0]]).astype("float32")
    losses = [float(tf.reduce_mean(token_losses(np.tile(row, (10, 1)), tokens))) for row in logits]
    assert losses[0] == pytest.approx(unigram_entropy(tokens), abs=1e-6)
    assert min(losses[1:]) > unigram_entropy(tokens)


# === A whole ablation ===

ARGUMENTS = ["--depths", "1", "--variants", "pre", "no_residual", "--steps", "4", "--warmup_steps", "2"]
SIZES = ["--hidden_dim", "8", "--num_heads", "2", "--window", "6", "--batch_size", "2", "--seed", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    (folder / "text").write_text("the rest is silence; " * 60)
    options = ["--data", str(folder / "text"), *ARGUMENTS, *SIZES, "--json", str(folder / "figures.json")]
    assert main(["ablate", "--out", str(folder / "out"), *options]) == 0
    return folder


def test_every_run_is_recorded(folder):
    ablation = read_ablation(folder / "out")
    assert [run.key for run in ablation.runs] == [
        ("pre", 1, True, False),
        ("pre", 1, False, False),
        ("pre", 1, True, True),
        ("pre", 1, False, True),
        ("no_residual", 1, True, False),
        ("no_residual", 1, False, False),
    ]
    for run in ablation.runs:
        assert len(run.losses) == 4 and np.isfinite(run.final_loss)
        assert run.steps() == [0, 1, 2, 3] and [row[0] for row in run.norms_at(0)] == [0, 1]
    warm, cold = ablation.runs[:2]
    assert warm.losses[:2] != cold.losses[:2] and warm.losses[0] == cold.losses[0]
    assert warm.norms_at(0)[1] == cold.norms_at(0)[1]  # the first batch, the first weights
    assert warm.norms_at(3)[1] != cold.norms_at(3)[1]
    with open(folder / "out" / "norms.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * 4 * 2 and float(rows[1]["gradient_norm"]) == warm.norms_at(0)[1][1]


def test_figures_as_json(folder):
    figures = json.loads((folder / "figures.json").read_text(), parse_constant=pytest.fail)
    ablation = read_ablation(folder / "out")
    assert [run["final_loss"] for run in figures["runs"]] == [run.final_loss for run in ablation.runs]
    assert figures["unigram_entropy"] == ablation.unigram_entropy


def test_the_report_comes_from_the_data_alone(folder, capsys):
    out = folder / "out"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(before) == {
        "report.md",
        "ablation.json",
        "losses.csv",
        "norms.csv",
        *(f"{name}.png" for name in FIGURES),
    }
    for name in before:
        if name.endswith(("png", "md")):
            (out / name).unlink()
    assert main(["ablate", "--out", str(out), "--redraw"]) == 0
    assert "pre-norm" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_seed_gives_the_same_numbers(folder):
    again = run_ablation(
        folder / "again",
        [folder / "text"],
        depths=[1],
        variants=["pre"],
        steps=4,
        warmup_steps=2,
        hidden_dim=8,
        num_heads=2,
        window=6,
        batch_size=2,
        seed=3,
    )
    runs = read_ablation(folder / "out").runs
    assert [run.losses for run in again.runs] == [run.losses for run in runs[:4]]


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--depths", "2", "0"], "depth is 0, expected 1 block or more"),
        (["--depths", "2", "2"], "depths are [2, 2], expected one or more, each once"),
        (["--variants", "pre", "sandwich"], "variant is 'sandwich', expected one of pre, post, none, no_residual"),
        (["--steps", "1"], "steps is 1, expected 2 or more"),
        (["--warmup_steps", "300"], "warmup_steps is 300, expected 1 to 299"),
        (["--learning_rate", "0"], "learning_rate is 0.0, expected a number above 0"),
        (["--hidden_dim", "9", "--num_heads", "3"], "hidden_dim is 9, expected an even multiple of num_heads 3"),
        (["--data", "no/such/file"], "no/such/file"),
        (["--window", "5000"], "expected at least 5001, a window of 5000 and its last target"),
        (["--redraw"], "ablation.json is missing"),
    ],
)
def test_bad_input(folder, options, expected, capsys):
    options = ["--data", str(folder / "text"), *options]
    assert main(["ablate", "--out", str(folder / "bad"), *options]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert expected in line
    assert not (folder / "bad").exists()


def test_an_out_that_holds_something(folder, capsys):
    assert main(["ablate", "--out", str(folder / "out"), "--data", str(folder / "text")]) == 2
    assert "exists already and is not an empty directory; expected a new one" in capsys.readouterr().err


def test_records_that_were_damaged(folder, tmp_path):
    for name, contents, expected in (
        ("ablation.json", "{}", "ablation.json is no record of an ablation"),
        (
            "losses.csv",
            "variant,depth\npre,one\n",
            "losses.csv, line 2, is no part of an ablation, expected a row of a run in ablation.json",
        ),
        (
            "norms.csv",
            "header\npost,7,True,False,0,1,1,1,1\n",
            "norms.csv, line 2, is no part of an ablation",
        ),
    ):
        for path in (folder / "out").glob("*.*"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / name).write_text(contents)
        with pytest.raises(UserError, match=expected):
            read_ablation(tmp_path)
