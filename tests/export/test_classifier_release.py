"""Classifiers in and out of releases: the same probabilities on every runtime, and what happens to damaged ones."""

import json
import shutil
import subprocess
import sys
import types

import numpy as np
import onnx
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from tests.models import encoder_numpy
from tfgpt.classification import pad_right, probabilities_of
from tfgpt.cli.main import main
from tfgpt.errors import UserError
from tfgpt.export import ParityError, export_release, prove_release
from tfgpt.models import EncoderBackbone, EncoderClassifier, GPT2Backbone, GPT2Classifier
from tfgpt.models.classifier.hugging_face import named_variables
from tfgpt.runtime import open_classifier_runner, open_runner
from tfgpt.text import BytePairTokenizer, load_tokenizer, read_documents

LABELS = ["bad", "fair", "good"]
SIZES = {"num_layers": 2, "num_heads": 2, "hidden_dim": 32, "max_sequence_length": 48}


def classifier(kind, tokenizer):
    sizes = {**SIZES, "vocabulary_size": tokenizer.vocabulary_size}
    if kind == "gpt2":
        model = GPT2Classifier(GPT2Backbone(**sizes), LABELS, tokenizer)
    elif kind == "encoder":
        model = EncoderClassifier(EncoderBackbone(**sizes), LABELS, tokenizer)
    else:
        backbone = EncoderBackbone(**sizes, normalization="post", positions="sinusoidal", activation="relu")
        model = EncoderClassifier(backbone, LABELS, tokenizer, pooling="first")
    encoder_numpy.randomize(named_variables(model))
    return model


@pytest.fixture(scope="module")
def texts():
    source = "\n".join(read_documents(["stdlib"], max_bytes=2**16))
    lines = [line.strip() for line in source.splitlines() if len(line.strip()) > 1]
    return sorted(set(lines), key=lines.index)[:200]


@pytest.fixture(scope="module")
def exported(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = BytePairTokenizer.train(texts, 600)
    fitting = [text for text in texts if len(tokenizer.encode(text)) <= 48][:24]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": t, "label": "bad"}) + "\n" for t in fitting))
    model = classifier("encoder", tokenizer)
    model.save_to_preset(folder / "model")
    reports = export_release(folder / "model", folder / "release", name="served", text=folder / "texts.jsonl")
    made = {"path": folder / "release", "model": model, "directory": folder / "model", "texts": fitting}
    made["loaded"] = tf.saved_model.load(str(folder / "release/saved_model/served/1"))
    return types.SimpleNamespace(**made, data=folder / "texts.jsonl", reports=reports)


@pytest.fixture
def copied(exported, tmp_path):
    """A copy of a release, to be damaged."""
    return shutil.copytree(exported.path, tmp_path / "release")


# === What a release holds ===


def test_the_proof(exported):
    proof = json.loads((exported.path / "parity.json").read_text())
    assert proof["passed"] and [runtime["runtime"] for runtime in proof["runtimes"]] == ["saved_model", "onnx"]
    for report in exported.reports:
        assert report.texts == 24 and report.identical_labels == report.checks >= 72
        assert 0 < report.max_probability_difference <= 1e-5
    assert "| same model |" in (exported.path / "parity.md").read_text()


def test_probabilities_vary(exported):
    """Else parity would be proved of a constant."""
    found = exported.model.classify(exported.texts)
    assert len({one.label for one in found}) > 1
    assert np.std([list(one.probabilities.values()) for one in found], axis=0).min() > 0.02


def test_manifest_and_files(exported):
    manifest = json.loads((exported.path / "manifest.json").read_text())
    assert manifest["tolerances"]["probability"]["limit"] == 1e-5
    names = {"config.json", "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "onnx/model.onnx"}
    names |= {"saved_model/served/1/saved_model.pb", "saved_model/served/1/assets.extra/tf_serving_warmup_requests"}
    assert names <= set(manifest["files"])
    assert [path.name for path in (exported.path / "onnx").iterdir()] == ["model.onnx"]  # one file
    assert json.loads((exported.path / "config.json").read_text())["id2label"] == {"0": "bad", "1": "fair", "2": "good"}


def test_the_onnx_model_is_in_optimums_layout(exported):
    model = onnx.load(exported.path / "onnx/model.onnx")
    onnx.checker.check_model(model, full_check=True)

    def described(values):
        return {
            value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
            for value in values
        }

    axes = ["batch_size", "sequence_length"]
    assert described(model.graph.input) == {"input_ids": axes, "attention_mask": axes}
    assert described(model.graph.output) == {"logits": ["batch_size", 3]}
    assert {entry.domain for entry in model.opset_import} == {""}
    stored = {tensor.name for tensor in model.graph.initializer}
    assert set(named_variables(exported.model)) <= stored


@pytest.mark.parametrize("kind, formats", [("post-norm", ["onnx"]), ("gpt2", ["saved_model", "onnx"])])
def test_other_classifiers(texts, tmp_path, kind, formats):
    """Post-norm, sinusoidal positions, the first token, another activation; and GPT-2."""
    model = classifier(kind, BytePairTokenizer.train(texts, 600))
    (tmp_path / "texts.txt").write_text("\n".join(text for text in texts[:40] if len(text) <= 48))
    model.save_to_preset(tmp_path / "model")
    reports = export_release(tmp_path / "model", tmp_path / "r", text=tmp_path / "texts.txt", formats=formats)
    assert [report.runtime for report in reports] == formats
    assert all(report.passed and report.texts > 9 for report in reports)


# === Runtimes ===


@pytest.mark.parametrize("runtime", ["saved_model", "onnx"])
def test_runners_classify_as_the_model(exported, runtime):
    runner, tokenizer = open_classifier_runner(exported.path, runtime), load_tokenizer(exported.path)
    for found, expected in zip(runner.classify(tokenizer, exported.texts), exported.model.classify(exported.texts)):
        assert found.label == expected.label
        np.testing.assert_allclose(list(found.probabilities.values()), list(expected.probabilities.values()), atol=1e-5)
    assert runner.classify(tokenizer, []) == []
    with pytest.raises(UserError, match="text 0 has .* tokens, expected at most the window's 48"):
        runner.classify(tokenizer, ["x " * 60])
    cut = runner.classify(tokenizer, ["x " * 60], truncate=True)
    assert cut[0].label == exported.model.classify("x " * 60, truncate=True).label


def test_other_commands_say_what_it_is(exported, capsys):
    for runtime in ("saved_model", "onnx"):
        with pytest.raises(UserError, match="is a classifier's release, expected it with `tfgpt classify`"):
            open_runner(exported.path, runtime)
    assert main(["inspect", str(exported.path)]) == 0
    assert "Classif" in capsys.readouterr().out


def test_onnx_runs_without_tensorflow(exported):
    code = (
        "import sys\nfrom tfgpt.runtime import open_classifier_runner\nfrom tfgpt.text import load_tokenizer\n"
        f"release = {str(exported.path)!r}\n"
        "[one] = open_classifier_runner(release, 'onnx').classify(load_tokenizer(release), ['import os'])\n"
        "print(one.label, sorted({'tensorflow', 'keras', 'onnx'} & set(sys.modules)))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout.strip() == f"{exported.model.classify('import os').label} []", process.stderr


# === TensorFlow Serving's signatures ===


def signature_defs(path):
    return saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes()).meta_graphs[0].signature_def


def example(**features):
    lists = {name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value])) for name, value in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=lists)).SerializeToString()


def test_signatures_are_those_of_tensorflow_serving(exported):
    found = signature_defs(exported.path / "saved_model/served/1")
    classify = found["classify"]
    assert classify.method_name == "tensorflow/serving/classify"
    assert {name: info.dtype for name, info in classify.inputs.items()} == {"inputs": tf.string.as_datatype_enum}
    outputs = {name: (info.dtype, len(info.tensor_shape.dim)) for name, info in classify.outputs.items()}
    assert outputs == {"classes": (tf.string.as_datatype_enum, 2), "scores": (tf.float32.as_datatype_enum, 2)}
    assert found["serving_default"].method_name == found["tokens"].method_name == "tensorflow/serving/predict"
    assert list(found["serving_default"].inputs) == ["text"]
    fingerprint = tf.saved_model.experimental.read_fingerprint(str(exported.path / "saved_model/served/1"))
    assert fingerprint.saved_model_checksum > 0


def test_classify_and_predict(exported):
    signatures = exported.loaded.signatures
    batch = exported.texts[:5]
    expected = exported.model.classify(batch)
    probabilities = np.array([list(one.probabilities.values()) for one in expected])
    predicted = signatures["serving_default"](text=tf.constant(batch))
    assert [label.decode() for label in predicted["label"].numpy()] == [one.label for one in expected]
    np.testing.assert_allclose(predicted["probabilities"], probabilities, atol=1e-5)
    examples = [example(text=text.encode(), ignored=b"x") for text in batch]
    classified = signatures["classify"](inputs=tf.constant(examples))
    assert classified["classes"].numpy().tolist() == [[label.encode() for label in LABELS]] * 5
    np.testing.assert_allclose(classified["scores"], probabilities, atol=1e-5)


@pytest.mark.parametrize(
    "inputs, message",
    [
        ([""], "the number of tokens of row 0 is 0, expected at least 1: the text is empty"),
        (["a", "x " * 60], "the number of tokens of row 1 is .*, expected at most 48, the window"),
        ([], "the rows are text 0, expected as many of each, and at least 1"),
    ],
)
def test_bad_requests(exported, inputs, message):
    signatures = exported.loaded.signatures
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        signatures["serving_default"](text=tf.constant(inputs, tf.string))
    assert signatures["serving_default"](text=tf.constant(["a"]))["label"].shape == [1]  # and it lives on


def test_an_example_without_text(exported):
    signatures = exported.loaded.signatures
    with pytest.raises(tf.errors.InvalidArgumentError, match="Feature: text"):
        signatures["classify"](inputs=tf.constant([example(words=b"a")]))


def test_warm_up_has_a_request_of_each_signature(exported):
    path = exported.path / "saved_model/served/1"
    records = tf.data.TFRecordDataset(str(path / "assets.extra/tf_serving_warmup_requests"))
    logs = [prediction_log_pb2.PredictionLog.FromString(record.numpy()) for record in records]
    kinds = {}
    for log in logs:
        kind = log.WhichOneof("log_type")
        kinds[getattr(log, kind).request.model_spec.signature_name] = kind
    assert kinds == {"serving_default": "predict_log", "classify": "classify_log", "tokens": "predict_log"}
    signatures = exported.loaded.signatures
    request = next(log for log in logs if log.WhichOneof("log_type") == "classify_log").classify_log.request
    inputs = [one.SerializeToString() for one in request.input.example_list.examples]
    assert signatures["classify"](inputs=tf.constant(inputs))["scores"].shape == [1, 3]


# === Damage ===


def prove(exported, release):
    with pytest.raises(ParityError) as raised:
        prove_release(release, exported.directory, exported.data)
    return [str(breach) for breach in raised.value.breaches]


def test_an_untouched_release_is_proved(exported, tmp_path):
    prove_release(exported.path, exported.directory, exported.data, report=tmp_path)
    assert json.loads((tmp_path / "parity.json").read_text())["passed"]


def test_a_changed_weight_of_the_onnx_model(exported, copied):
    model = onnx.load(copied / "onnx/model.onnx")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "score.weight")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0, 0] += 0.01
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, copied / "onnx/model.onnx")
    breaches = prove(exported, copied)
    assert any("onnx, text, prompt" in breach and "difference of a probability is" in breach for breach in breaches)
    assert any(breach.startswith("onnx/model.onnx: the file has") for breach in breaches)


def test_a_changed_weight_of_the_saved_model(exported, copied):
    """Another model's variables under the same signatures."""
    from tfgpt.export.classifier_formats import export_classifier_saved_model

    score = exported.model.score.kernel
    before = score.numpy()
    score.assign(before + 0.01 * np.eye(*before.shape))
    try:
        export_classifier_saved_model(exported.model, copied / "saved_model/served/2")
    finally:
        score.assign(before)
    breaches = prove(exported, copied)
    for check in ("text", "padded on the left", "classify"):
        assert any(f"saved_model, {check}, prompt" in breach for breach in breaches)


def test_exchanged_labels(exported, copied):
    config = json.loads((copied / "config.json").read_text())
    config["id2label"] = {"0": "good", "1": "fair", "2": "bad"}
    (copied / "config.json").write_text(json.dumps(config))
    breaches = prove(exported, copied)
    assert any("the labels are good, fair, bad, expected bad, fair, good" in breach for breach in breaches)


def test_a_failed_export_leaves_nothing(exported, tmp_path, monkeypatch):
    from tfgpt.export import classifier_formats

    convert = classifier_formats.convert

    def damaged(model):
        made = convert(model)
        value = made.graph.initializers["score.weight"]
        value.const_value = type(value.const_value)(value.const_value.numpy() * 1.01, name="score.weight")
        return made

    monkeypatch.setattr(classifier_formats, "convert", damaged)
    with pytest.raises(ParityError, match="parity failed: onnx, .* the largest difference of a probability"):
        export_release(exported.directory, tmp_path / "release", text=exported.data, formats=["onnx"])
    assert not (tmp_path / "release").exists()


# === What is refused, and the command line ===


def test_bad_exports(exported, tmp_path):
    with pytest.raises(UserError, match=r"training/validation.jsonl is missing, expected --data with some"):
        export_release(exported.directory, tmp_path / "release")
    with pytest.raises(UserError, match="quantized variants are of language models"):
        export_release(exported.directory, tmp_path / "release", text=exported.data, quantize=["int8"])
    with pytest.raises(UserError, match="holds no model, expected a release exported with the format onnx"):
        open_classifier_runner(exported.directory, "onnx")
    with pytest.raises(UserError, match="unknown runtime 'keras'"):
        open_classifier_runner(exported.path, "keras")


def test_a_text_a_line(exported, tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(exported.texts[:9]) + "\n\n")
    reports = export_release(exported.directory, tmp_path / "r", text=tmp_path / "lines.txt", formats=["onnx"])
    assert reports[0].texts == 9


@pytest.mark.parametrize("runtime", ["keras", "saved_model", "onnx"])
def test_classify_on_the_command_line(exported, runtime, tmp_path, capsys):
    where = exported.directory if runtime == "keras" else exported.path
    figures = tmp_path / "figures.json"
    arguments = ["classify", str(where), "--runtime", runtime, "--json", str(figures), "--text"]
    assert main([*arguments, *exported.texts[:2]]) == 0
    expected = exported.model.classify(exported.texts[:2])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [one.label for one in expected]
    found = json.loads(figures.read_text())["classifications"]
    for one, wanted, text in zip(found, expected, exported.texts):
        assert one["text"] == text and one["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-5)
    assert main([*arguments, "x " * 60]) == 2
    assert "text 0 has" in capsys.readouterr().err


def test_classify_says_what_is_wrong(exported, tmp_path, capsys):
    assert main(["classify", str(exported.path), "--text", "a"]) == 2
    assert "is a release directory, expected --runtime saved_model or onnx" in capsys.readouterr().err
    assert main(["classify", str(tmp_path), "--text", "a"]) == 2
    assert "holds no classifier, expected a directory whose config.json is one's" in capsys.readouterr().err


def test_evaluate_on_the_command_line(exported, tmp_path, capsys):
    found = exported.model.classify(exported.texts[:20])
    rows = [f"{one.label if i % 4 else 'bad'},{json.dumps(i)}" for i, one in enumerate(found)]
    data = tmp_path / "dev.jsonl"
    labels = [row.split(",")[0] for row in rows]
    data.write_text("".join(json.dumps({"t": t, "l": lab}) + "\n" for t, lab in zip(exported.texts, labels)))
    arguments = ["evaluate", str(exported.directory), "--data", str(data), "--text-column", "t", "--label-column", "l"]
    assert main([*arguments, "--json", str(tmp_path / "figures.json")]) == 0
    right = np.mean([one.label == label for one, label in zip(found, labels)])
    assert f"accuracy {right:.2%}" in capsys.readouterr().out
    assert json.loads((tmp_path / "figures.json").read_text())["accuracy"] == pytest.approx(right)


def test_logits_are_compared_with_padding_on_both_sides(exported):
    """The check that parity makes, by hand: two texts in one batch, one of them padded on the left by five."""
    tokenizer = exported.model.tokenizer
    rows = [tokenizer.encode(text) for text in exported.texts[:2]]
    runner = open_classifier_runner(exported.path, "onnx")
    token_ids, mask = pad_right(rows, max(map(len, rows)) + 5)
    token_ids, mask = np.roll(token_ids, 5, axis=1), np.roll(mask, 5, axis=1)
    found = probabilities_of(runner.logits(token_ids, mask))
    for row, one in zip(found, exported.model.classify(exported.texts[:2])):
        np.testing.assert_allclose(row, list(one.probabilities.values()), atol=1e-5)
