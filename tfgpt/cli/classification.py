"""`tfgpt classify`, and what `tfgpt evaluate` does with a classifier."""

from __future__ import annotations

import dataclasses
import pathlib

from tfgpt.cli.figures import write_json
from tfgpt.cli.quiet import import_tensorflow
from tfgpt.errors import UserError
from tfgpt.json_file import read_json


def classify(
    model: str,
    text: list[str],
    runtime: str = "keras",
    truncate: bool = False,
    threads: int = 0,
    json: str | None = None,
):
    """Tell the classes of texts with a model directory, or with a release directory on one of its runtimes.

    Args:
        model: a classifier's model directory, or its release directory.
        text: one or more texts.
        runtime: keras for a model directory; saved_model or onnx for a release.
        truncate: read the first tokens of a text longer than the window, rather than refuse it.
        threads: of ONNX Runtime; 0 lets it choose.
        json: also write labels and probabilities to this file.
    """
    if not holds_classifier(model):
        raise UserError(f"{model} holds no classifier, expected a directory whose config.json is one's")
    is_release = (pathlib.Path(model) / "manifest.json").is_file()
    if runtime == "keras":
        if is_release:
            raise UserError(f"{model} is a release directory, expected --runtime saved_model or onnx with it")
        import_tensorflow()
        from tfgpt.models import load_classifier

        found = load_classifier(model).classify(list(text), truncate=truncate)
    else:
        if runtime != "onnx":
            import_tensorflow()
        from tfgpt.runtime import open_classifier_runner
        from tfgpt.text import load_tokenizer

        runner, tokenizer = open_classifier_runner(model, runtime, threads), load_tokenizer(model)
        found = runner.classify(tokenizer, list(text), truncate=truncate)
    width = max(len(one.label) for one in found)
    for one, what in zip(found, text, strict=True):
        print(f"{one.label:<{width}}  {one.probability:.4f}  {what}")
    figures = [{"text": what, **dataclasses.asdict(one)} for one, what in zip(found, text, strict=True)]
    write_json(json, {"runtime": runtime, "classifications": figures})


def holds_classifier(model):
    """Whether a model or release directory is a classifier's."""
    from tfgpt.classification import is_classifier  # lazily, for it brings NumPy

    path = pathlib.Path(model) / "config.json"
    return path.is_file() and is_classifier(read_json(path))


def run_evaluate(model, data, text_column, label_column, truncate):
    """Prints the metrics of a classifier on labelled texts, and returns them.

    Args:
        model: a model directory.
        data: files of labelled texts.
        text_column, label_column, truncate: as in `tfgpt.text.read_labelled` and `encode_labelled`.
    """
    import_tensorflow()
    from tfgpt.models import load_classifier
    from tfgpt.text import class_numbers, encode_labelled, read_labelled
    from tfgpt.training.classification_report import evaluate_classifier, metric_lines

    classifier = load_classifier(model)
    if classifier.tokenizer is None:
        raise UserError(f"{model} has no tokenizer, expected one to evaluate text")
    examples = read_labelled(data, text_column, label_column)
    classes = class_numbers(examples, classifier.labels)
    rows = encode_labelled(classifier.tokenizer, examples, classifier.backbone.max_sequence_length, truncate)
    metrics = evaluate_classifier(classifier, rows, classes)
    print("\n".join(metric_lines(metrics)))
    return dataclasses.asdict(metrics)
