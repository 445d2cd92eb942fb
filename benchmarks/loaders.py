"""One loader's process: python -m benchmarks.loaders NAME MODEL RESULT.json, in the Python that has the loader.

It imports its packages, opens the model directory, computes the logits of a few tokens, and writes what each took.
Memory is the system's word for what the process holds (/proc, so Linux): its own pages and those of mapped files.
"""

import json
import pathlib
import re
import sys
import time

from benchmarks.measure import read_through

PROMPT = [464, 2068, 7586, 21831, 18045, 625, 262, 16931]  # any ids of a vocabulary of 50257 do


def tfgpt():
    """tfgpt's Keras model."""
    import tensorflow  # noqa: F401
    from keras import ops

    from tfgpt.models import GPT2CausalLM

    def logits(model, token_ids):
        return ops.convert_to_numpy(model(ops.convert_to_tensor([token_ids])))[0, -1]

    return GPT2CausalLM.from_preset, logits


def tfgpt_load():
    """The same by `tfgpt.load`, which asks where a checkpoint is from."""
    import tfgpt as package
    from tfgpt.weights import load  # noqa: F401 (its import is no part of loading)

    return package.load, tfgpt()[1]


def keras_hub():
    """keras-hub's model, which it makes of Hugging Face's directory."""
    import numpy as np
    from keras import ops
    from keras_hub.models import GPT2CausalLM

    def logits(model, token_ids):
        inputs = {"token_ids": np.array([token_ids]), "padding_mask": np.ones((1, len(token_ids)), bool)}
        return ops.convert_to_numpy(model(inputs))[0, -1]

    return lambda path: GPT2CausalLM.from_preset(str(path), preprocessor=None), logits


def transformers():
    """transformers' model in PyTorch."""
    import torch
    from transformers import GPT2LMHeadModel

    def logits(model, token_ids):
        with torch.inference_mode():
            return model(torch.tensor([token_ids])).logits[0, -1].numpy()

    return lambda path: GPT2LMHeadModel.from_pretrained(path).eval(), logits


LOADERS = {function.__name__: function for function in (tfgpt, tfgpt_load, keras_hub, transformers)}


def memory_mb():
    """What this process holds now, and the most that it held since `forget_peak`, in 10^6 bytes."""
    status = pathlib.Path("/proc/self/status").read_text(encoding="ascii")
    return tuple(
        int(re.search(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE)[1]) * 1024 / 1e6 for key in ("VmRSS", "VmHWM")
    )


def forget_peak():
    """Has the system count the peak anew."""
    pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def main(name, model, result):
    """Loads one model with one loader."""
    model = pathlib.Path(model)
    read_through(model / "model.safetensors")
    start = time.perf_counter()
    load, logits = LOADERS[name]()
    imported = time.perf_counter()
    forget_peak()
    before, _ = memory_mb()
    loading = time.perf_counter()
    loaded = load(model)
    seconds = time.perf_counter() - loading
    after, peak = memory_mb()
    first = time.perf_counter()
    values = logits(loaded, PROMPT)
    figures = {
        "import_seconds": imported - start,
        "load_seconds": seconds,
        "first_logits_seconds": time.perf_counter() - first,
        "ready_peak_mb": memory_mb()[1] - before,
        "imports_mb": before,
        "load_held_mb": after - before,
        "load_peak_mb": peak - before,
        "logits": [float(value) for value in values],
    }
    pathlib.Path(result).write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
