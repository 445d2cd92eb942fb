"""Optimum's sequence-to-sequence model opens a translation model's ONNX files as they are, given a Marian's config."""

import json
import shutil

import numpy as np
import pytest

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def translations(releases, tmp_path_factory):
    """The folder that `make_release.py` wrote, and a copy of its release whose config.json is a Marian's."""
    folder = releases / "translation"
    copy = shutil.copytree(folder / "release", tmp_path_factory.mktemp("marian") / "release")
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    # Optimum knows models by their type; Marian has the same caches, and its words for sizes are config.json's.
    config |= {"model_type": "marian", "architectures": ["MarianMTModel"], "bad_words_ids": None}
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder, copy


@pytest.fixture(scope="module")
def opened(translations):
    from optimum.onnxruntime import ORTModelForSeq2SeqLM

    return ORTModelForSeq2SeqLM.from_pretrained(translations[1], local_files_only=True)


def test_it_finds_the_three_files_and_the_cache(opened):
    assert opened.can_use_cache
    assert opened.encoder.path.name == "encoder_model.onnx"
    assert opened.decoder.path.name == "decoder_model.onnx"
    assert opened.decoder_with_past.path.name == "decoder_with_past_model.onnx"


def test_logits_and_greedy_translations_of_a_batch(opened, translations):
    import torch

    with np.load(translations[0] / "expected.npz") as arrays:
        expected = dict(arrays)
    ids, mask, targets = (
        torch.tensor(expected[name], dtype=torch.int64) for name in ("source_ids", "source_padding_mask", "target_ids")
    )
    logits = opened(input_ids=ids, attention_mask=mask, decoder_input_ids=targets).logits.numpy()
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=1e-3)
    limit = expected["greedy"].shape[1]
    found = opened.generate(input_ids=ids, attention_mask=mask, num_beams=1, do_sample=False, max_new_tokens=limit)
    for row, wanted in zip(found[:, 1:].tolist(), expected["greedy"].tolist(), strict=True):
        end = wanted.index(2) + 1 if 2 in wanted else len(wanted)
        assert row[:end] == wanted[:end]
