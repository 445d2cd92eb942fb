"""The commands: plain functions whose signatures are the command line. TensorFlow is imported inside them."""

from __future__ import annotations

import dataclasses
import pathlib

from tfgpt.cli.arguments import expect_defaults
from tfgpt.cli.figures import write_json
from tfgpt.cli.quiet import import_tensorflow
from tfgpt.errors import UserError
from tfgpt.training.tasks import TASKS


def train(json: str | None = None, **run):
    """Train a model and write a model directory: a GPT-2 on text, or what --task says.

    Args:
        json: also write the final figures to this file.
        **run: the fields of the task's configuration.
    """
    config = TASKS[run["task"]](**run)
    from tfgpt.cli.progress import TrainingDisplay
    from tfgpt.training.cluster import Cluster

    if not Cluster.from_environment().chief:
        return _train_silently(config)
    with TrainingDisplay() as display:
        import_tensorflow()
        from tfgpt.training.trainer import train as train_model

        result = train_model(config, display)
    print(*result.lines(), sep="\n")
    write_json(json, dataclasses.asdict(result))
    if result.interrupted:
        print(
            f"interrupted after step {result.steps}: the last weights are in {result.directory}/training/last, and the "
            "same command continues the run"
        )
        return 130


def prepare(
    out: str,
    data: list[str] = (),
    tokenizer: str = "bpe",
    vocabulary_size: int = 50257,
    workers: int | None = None,
    validation_fraction: float = 0.01,
    shard_tokens: int = 2**26,
    seed: int = 0,
    overwrite: bool = False,
    verify: bool = False,
    json: str | None = None,
):
    """Tokenize text, of any size and on every core, into a directory that `tfgpt train --data` takes.

    Args:
        out: the directory to be made: token shards with their index and checksums, and the tokenizer.
        data: files (a document each), folders, globs, or "stdlib" for the Python standard library's source.
        tokenizer: "bpe" is trained on 32 MB of the data at most, "character" takes all of its characters; a directory
            with tokenizer.json, or vocab.json and merges.txt, is read.
        vocabulary_size: of a tokenizer that is trained with "bpe".
        workers: processes that tokenize; by default one a core. They change no token.
        validation_fraction: of the text, held out: the end of a single file, whole files of several.
        shard_tokens: the most tokens in a file.
        seed: of the draw of the files that are held out.
        overwrite: replace what `out` holds.
        verify: write nothing, but read what `out` holds and compare checksums.
        json: also write the figures to this file.
    """
    from tfgpt.cli.preparation import run_prepare, run_verify

    if verify:
        return write_json(json, run_verify(out))
    options = {"validation_fraction": validation_fraction, "shard_tokens": shard_tokens, "seed": seed}
    figures = run_prepare(list(data), out, tokenizer, vocabulary_size, workers, overwrite=overwrite, **options)
    write_json(json, figures)


def _train_silently(config):
    """What the workers of a cluster do beside its chief, who prints."""
    import_tensorflow()
    from tfgpt.training.trainer import train as train_model

    train_model(config)


def launch(workers: int, restarts: int = 0, **command):
    """Run a command as a cluster of workers on this machine: tfgpt launch --workers 2 -- train --data ...

    Args:
        workers: how many processes; the first is the chief, whose output is shown.
        restarts: how often all of them are started anew after one was lost.
        **command: `command`, the arguments that follow --.
    """
    from tfgpt.training.launch import launch_workers

    return launch_workers(command.get("command", []), workers, restarts)


def generate(
    model: str,
    prompt: list[str],
    runtime: str = "keras",
    variant: str = "float32",
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    stop_token_ids: list[int] | None = None,
    seed: int = 0,
    truncate: bool = False,
    stream: bool = False,
    threads: int = 0,
    tokenizer: str | None = None,
    deadline: float = 60.0,
    retries: int = 5,
    ca_file: str | None = None,
    token_file: str | None = None,
    json: str | None = None,
):
    """Continue prompts with a model directory, a release directory on one of its runtimes, or a server.

    Text that grows past the context window goes on from its last half window whenever the window is full; a server's
    ends there.

    Args:
        model: a model directory, a release directory, or a server: http://HOST:8501/v1/models/NAME or
            grpc://HOST:8500/NAME, with /versions/N or /labels/LABEL if wanted.
        prompt: one or more texts.
        runtime: keras for a model directory; saved_model or onnx for a release; a server needs none.
        variant: of a release's ONNX files: float32, portable, or one that it was exported with, such as int8.
        max_new_tokens: how many tokens to add at most.
        temperature: divides the logits before sampling; 0 takes the likeliest token.
        top_k: sample among the k likeliest tokens; 0 among all.
        top_p: sample among the likeliest tokens that together reach this probability.
        repetition_penalty: makes tokens seen before less likely, above 1.
        num_beams: above 1, beam search.
        length_penalty: beam search ranks by log-probability / length ** length_penalty.
        stop_token_ids: tokens that end a text; by default the end of text.
        seed: of sampling; the i-th prompt draws from seed + i.
        truncate: read the last half window of a prompt longer than the context window, rather than refuse it.
        stream: print the text as it is generated; one prompt, and a release.
        threads: of ONNX Runtime; 0 lets it choose.
        tokenizer: the model or release directory that a server's model came from, which --stream needs.
        deadline: seconds that a server has for an answer, all tries together.
        retries: how often a server that is unavailable is asked again.
        ca_file: certificates that sign a server's, for https:// and grpcs://.
        token_file: a file with the token that a server wants.
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
    prompts = list(prompt)
    if "://" in model:
        from tfgpt.cli.remote_generation import generate_remotely

        expect_defaults(generate, "a server's model", variant=variant, threads=threads)
        if runtime != "keras" or truncate:
            raise UserError(f"{model} is a server, expected neither --runtime nor --truncate: both are the server's")
        texts = generate_remotely(
            model,
            prompts,
            settings,
            stream,
            tokenizer,
            deadline=deadline,
            retries=retries,
            ca_file=ca_file,
            token_file=token_file,
        )
        return write_json(json, {"texts": texts, "runtime": "server", "variant": None, **settings})
    of_servers = {"tokenizer": tokenizer, "deadline": deadline, "retries": retries}
    expect_defaults(generate, "a model of this machine", **of_servers, ca_file=ca_file, token_file=token_file)
    if runtime != "onnx":
        expect_defaults(generate, f"the runtime {runtime}", threads=threads)
    if variant != "float32" and runtime != "onnx":
        raise UserError(f"variant is {variant!r} on the runtime {runtime}, expected --runtime onnx, which has variants")
    if stream and num_beams > 1:
        raise UserError(f"num_beams is {num_beams}, expected 1 with --stream: beam search knows its text at the end")
    if stream and (runtime == "keras" or len(prompts) > 1):
        raise UserError("--stream prints one text of a release, expected one prompt and --runtime onnx or saved_model")
    if runtime != "onnx":
        import_tensorflow()
    if runtime == "keras":
        from tfgpt.models import GPT2CausalLM

        if (pathlib.Path(model) / "manifest.json").is_file():
            raise UserError(f"{model} is a release directory, expected --runtime saved_model or onnx with it")
        language_model = GPT2CausalLM.from_preset(model)
        _check_prompts(language_model.tokenizer, prompts, language_model.backbone.max_sequence_length, truncate)
        texts = language_model.generate(prompts, **settings)
    else:
        from tfgpt.generation_settings import GenerationSettings
        from tfgpt.runtime import open_runner
        from tfgpt.text import load_tokenizer

        runner = open_runner(model, runtime, variant, threads)
        tokenizer = load_tokenizer(model)
        _check_prompts(tokenizer, prompts, runner.window, truncate)
        chosen = GenerationSettings(**settings)
        if stream:
            texts = [stream_to_terminal(runner, tokenizer, prompts[0], chosen)]
        else:
            texts = runner.continue_texts(tokenizer, prompts, chosen)
    for text in texts if not stream else ():
        print(text)
    ran = {"runtime": runtime, "variant": variant if runtime == "onnx" else None}
    write_json(json, {"texts": texts, **ran, **settings})


def _check_prompts(tokenizer, prompts, window, truncate):
    """Refuses prompts that do not fit the window, whose beginning the model would never read."""
    if tokenizer is None or truncate:
        return
    for number, prompt in enumerate(prompts):
        if (length := len(tokenizer.encode(prompt))) > window:
            raise UserError(
                f"prompt {number} has {length} tokens, expected at most the context window's {window}; "
                f"--truncate reads its last {window // 2}"
            )


def stream_to_terminal(runner, tokenizer, prompt, settings):
    """Prints a text as it grows, and returns it."""
    text = prompt
    print(prompt, end="", flush=True)
    for piece in runner.stream_text(tokenizer, prompt, settings):
        print(piece, end="", flush=True)
        text += piece
    print()
    return text


def evaluate(
    model: str,
    data: list[str],
    stride: int | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    truncate: bool = False,
    json: str | None = None,
):
    """Measure loss, perplexity, bits per byte and accuracy of a model on text; of a classifier, metrics by class.

    Args:
        model: a model directory.
        data: files, folders, globs, or "stdlib"; of a classifier, .tsv, .csv or .jsonl files.
        stride: tokens between the windows that slide over the text; by default half a window.
        text_column: of a classifier's files, as in `tfgpt train --task classification`.
        label_column: the same.
        truncate: the same.
        json: also write the figures to this file.
    """
    from tfgpt.cli.classification import holds_classifier, run_evaluate
    from tfgpt.cli.progress import show_fraction

    if holds_classifier(model):
        expect_defaults(evaluate, "a classifier", stride=stride)
        return write_json(json, run_evaluate(model, list(data), text_column, label_column, truncate))
    of_classifiers = {"text_column": text_column, "label_column": label_column, "truncate": truncate}
    expect_defaults(evaluate, "a language model", **of_classifiers)
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
    write_json(json, dataclasses.asdict(result))


def plot(runs: list[str], out: str = "curves.png"):
    """Draw the loss curves of several runs in one picture.

    Args:
        runs: model directories that `tfgpt train` wrote, or is writing.
        out: the PNG to be made.
    """
    from tfgpt.training.loss_curve import plot_runs

    plot_runs(list(runs), out)
    print(out)


def demo(out: str = "build/demo", json: str | None = None):
    """Train a small GPT-2 on Python's own source, export it, prove parity, generate: the whole way, in minutes.

    Args:
        out: the folder to be made, with `model` and `release` in it.
        json: also write the figures to this file.
    """
    from tfgpt.cli.demo import run_demo

    write_json(json, run_demo(pathlib.Path(out)))
