"""`tfgpt demo`: the main job from text to proved artifacts, on the corpus that every Python installation has."""

from __future__ import annotations

import pathlib
import shutil
import time

from tfgpt.atomic import write_text
from tfgpt.cli.progress import TrainingDisplay, print_table, show_status
from tfgpt.cli.quiet import import_tensorflow
from tfgpt.errors import UserError
from tfgpt.training.run_config import RunConfig

PROMPT = "def read("


def run_demo(out: pathlib.Path):
    """Trains, exports, proves and generates under `out`; prints a report and returns its figures."""
    start = time.perf_counter()
    model_directory, release = out / "model", out / "release"
    _clear(out)
    config = RunConfig(
        data=["stdlib"],
        out=str(model_directory),
        preset="gpt2-mini",
        max_bytes=6_000_000,
        steps=1200,
        batch_size=16,
        learning_rate=2e-3,
        min_learning_rate=2e-4,
        initializer_range=0.08,  # GPT-2's 0.02 suits its own width
        sample_prompt=PROMPT,
        sample_tokens=64,
    )
    with TrainingDisplay() as display:
        import_tensorflow()
        from tfgpt.training.trainer import train

        result = train(config, display)
    if result.interrupted:
        raise KeyboardInterrupt

    with show_status("exporting") as on_progress:
        from tfgpt.export import export_release
        from tfgpt.export.parity_report import table

        variants = ("int8", "int4")
        reports = export_release(model_directory, release, name="demo", quantize=variants, on_progress=on_progress)
        on_progress("generating on every runtime")
        texts = _generate(model_directory, release)

    print(f"\nTrained {result.parameters:,} parameters on the Python standard library's source: {result.steps} steps,")
    print(f"validation loss {result.loss:.3f} ({result.bits_per_byte:.3f} bits a byte). The curve:")
    print(_sparkline([loss for _, loss in _losses(model_directory)]))
    print(f"\nThe same greedy continuation of {PROMPT!r} from {', '.join(texts)}:\n")
    print(texts["keras"])
    print("\nParity: is each artifact the model that was trained?\n")
    print_table(*table(reports))
    print_table(["what", "where", "MB"], _sizes(model_directory, release))
    print(f"The whole way took {time.perf_counter() - start:.0f} s. What to try next:\n")
    print(
        f"  .venv/bin/tfgpt generate {model_directory} --prompt 'class Queue:' --temperature 0.8 --max_new_tokens 200"
    )
    print(f"  .venv/bin/tfgpt evaluate {model_directory} --data README.md")
    print(f"  .venv/bin/tfgpt generate {release} --runtime onnx --variant int4 --prompt 'import os'")
    if len(set(texts.values())) != 1:
        raise UserError(f"the runtimes continue {PROMPT!r} differently: {texts}, expected one text")
    return {
        "seconds": time.perf_counter() - start,
        "loss": result.loss,
        "bits_per_byte": result.bits_per_byte,
        "tokens_per_second": result.tokens_per_second,
        "texts": texts,
        "parity": {report.runtime: report.passed for report in reports},
    }


def _clear(out):
    """Removes what an earlier demo left, and nothing else; leaves the mark by which the next one knows it."""
    mark = out / ".tfgpt-demo"
    if out.exists() and not mark.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} holds something that no demo made, expected a new folder")
    shutil.rmtree(out, ignore_errors=True)
    write_text(mark, "Made by `tfgpt demo`, which may remove this folder.\n")


def _generate(model_directory, release):
    from tfgpt.generation_settings import GenerationSettings
    from tfgpt.models import GPT2CausalLM
    from tfgpt.runtime import RUNTIMES, open_runner
    from tfgpt.text import load_tokenizer

    texts = {"keras": GPT2CausalLM.from_preset(model_directory).generate(PROMPT, max_new_tokens=64)}
    tokenizer, settings = load_tokenizer(release), GenerationSettings(max_new_tokens=64)
    for runtime in RUNTIMES:
        [texts[runtime]] = open_runner(release, runtime).continue_texts(tokenizer, [PROMPT], settings)
    return texts


def _losses(model_directory):
    import csv

    with open(model_directory / "training" / "metrics.csv", encoding="utf-8") as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file) if row["loss"]]


def _sparkline(values, width=72):
    """A curve in one line of text, from first to last."""
    picked = [values[i * len(values) // width] for i in range(width)] if len(values) > width else values
    low, high = min(picked), max(picked)
    blocks = "▁▂▃▄▅▆▇█"
    curve = "".join(blocks[round((v - low) / ((high - low) or 1) * (len(blocks) - 1))] for v in picked)
    return f"{values[0]:.2f} {curve} {values[-1]:.2f}"


def _sizes(model_directory, release):
    places = [
        ("model directory (Hugging Face layout)", model_directory, model_directory / "model.safetensors"),
        ("SavedModel for TensorFlow Serving", release / "saved_model" / "demo", None),
        ("ONNX decoder, portable and tuned", release / "onnx" / "model.onnx.data", None),
        ("ONNX decoder, int8", release / "onnx" / "model_int8.onnx.data", None),
        ("ONNX decoder, int4", release / "onnx" / "model_int4.onnx.data", None),
        ("loss curve", model_directory / "training" / "loss.png", None),
        ("parity report", release / "parity.md", None),
        ("checksums and versions", release / "manifest.json", None),
    ]
    return [[what, str(where), f"{_size(measured or where) / 1e6:.2f}"] for what, where, measured in places]


def _size(path):
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
