"""Translation runs on a language that the test makes up: a dictionary, and adjectives behind their nouns."""

import csv
import json
import random
import shutil

import keras
import numpy as np
import pytest

from tfgpt.cli.main import main
from tfgpt.errors import UserError
from tfgpt.models import EncoderDecoderTransformer
from tfgpt.safetensors_file import SafetensorsFile
from tfgpt.training.checkpoint_averaging import average_last_checkpoints
from tfgpt.training.run_report import RunObserver
from tfgpt.training.run_state import list_checkpoints, variable_names
from tfgpt.training.trainer import open_task, train
from tfgpt.training.translation_config import TranslationConfig
from tfgpt.training.translation_scores import score_translations

ADJECTIVES = {"red": "rubo", "small": "peko", "old": "veko", "green": "gruno"}
NOUNS = {"dog": "hunda", "cat": "kata", "bird": "birda", "house": "doma", "tree": "arba"}
VERBS = {"sees": "vidas", "likes": "amas", "has": "havas"}


def sentences(count, seed):
    """Pairs such as "red dog sees cat" and "hunda rubo vidas kata"."""
    draw = random.Random(seed)

    def phrase():
        noun = draw.choice(list(NOUNS))
        if draw.random() < 0.4:
            return noun, NOUNS[noun]
        adjective = draw.choice(list(ADJECTIVES))
        return f"{adjective} {noun}", f"{NOUNS[noun]} {ADJECTIVES[adjective]}"

    pairs = []
    for _ in range(count):
        (subject, theirs), verb, (thing, other) = phrase(), draw.choice(list(VERBS)), phrase()
        pairs.append((f"{subject} {verb} {thing}", f"{theirs} {VERBS[verb]} {other}"))
    return pairs


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two aligned files to learn from and two of unseen sentences."""
    folder = tmp_path_factory.mktemp("language")
    known = sentences(600, seed=0)
    unseen = [pair for pair in sentences(150, seed=1) if pair not in known][:40]
    for name, pairs in (("train", known), ("val", unseen)):
        for side in (0, 1):
            (folder / f"{name}.{side}").write_text("".join(f"{pair[side]}\n" for pair in pairs))
    return folder


def small(files, out, **fields):
    defaults = {
        "source": str(files / "train.0"),
        "target": str(files / "train.1"),
        "validation_source": str(files / "val.0"),
        "validation_target": str(files / "val.1"),
        "preset": "transformer-test",
        "vocabulary_size": 340,
        "steps": 240,
        "batch_size": 512,
        "learning_rate": 1e-2,
        "warmup_steps": 20,
        "evaluate_every": 60,
        "log_every": 20,
        "num_buckets": 2,
        "dropout": 0.1,
        "tensorboard": False,
        "compile": "none",  # which XLA would take longer for than these steps
        "seed": 1,
    }
    return TranslationConfig(out=str(out), **(defaults | fields))


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "model"
    return out, train(small(files, out, average_checkpoints=2))


# === End to end ===


def test_unseen_sentences_are_translated(run, files):
    out, result = run
    pairs = list(zip(*((files / f"val.{side}").read_text().splitlines() for side in (0, 1))))
    model = EncoderDecoderTransformer.from_preset(out)
    found = model.translate([source for source, _ in pairs])
    right = sum(translation == target for translation, (_, target) in zip(found, pairs, strict=True))
    assert right >= 0.95 * len(pairs) and len(pairs) == 40
    assert result.bleu > 95 and result.chrf > 95
    assert result.bleu == score_translations(found, [target for _, target in pairs]).bleu


def test_what_a_run_leaves_behind(run, files):
    out, result = run
    names = {path.name for path in out.iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "training"}
    config, generation = (json.loads((out / name).read_text()) for name in ("config.json", "generation_config.json"))
    assert config["model_type"] == "tfgpt_encoder_decoder" and config["is_encoder_decoder"]
    assert generation["decoder_start_token_id"] == config["bos_token_id"] == 1 and generation["eos_token_id"] == 2
    with open(out / "training" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    validations = [row for row in rows if row["validation_loss"]]
    assert [int(row["step"]) for row in validations] == [60, 120, 180, 240]
    scores = [float(row["validation_bleu"]) for row in validations]
    assert scores[-1] > scores[0] and all(float(row["validation_chrf"]) > 0 for row in validations)
    summary = json.loads((out / "training" / "summary.json").read_text())
    assert summary["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert result.steps == 240 and result.epochs > 5 and result.tokens_per_second > 0
    assert (out / "training" / "samples.txt").read_text().count("=== step") == 4
    assert any("BLEU" in line for line in result.lines())


def test_the_command_line(run, files, tmp_path, capsys):
    out, result = run
    assert main(["translate", str(out), "--text", "red dog sees cat", "old tree has bird"]) == 0
    assert capsys.readouterr().out.splitlines() == ["hunda rubo vidas kata", "arba veko havas birda"]
    arguments = ["--file", str(files / "val.0"), "--references", str(files / "val.1")]
    written = ["--out", str(tmp_path / "out.txt"), "--json", str(tmp_path / "out.json")]
    assert main(["translate", str(out), *arguments, *written]) == 0
    assert f"BLEU {result.bleu:.2f}   {result.bleu_signature}" in capsys.readouterr().out
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["bleu"] == result.bleu and figures["num_beams"] == 5
    assert (tmp_path / "out.txt").read_text().splitlines() == figures["translations"]


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ([], "found neither --text nor --file, expected one"),
        (["--text", "a", "--file", "b"], "found both --text and --file, expected one"),
        (["--text", "a", "--references", "b"], "--references is given without --file"),
        (["--file", "/missing"], "cannot read /missing: no such file or directory"),
        (["--text", "word " * 40], "text 0 has "),
        (["--text", "a", "--num_beams", "0"], "num_beams is 0, expected at least 1"),
    ],
)
def test_bad_input_to_translate_is_one_sentence(run, capsys, arguments, sentence):
    assert main(["translate", str(run[0]), *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"tfgpt: {sentence}") and "\n" not in error


def test_a_long_line_of_a_file_is_named(run, tmp_path, capsys):
    (tmp_path / "text").write_text("red dog\n" + "word " * 40 + "\n")
    assert main(["translate", str(run[0]), "--file", str(tmp_path / "text")]) == 2
    assert capsys.readouterr().err.startswith(f"tfgpt: {tmp_path / 'text'}, line 2: the sentence has ")


# === Runs ===


class StopAt(RunObserver):
    """Ends the process, as far as a test can, at a step."""

    def __init__(self, step):
        self.step, self.notes = step, []

    def row(self, row):
        if "loss" in row and row["step"] >= self.step:
            raise KeyboardInterrupt

    def note(self, text):
        self.notes.append(text)


FEW = {
    "steps": 12,
    "warmup_steps": 2,
    "evaluate_every": 6,
    "log_every": 3,
    "checkpoint_every": 3,
    "validation_sentences": 4,
}


def weights(directory):
    with SafetensorsFile(directory / "model.safetensors") as file:
        return {name: np.array(file[name]) for name in file.tensors}


def test_a_run_that_was_ended_goes_on_to_the_same_weights(files, tmp_path):
    train(small(files, tmp_path / "whole", **FEW))
    config = small(files, tmp_path / "cut", **FEW)
    with pytest.raises(KeyboardInterrupt):
        train(config, StopAt(9))
    observer = StopAt(99)
    result = train(config, observer)
    assert "goes on after step 6" in observer.notes[0]
    assert result.steps == 12
    whole, cut = (weights(tmp_path / name / "training" / "last") for name in ("whole", "cut"))
    for name, expected in whole.items():
        np.testing.assert_array_equal(cut[name], expected, name)


def test_a_step_is_the_same_whatever_computes_it(files, tmp_path):
    """By plain operators, by small compiled kernels, and in bfloat16 nearly so."""
    changes = {}
    for precision, compile in (("float32", "none"), ("float32", "kernels"), ("mixed_bfloat16", "kernels")):
        fields = {"precision": precision, "compile": compile, "dropout": 0.0, "warmup_steps": 0}
        config = small(files, tmp_path / f"{precision}_{compile}", **(FEW | fields))
        keras.utils.set_random_seed(config.seed)
        task = open_task(config)
        model = task.begin(config, RunObserver(), None)
        batch = next(iter(task.training()))
        losses = []
        for _ in range(3):
            losses.append(float(model.test_step(batch)["loss"]))
            model.reset_metrics()
            model.train_step(batch)
            model.reset_metrics()
        changes[precision, compile] = losses
    plain, kernels, bfloat16 = changes.values()
    assert plain[2] < plain[1] < plain[0]
    np.testing.assert_allclose(kernels, plain, rtol=1e-4)
    np.testing.assert_allclose(bfloat16, plain, rtol=2e-2)


@pytest.mark.slow
def test_the_whole_step_compiled_takes_the_same_steps(files, tmp_path):
    """One trace for all widths, compiled for each."""
    losses = []
    for compile in ("none", "step"):
        train(small(files, tmp_path / compile, **(FEW | {"dropout": 0.0, "compile": compile})))
        with open(tmp_path / compile / "training" / "metrics.csv", newline="") as file:
            losses.append([float(row["loss"] or row["validation_loss"]) for row in csv.DictReader(file)])
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_text_that_changed_since_a_run_began_is_refused(files, tmp_path):
    shutil.copytree(files, tmp_path / "text")
    config = small(tmp_path / "text", tmp_path / "model", **FEW)
    with pytest.raises(KeyboardInterrupt):
        train(config, StopAt(6))
    lines = (tmp_path / "text" / "train.1").read_text().splitlines()
    (tmp_path / "text" / "train.1").write_text("\n".join(["hunda", *lines[1:]]) + "\n")
    with pytest.raises(UserError, match="the train pairs have changed since the unfinished run"):
        train(config)


def test_the_mean_of_the_last_checkpoints(files, tmp_path):
    out = tmp_path / "model"
    train(small(files, out, **FEW, average_checkpoints=3))
    paths = list_checkpoints(out / "training" / "checkpoints")
    assert [path.name for path in paths] == ["000006", "000009", "000012"]
    task = open_task(small(files, tmp_path / "other", **FEW, precision="float32"))
    model = task.begin(task.config, RunObserver(), None)
    assert average_last_checkpoints(model, out / "training" / "checkpoints", 2) == [9, 12]
    for name, variable in variable_names(model).items():
        if "seed" in variable.path:
            continue
        stored = []
        for path in paths[1:]:
            with SafetensorsFile(path / "model.safetensors") as file:
                stored.append(np.array(file[name], np.float64))
        np.testing.assert_allclose(variable, np.mean(stored, axis=0), rtol=1e-6, atol=1e-9)


def test_a_tab_separated_file_of_which_some_is_held_out(files, tmp_path):
    pairs = sentences(100, seed=5)
    (tmp_path / "pairs.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in pairs))
    fields = {"source": None, "target": None, "validation_source": None, "validation_target": None}
    fields |= {"data": str(tmp_path / "pairs.tsv"), "validation_fraction": 0.1}
    config = small(files, tmp_path / "model", **fields, **FEW, precision="float32")
    task = open_task(config)
    task.begin(config, RunObserver(), None)
    assert len(task.held_out) == 10 and len(task.train_pairs) == 90
    assert [pairs[task.held_out.line(i) - 1][0] for i in range(10)] == task.held_out.sources


# === Bad input ===


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"target": None}, "target is missing, expected both source and target, or data"),
        ({"validation_source": None}, "validation_source is missing, expected both validation_source and"),
        ({"data": "x.tsv"}, "data is 'x.tsv' beside source or target, expected one or the other"),
        ({"source": None, "target": None}, "there is no data, expected source and target, or data"),
        ({"dropout": 1.0}, "dropout is 1.0, expected from 0 to below 1"),
        ({"num_beams": 0}, "num_beams is 0, expected at least 1"),
        ({"normalization": "both"}, "normalization is 'both', expected one of pre, post"),
        ({"strategy": "mirrored"}, "strategy is 'mirrored', expected one_device for translation"),
        ({"schedule": "noam"}, "schedule is 'noam', expected one of cosine, linear, constant, wsd, inverse_sqrt"),
    ],
)
def test_a_bad_configuration_is_one_sentence(files, tmp_path, fields, sentence):
    with pytest.raises(UserError) as error:
        small(files, tmp_path / "model", **fields)
    assert str(error.value).startswith(sentence) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"max_length": 4}, "the sentence has "),
        ({"batch_size": 4}, "tokens_per_batch is 4, expected at least the "),
        ({"tokenizer": "missing"}, "tokenizer is 'missing', expected bpe or a directory with tokenizer.json"),
        ({"preset": "transformer-tinny"}, "unknown preset 'transformer-tinny'"),
        ({"num_heads": 5}, "hidden_dim is 32, expected a multiple of num_heads 5"),
        ({"vocabulary_size": 100}, "vocabulary_size is 100, expected at least 259"),
    ],
)
def test_bad_input_leaves_nothing_behind(files, tmp_path, fields, sentence):
    with pytest.raises(UserError) as error:
        train(small(files, tmp_path / "model", **fields))
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "model").exists()


def test_scores_are_those_of_sacrebleus_command(tmp_path):
    """Against BLEU worked out by hand: 5 of 6 words, 4 of 5 pairs, 3 of 4 triples, 2 of 3 quadruples."""
    scores = score_translations(["the cat sat on the mat"], ["a cat sat on the mat"])
    assert scores.bleu == pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25, abs=1e-3)
    assert scores.chrf_signature.startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")
    with pytest.raises(UserError, match="there are 2 references, expected the 1 of the translations"):
        score_translations(["a"], ["a", "b"])
