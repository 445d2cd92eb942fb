"""OpenVINO compiles a release's portable decoder as it is."""

import itertools

import numpy as np
import pytest
import tokenizers

pytestmark = pytest.mark.interop


class Decoder:
    """A compiled decoder, and the cache of what it has read.

    Args:
        compiled: an `openvino.CompiledModel`.
        batch_size: B.
    """

    def __init__(self, compiled, batch_size):
        self.compiled = compiled
        self.cache = {}
        for port in compiled.inputs:
            if port.any_name.startswith("past_key_values."):
                _, heads, _, size = port.partial_shape
                self.cache[port.any_name] = np.zeros((batch_size, heads.get_length(), 0, size.get_length()), np.float32)

    def read(self, token_ids, padding_mask):
        """Logits (B, T, V) of new tokens (B, T); the mask (B, S) is of all tokens, old and new."""
        positions = np.maximum(np.cumsum(padding_mask, axis=1) - 1, 0)[:, -token_ids.shape[1] :]
        inputs = {"input_ids": token_ids, "attention_mask": padding_mask, "position_ids": positions}
        outputs = self.compiled({name: np.asarray(array, np.int64) for name, array in inputs.items()} | self.cache)
        self.cache = {name: outputs[name.replace("past_key_values", "present")] for name in self.cache}
        return outputs["logits"]


@pytest.fixture(scope="module")
def compiled(release):
    import openvino

    core = openvino.Core()
    model = core.read_model(release.path / "onnx" / "model.onnx")
    # On processors with bfloat16 products OpenVINO computes in it unless told otherwise, and is off by up to 0.05.
    return core.compile_model(model, "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})


def test_logits(compiled, release, assert_logits):
    assert_logits(Decoder(compiled, len(release.rows)).read(release.token_ids, release.padding_mask))


def test_logits_by_way_of_the_cache(compiled, release, assert_logits):
    decoder, length = Decoder(compiled, len(release.rows)), release.token_ids.shape[1]
    bounds = itertools.pairwise([0, *range(length // 2, length + 1)])
    logits = [decoder.read(release.token_ids[:, start:end], release.padding_mask[:, :end]) for start, end in bounds]
    assert_logits(np.concatenate(logits, axis=1))


def test_greedy_text(compiled, release):
    tokenizer = tokenizers.Tokenizer.from_file(str(release.path / "tokenizer.json"))
    for row in release.rows:
        decoder, tokens, new = Decoder(compiled, 1), [], tokenizer.encode(row["prompt"]).ids
        assert new == row["token_ids"]
        while True:
            tokens += new
            if len(tokens) == len(row["token_ids"]) + release.max_new_tokens or tokens[-1] == release.end_token_id:
                break
            logits = decoder.read(np.array([new]), np.ones([1, len(tokens)]))
            new = [int(logits[0, -1].argmax())]
        assert tokens == row["token_ids"] + row["new_token_ids"]
        assert tokenizer.decode(tokens) == row["text"]
