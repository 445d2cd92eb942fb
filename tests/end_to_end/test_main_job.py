"""The main job as a user does it: one process a command, on the corpus that is on every machine."""

import json
import subprocess
import sys


def tfgpt(*arguments):
    """Runs a command in a process of its own; returns its standard output."""
    done = subprocess.run([sys.executable, "-m", "tfgpt.cli", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr and "I0000" not in done.stderr, "TensorFlow's chatter reached the user"
    return done.stdout


def test_from_text_to_proved_artifacts(tmp_path):
    model, release = str(tmp_path / "model"), str(tmp_path / "release")
    size = ["--preset", "gpt2-test", "--vocabulary_size", "400", "--max_bytes", "200000", "--max_sequence_length", "48"]
    length = ["--steps", "100", "--batch_size", "8", "--learning_rate", "5e-3", "--initializer_range", "0.1"]
    out = tfgpt("train", "--data", "stdlib", "--out", model, *size, *length, "--sample_prompt", "import")
    assert "validation loss" in out

    tfgpt("evaluate", model, "--data", __file__, "--json", str(tmp_path / "evaluate.json"))
    figures = json.loads((tmp_path / "evaluate.json").read_text())
    assert figures["bits_per_byte"] < 8  # a byte that is told outright costs 8

    tfgpt("export", model, "--out", release, "--name", "tiny", "--quantize", "int8,int4")
    proof = tfgpt("parity", release, "--model", model)
    assert proof.count("same model") == 3 and proof.count("within budget") == 2

    # 80 tokens from a window of 48: every runtime must also agree on what to forget.
    prompt = ["--prompt", "def f(self", "import os", "--max_new_tokens", "80"]
    texts = [
        tfgpt("generate", directory, "--runtime", runtime, *prompt)
        for runtime, directory in (("keras", model), ("saved_model", release), ("onnx", release))
    ]
    assert texts[0] == texts[1] == texts[2]
    assert texts[0].startswith("def f(self") and "import os" in texts[0]

    # Quantized, a text of the same length and of the same kind of characters; streamed, the same one.
    options = ["--runtime", "onnx", "--variant", "int4", "--prompt", "import os", "--max_new_tokens", "80"]
    whole, streamed = tfgpt("generate", release, *options), tfgpt("generate", release, *options, "--stream")
    assert whole == streamed
    assert whole.startswith("import os") and len(whole) > 60
