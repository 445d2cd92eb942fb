"""Optimum's ONNX Runtime model opens a release as it is."""

import copy
import types

import pytest

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def opened(release):
    from optimum.onnxruntime import ORTModelForCausalLM
    from transformers import AutoTokenizer

    return types.SimpleNamespace(
        model=ORTModelForCausalLM.from_pretrained(release.path, local_files_only=True),
        tokenizer=AutoTokenizer.from_pretrained(release.path, local_files_only=True, padding_side="left"),
    )


def test_it_finds_the_portable_decoder_and_its_cache(opened):
    assert opened.model.path.name == "model.onnx"
    assert opened.model.can_use_cache


def test_greedy_text(opened, release):
    for row in release.rows:
        inputs = opened.tokenizer(row["prompt"], return_tensors="pt")
        assert inputs["input_ids"].tolist() == [row["token_ids"]]
        [tokens] = opened.model.generate(**inputs, max_new_tokens=release.max_new_tokens)
        assert tokens.tolist() == row["token_ids"] + row["new_token_ids"]
        assert opened.tokenizer.decode(tokens, skip_special_tokens=True) == row["text"]


def test_greedy_text_of_a_batch(opened, release):
    contexts = [row["token_ids"] for row in release.rows]
    tokenizer = copy.deepcopy(opened.tokenizer)
    # As one does with any GPT-2, which has no token for padding; characters have no end of text to take for it either.
    tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    inputs = tokenizer([row["prompt"] for row in release.rows], padding=True, return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    assert inputs["attention_mask"].tolist() == [[0] * (length - len(c)) + [1] * len(c) for c in contexts]
    pad = tokenizer.pad_token_id
    outputs = opened.model.generate(**inputs, max_new_tokens=release.max_new_tokens, pad_token_id=pad)
    for row, tokens in zip(release.rows, outputs[:, length:].tolist(), strict=True):
        assert tokens == row["new_token_ids"] + [pad] * (len(tokens) - len(row["new_token_ids"]))


def test_logits(opened, release, assert_logits):
    import torch

    tokens, mask = (torch.tensor(array, dtype=torch.int64) for array in (release.token_ids, release.padding_mask))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)  # which `generate` works out by itself
    assert_logits(opened.model(input_ids=tokens, attention_mask=mask, position_ids=positions).logits.numpy())
