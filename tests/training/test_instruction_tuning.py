"""The recipes on the causal LM: fine-tuning, and prompts whose answers alone are learned; each from its config."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import yaml

from tests.models import gpt2_numpy
from tfgpt.cli.main import main
from tfgpt.errors import UserError
from tfgpt.models import GPT2CausalLM
from tfgpt.models.gpt2.hugging_face import named_variables
from tfgpt.text import BytePairTokenizer, TokenShards, training_windows
from tfgpt.text.prompts import PromptedText, encode_prompted, prompted_batch
from tfgpt.training.instruction_config import InstructionConfig
from tfgpt.training.instruction_tuning import evaluate_answers
from tfgpt.training.losses import TokenLoss
from tfgpt.training.run_config import RunConfig
from tfgpt.training.train_step import TrainingCausalLM
from tfgpt.training.trainer import RunObserver, train

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
NAMES = ["Anna", "Ben", "Cleo", "Dan"]
THINGS = ["kite", "boat", "drum", "lamp"]


def rows(count):
    """What someone has, in the words of each recipe."""
    random = np.random.default_rng(0)
    made = []
    for _ in range(count):
        name, thing = NAMES[random.integers(4)], THINGS[random.integers(4)]
        text = f"{name} has a {thing}."
        made.append(
            {
                "context": text,
                "question": "Who?",
                "answer": name,
                "turns": [f"A: {text}", "A: Who?"],
                "reply": name,
                "document": text,
                "summary": name,
            }
        )
    return made


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A language model, untrained, with its tokenizer and a vocabulary that is padded."""
    folder = tmp_path_factory.mktemp("pretrained")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(300)))
    (folder / "text.txt").write_text("".join(f"{name} has a {thing}.\n" for name in NAMES for thing in THINGS) * 20)
    tokenizer = BytePairTokenizer.train([(folder / "text.txt").read_text() + "Question: Who? Answer: TL;DR:"], 300)
    sizes = {"vocabulary_size": 304, "max_sequence_length": 48, "initializer_range": 0.1}
    model = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=0, **sizes)
    model.tokenizer = tokenizer
    model.save_to_preset(folder / "lm")
    return folder


def config(pretrained, out, name, **fields):
    options = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    made = InstructionConfig if options["task"] == "instruction_tuning" else RunConfig
    data = pretrained / ("rows.jsonl" if made is InstructionConfig else "text.txt")
    small = {"steps": 120, "evaluate_every": 60, "warmup_steps": 10, "learning_rate": 1e-2, "min_learning_rate": 1e-3}
    small |= {"batch_size": 16, "tensorboard": False, "compile": "none", "sample_tokens": 4, "patience": 0}
    settings = {**options, "data": [str(data)], "init": str(pretrained / "lm"), **small, **fields}
    return made(out=str(out), **settings)


# === The recipes ===


@pytest.mark.parametrize("name", ["question_answering", "dialogue", "summarization"])
def test_a_recipe_learns_its_answers(pretrained, tmp_path, name):
    made = config(pretrained, tmp_path / "model", name)
    result = train(made)
    assert result.perplexity < 1.5
    model = GPT2CausalLM.from_preset(tmp_path / "model")
    row = {"context": "Cleo has a boat.", "question": "Who?", "turns": "A: Cleo has a boat.\nA: Who?"}
    prompt = made.prompt_template.format(**row, document="Cleo has a boat.")
    assert model.generate(prompt, max_new_tokens=8) == f"{prompt} Cleo"  # and then the text ends
    assert model.backbone.vocabulary_size == 304


def test_fine_tuning_goes_on_from_the_weights(pretrained, tmp_path):
    losses = []

    class Losses(RunObserver):
        def row(self, row):
            if "loss" in row:
                losses.append(row["loss"])

    made = config(pretrained, tmp_path / "model", "fine_tuning", steps=40, evaluate_every=40, log_every=1)
    train(made, Losses())
    before = GPT2CausalLM.from_preset(pretrained / "lm")
    after = GPT2CausalLM.from_preset(tmp_path / "model")
    assert after.tokenizer.fingerprint == before.tokenizer.fingerprint
    assert not np.array_equal(after.backbone.weights[0], before.backbone.weights[0])
    assert np.abs(after.backbone.weights[0].numpy() - before.backbone.weights[0].numpy()).max() < 0.5
    assert len(losses) == 40 and losses[-1] < losses[0]
    # The first step's loss is the pretrained model's own, on the batch of that step.
    split = TokenShards.open(tmp_path / "model/training/tokens").split("train")
    inputs, targets = next(iter(training_windows(split, 48, 16, made.seed)))
    assert losses[0] == pytest.approx(float(TokenLoss()(targets, before(inputs))), rel=1e-4)


def test_a_broken_run_goes_on(pretrained, tmp_path):
    class Stop(RunObserver):
        def row(self, row):
            if "loss" in row and row["step"] >= 40:
                raise KeyboardInterrupt

    fields = {"steps": 60, "evaluate_every": 20, "log_every": 10, "sample_tokens": 0}
    whole = train(config(pretrained, tmp_path / "whole", "question_answering", **fields))
    with pytest.raises(KeyboardInterrupt):
        train(config(pretrained, tmp_path / "broken", "question_answering", **fields), Stop())
    assert train(config(pretrained, tmp_path / "broken", "question_answering", **fields)).loss == whole.loss


# === The loss ===


@pytest.fixture
def small():
    """A model with random weights, examples of it, and NumPy's loss of each target."""
    tokenizer = BytePairTokenizer.train(["abc"], vocabulary_size=257)
    weights = gpt2_numpy.random_weights(2, 16, 257, 12)
    sizes = {"vocabulary_size": 257, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 64}
    base = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, max_sequence_length=12, **sizes)
    model = TrainingCausalLM(base.backbone)
    for name, variable in named_variables(model.backbone).items():
        variable.assign(weights[name])
    pairs = [("abc", "xy"), ("q", "wertz"), ("longer pr", "a")]
    examples = [PromptedText(prompt, answer, "f") for prompt, answer in pairs]
    tokens = encode_prompted(tokenizer, examples, window=12)
    losses = []
    for row in tokens.token_ids:
        logits = gpt2_numpy.forward(weights, row[None, :-1], num_heads=2)[0].astype("float64")
        log_z = np.log(np.exp(logits).sum(axis=1))
        losses.append(log_z - logits[np.arange(len(row) - 1), row[1:]])
    return model, tokens, losses


def test_the_loss_is_numpys_over_the_answers_alone(small):
    model, tokens, losses = small
    answers = [row[count - 1 :] for row, count in zip(losses, tokens.num_prompt_tokens)]
    expected = np.concatenate(answers).mean()
    assert [len(answer) for answer in answers] == [3, 6, 2]  # with the end of text
    batch = tuple(map(tf.constant, prompted_batch(tokens, [0, 1, 2], 12)))
    model.compile(optimizer="sgd", loss=TokenLoss(), jit_compile=False, run_eagerly=True)
    assert float(model.train_step(batch)["loss"]) == pytest.approx(expected, rel=1e-5)
    found = evaluate_answers(GPT2CausalLM(model.backbone), tokens, 12, batch_size=2)
    assert found.tokens == 11 and found.bytes == 8


def test_evaluation_counts_each_token_of_the_answers_once(small):
    model, tokens, losses = small
    answers = np.concatenate([row[count - 1 :] for row, count in zip(losses, tokens.num_prompt_tokens)])
    found = evaluate_answers(model, tokens, 12, batch_size=2)
    assert found.loss == pytest.approx(answers.mean(), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(answers.sum() / np.log(2) / 8, rel=1e-5)


def test_a_prompts_tokens_get_no_gradient_as_targets(small):
    model, tokens, _ = small
    inputs, targets, weights = map(tf.constant, prompted_batch(tokens, [0, 1, 2], 12))
    logits = tf.Variable(model(inputs))
    with tf.GradientTape() as tape:
        loss = TokenLoss()(targets, logits, sample_weight=weights)
    gradient = np.abs(tape.gradient(loss, logits)).max(axis=-1)
    assert (gradient[weights.numpy() == 0] == 0).all() and (gradient[weights.numpy() == 1] > 0).all()
    # In the step itself: other targets in the prompts and in the padding change no gradient.
    total = tf.reduce_sum(weights)
    model.compile(optimizer="sgd", loss=TokenLoss(), jit_compile=False)
    _, found = model._loss_and_gradients(inputs, targets, weights, total)
    others = tf.where(weights == 0, (targets + 7) % 257, targets)
    _, same = model._loss_and_gradients(inputs, others, weights, total)
    for a, b in zip(found, same, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)


# === What is refused ===


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"prompt_template": "Q: {question"}, "prompt_template is 'Q: {question', expected fields in braces"),
        ({"prompt_template": "{a.b}"}, "prompt_template is '{a.b}', expected fields in braces"),
        ({"answer_template": "yes"}, "answer_template is 'yes', expected one with a field"),
        ({"max_bytes": 5}, "max_bytes is 5, expected none"),
        ({"num_layers": 2}, "num_layers is 2, expected none with init, whose sizes are taken"),
        ({"tokenizer": "character"}, "tokenizer is 'character', expected none with init"),
        ({"prompt_template": "{title}"}, "rows.jsonl, line 1 has the fields .*, expected one named 'title'"),
        ({"init": "/nowhere"}, "/nowhere/config.json is missing, expected a model directory"),
    ],
)
def test_bad_input(pretrained, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        train(config(pretrained, tmp_path / "model", "question_answering", **fields))
    assert not (tmp_path / "model").exists()


def test_the_command(pretrained, tmp_path, capsys):
    arguments = ["train", "--config", str(CONFIGS / "summarization.yaml"), "--data", str(pretrained / "rows.jsonl")]
    arguments += ["--init", str(pretrained / "lm"), "--out", str(tmp_path / "model"), "--compile", "none"]
    arguments += ["--steps", "10", "--warmup-steps", "1", "--evaluate-every", "10", "--no_tensorboard"]
    assert main(arguments) == 0
    assert "validation loss" in capsys.readouterr().out
