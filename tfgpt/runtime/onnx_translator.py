"""A translation model's release on ONNX Runtime, without TensorFlow: Optimum's encoder and two decoders."""

from __future__ import annotations

import pathlib

import numpy as np

from tfgpt.runtime.onnx_runtime import open_session
from tfgpt.runtime.release_files import check_files
from tfgpt.runtime.translator import Translator

FOLDER = pathlib.PurePath("onnx")
GRAPHS = ("encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx")
FILES = (*GRAPHS, "model.onnx.data")


def open_onnx_translator(release, config, threads=0, verify=True):
    """The translator of a release's ONNX files.

    Args:
        release: the release directory.
        config: the contents of its config.json.
        threads: of each session; 0 lets ONNX Runtime choose.
        verify: compare the files with the release's manifest.

    Raises:
        UserError: if a file is missing or not what the manifest says, or ONNX Runtime cannot load it.
    """
    release = pathlib.Path(release)
    check_files(release, ["config.json", *(FOLDER / file for file in FILES)], verify)
    return OnnxTranslator(config, *(open_session(release / FOLDER / file, threads) for file in GRAPHS))


class OnnxTranslator(Translator):
    """Runs three sessions: the encoder, the decoder of a target's beginning, and that of what follows."""

    name = "onnx"

    def __init__(self, config, encoder, decoder, decoder_with_past):
        super().__init__(config)
        self.encoder, self.decoder, self.decoder_with_past = encoder, decoder, decoder_with_past
        self.past_names = [i.name for i in decoder_with_past.get_inputs() if i.name.startswith("past_key_values.")]

    def encode(self, source_ids, source_padding_mask):
        """The encoder's output, and no cache yet, which the first step makes of it."""
        feeds = {"input_ids": _integers(source_ids), "attention_mask": _integers(source_padding_mask)}
        return self.encoder.run(None, feeds)

    def step(self, target_ids, source_padding_mask, memory, cache):
        feeds = {"input_ids": _integers(target_ids), "encoder_attention_mask": _integers(source_padding_mask)}
        if cache[0].shape[2] == 0:
            logits, *present = self.decoder.run(None, feeds | {"encoder_hidden_states": memory[0]})
            return logits, present
        logits, *present = self.decoder_with_past.run(None, feeds | dict(zip(self.past_names, cache, strict=True)))
        # Of a layer's four tensors the first two are self-attention's; cross-attention's stay as they are.
        present = iter(present)
        return logits, [tensor if i % 4 > 1 else next(present) for i, tensor in enumerate(cache)]

    def reordered(self, cache, parents):
        return [tensor if i % 4 > 1 else tensor[parents] for i, tensor in enumerate(cache)]


def _integers(array):
    return np.asarray(array, np.int64)
