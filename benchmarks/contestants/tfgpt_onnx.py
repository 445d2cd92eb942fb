"""tfgpt's release on ONNX Runtime: preparing needs TensorFlow, running does not."""

import shutil

from tfgpt.generation_settings import GenerationSettings
from tfgpt.runtime import open_runner


def prepare(model, folder, variants):
    """Makes a release of the variants, without the proof of parity: its weights are random, its speed is the point."""
    from tfgpt.export.onnx_decoder import export_onnx
    from tfgpt.export.quantization import write_variant
    from tfgpt.export.release import COPIED, load_for_export, write_manifest
    from tfgpt.runtime.variants import data_path, onnx_path

    for name in COPIED:
        if (model / name).exists():
            shutil.copyfile(model / name, folder / name)
    export_onnx(load_for_export(model), folder / "onnx", model.name)
    for variant in variants:
        if variant not in ("portable", "float32"):  # these two are what export_onnx writes
            write_variant(folder / "onnx", variant)
    write_manifest(folder, model)  # whose checksums a user's release compares at each start
    return {variant: (folder, [folder / onnx_path(variant), folder / data_path(variant)]) for variant in variants}


def open_model(path, variant, threads):
    runner = open_runner(path, "onnx", variant=variant, threads=threads)

    def generate(prompts, new_tokens):
        return runner.generate(prompts, GenerationSettings(max_new_tokens=new_tokens, stop_token_ids=()))

    return generate
