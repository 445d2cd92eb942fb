"""The models of the benchmarks, GPT-2s with random weights: python -m benchmarks.models SIZE DIRECTORY writes one.

Speed does not depend on the values, but what equal tokens on every runtime prove does. With GPT-2's own initialization
(0.02) the greedy text is one token over and over, and even 4-bit weights give it. From weights some times larger the
text keeps changing, and the two likeliest tokens are near each other often enough that a wrong computation shows.
"""

import json
import pathlib
import sys
import tempfile

from benchmarks.processes import run

# name: the preset, and what differs from it. "tiny" is for trying the benchmarks out: its window has room for their
# prompts, and every width is a multiple of the 32 that quantized formats take together.
SIZES = {size: (size, {"initializer_range": 0.1}) for size in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}
TINY = {"hidden_dim": 64, "vocabulary_size": 1024, "max_sequence_length": 1024, "initializer_range": 0.2}
SIZES["tiny"] = "gpt2-test", TINY


def ensure_model(size, folder, threads):
    """The model directory of a size within `folder`, made if need be, by a process of its own."""
    model = folder / "model"
    if not (model / "config.json").exists():  # written last
        print(f"making {size} with random weights", flush=True)
        run([sys.executable, "-m", "benchmarks.models", size, model], folder / "logs" / "model.log", threads)
    return model


def vocabulary_size(directory):
    """V of a model directory."""
    return json.loads((directory / "config.json").read_text(encoding="utf-8"))["vocab_size"]


def placeholder_tokenizer(size):
    """A tokenizer of `size` tokens without merges: 256 bytes, tokens that no text has, and the end of text.

    It is what peers want to see beside the weights, no more.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    from tfgpt.text import BytePairTokenizer

    tokens = [*sorted(ByteLevel.alphabet()), *(f"<x{i}>" for i in range(256, size - 1)), "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = pathlib.Path(folder, "vocab.json"), pathlib.Path(folder, "merges.txt")
        vocabulary.write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
        merges.write_text("#version: 0.2\n", encoding="utf-8")
        return BytePairTokenizer.from_files(vocabulary, merges)


def write_model(size, directory):
    """Writes the model directory of a size in `SIZES`."""
    from tfgpt.models import GPT2CausalLM

    preset, overrides = SIZES[size]
    model = GPT2CausalLM.from_preset(preset, load_weights=False, seed=0, **overrides)
    model.tokenizer = placeholder_tokenizer(model.backbone.vocabulary_size)
    model.save_to_preset(directory)


if __name__ == "__main__":
    write_model(sys.argv[1], pathlib.Path(sys.argv[2]))
