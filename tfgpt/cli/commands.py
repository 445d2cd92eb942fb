"""The commands: plain functions whose signatures are the command line. TensorFlow is imported inside them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys

from tfgpt.atomic import write_text
from tfgpt.cli.quiet import import_tensorflow
from tfgpt.errors import UserError
from tfgpt.training.run_config import RunConfig


def train(json: str | None = None, **run):
    """Train a GPT-2 on text and write a model directory.

    Args:
        json: also write the final figures to this file.
        **run: the fields of `RunConfig`.
    """
    config = RunConfig(**run)
    from tfgpt.cli.progress import TrainingDisplay

    with TrainingDisplay() as display:
        import_tensorflow()
        from tfgpt.training.trainer import train as train_model

        result = train_model(config, display)
    display.summary(result)
    _write_json(json, dataclasses.asdict(result))
    if result.interrupted:
        print(f"interrupted after step {result.steps}: the last checkpoint is {result.directory}/training/last")
        return 130


def generate(
    model: str,
    prompt: list[str],
    runtime: str = "keras",
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    stop_token_ids: list[int] | None = None,
    seed: int = 0,
    json: str | None = None,
):
    """Continue prompts with a model directory, or with a release directory on one of its runtimes.

    Text longer than the context window goes on from the last half window whenever the window is full.

    Args:
        model: a model directory, or a release directory.
        prompt: one or more texts.
        runtime: keras for a model directory; saved_model or onnx for a release, which decode greedily.
        max_new_tokens: how many tokens to add at most.
        temperature: divides the logits before sampling; 0 takes the likeliest token.
        top_k: sample among the k likeliest tokens; 0 among all.
        top_p: sample among the likeliest tokens that together reach this probability.
        repetition_penalty: makes tokens seen before less likely, above 1.
        num_beams: above 1, beam search.
        length_penalty: beam search ranks by log-probability / length ** length_penalty.
        stop_token_ids: tokens that end a text; by default the end of text.
        seed: of sampling; the i-th prompt draws from seed + i.
        json: also write the texts to this file.
    """
    settings = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "num_beams": num_beams,
        "length_penalty": length_penalty,
        "stop_token_ids": None if stop_token_ids is None else tuple(stop_token_ids),
        "seed": seed,
    }
    if runtime != "onnx":
        import_tensorflow()
    if runtime == "keras":
        from tfgpt.models import GPT2CausalLM

        texts = GPT2CausalLM.from_preset(model).generate(list(prompt), **settings)
    else:
        sampled = temperature or num_beams > 1 or repetition_penalty != 1
        if sampled:
            raise UserError(f"the runtime {runtime} decodes greedily, expected no temperature, penalty or beams")
        from tfgpt.runtime import open_runner
        from tfgpt.text import load_tokenizer

        tokenizer = load_tokenizer(model)
        texts = open_runner(model, runtime).continue_texts(tokenizer, list(prompt), max_new_tokens, stop_token_ids)
    for text in texts:
        print(text)
    _write_json(json, {"texts": texts, "runtime": runtime, **settings})


def evaluate(model: str, data: list[str], stride: int | None = None, json: str | None = None):
    """Measure loss, perplexity, bits per byte and accuracy of a model on text.

    Args:
        model: a model directory.
        data: files, folders, globs, or "stdlib".
        stride: tokens between the windows that slide over the text; by default half a window.
        json: also write the figures to this file.
    """
    from tfgpt.cli.progress import show_fraction

    import_tensorflow()
    from tfgpt.models import GPT2CausalLM
    from tfgpt.text import read_documents
    from tfgpt.training.evaluation import evaluate_text

    documents = read_documents(list(data))
    language_model = GPT2CausalLM.from_preset(model)
    with show_fraction("evaluating") as on_progress:
        result = evaluate_text(language_model, documents, stride, on_progress)
    print(
        f"loss {result.loss:.4f} nats a token, perplexity {result.perplexity:.3f}, {result.bits_per_byte:.4f} bits a "
        f"byte, accuracy {result.accuracy:.2%}, over {result.tokens} tokens ({result.bytes} bytes)"
    )
    _write_json(json, dataclasses.asdict(result))


def export(
    model: str,
    out: str,
    formats: list[str] = ("saved_model", "onnx"),
    name: str | None = None,
    data: str | None = None,
    overwrite: bool = False,
    json: str | None = None,
):
    """Export a model directory to a release directory, published only if every artifact passes parity.

    Args:
        model: a model directory.
        out: the release directory to be made.
        formats: saved_model, onnx, or both, separated by commas or spaces.
        name: of the served model; by default the model directory's.
        data: a text file for the parity check; by default the validation split of the training.
        overwrite: replace a release that `out` holds.
        json: also write the parity figures to this file.
    """
    from tfgpt.cli.progress import show_status

    with show_status("loading TensorFlow") as on_progress:
        import_tensorflow()
        from tfgpt.export import ParityError, export_release

        chosen = [name for part in formats for name in part.split(",")]
        try:
            reports = export_release(model, out, chosen, name, data, overwrite, on_progress)
        except ParityError as error:
            return _parity_failed(error, json)
    _print_parity(reports, json)
    size = sum(path.stat().st_size for path in pathlib.Path(out).rglob("*") if path.is_file())
    print(f"{out}: {size / 1e6:.1f} MB; the proof is in {out}/parity.md")


def parity(release: str, model: str, data: str | None = None, report: str | None = None, json: str | None = None):
    """Check that every artifact of a release is the model: same tokens in, same logits and same text out.

    Args:
        release: a release directory.
        model: the model directory it came from (as `--model`).
        data: a text file; by default the validation split of the training.
        report: a folder for parity.json, parity.md and parity.png; by default the release, whose own it renews.
        json: also write the figures to this file.
    """
    from tfgpt.cli.progress import show_status

    with show_status("loading TensorFlow") as on_progress:
        import_tensorflow()
        from tfgpt.export import ParityError, prove_release

        try:
            reports = prove_release(release, model, data, report or release, on_progress)
        except ParityError as error:
            return _parity_failed(error, json)
    _print_parity(reports, json)


def demo(out: str = "build/demo", json: str | None = None):
    """Train a small GPT-2 on Python's own source, export it, prove parity, generate: the whole way, in minutes.

    Args:
        out: the folder to be made, with `model` and `release` in it.
        json: also write the figures to this file.
    """
    from tfgpt.cli.demo import run_demo

    _write_json(json, run_demo(pathlib.Path(out)))


def _parity_failed(error, json_path):
    _print_parity(error.reports, json_path)
    print(f"tfgpt: {error}", file=sys.stderr)
    if len(error.breaches) > 1:
        print(f"tfgpt: and {len(error.breaches) - 1} more breaches", file=sys.stderr)
    return 1


def _print_parity(reports, json_path):
    from tfgpt.cli.progress import print_table
    from tfgpt.export.parity_report import table, to_json
    from tfgpt.export.tolerances import TOLERANCES

    print_table(*table(reports))
    _write_json(json_path, to_json(reports, TOLERANCES["float32"]))


def _write_json(path, figures):
    if path is not None:
        write_text(path, json.dumps(figures, indent=2) + "\n")
