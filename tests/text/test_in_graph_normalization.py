"""The joint tokenizer of translation models in a graph, against the `tokenizers` library over all of Unicode."""

import random

import numpy as np
import pytest
import tensorflow as tf
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from tfgpt.errors import UserError
from tfgpt.text import Tokenizer, train_joint_tokenizer
from tfgpt.text.in_graph_normalization import Lowercase, strip
from tfgpt.text.in_graph_tokenizer import in_graph_tokenizer

SENTENCES = ["A dog's running, isn't it?  Ein HUND läuft.", "Größe ÄÖÜ ÉTÉ d'été <s> </s> <pad>", "été L'ÉTÉ 42"] * 3
CHARACTERS = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000]


@pytest.fixture(scope="module", params=[True, False], ids=["lowercase", "cased"])
def pair(request):
    """A joint tokenizer, and itself in a graph."""
    tokenizer = train_joint_tokenizer(SENTENCES, 340, lowercase=request.param)
    module = in_graph_tokenizer(tokenizer)
    encode = tf.function(module.encode, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    return tokenizer, module, encode


@pytest.fixture(scope="module")
def lowercase():
    return tf.function(Lowercase(), input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)


def test_lower_case_of_every_character(lowercase):
    library = normalizers.Lowercase()
    found = lowercase(tf.constant(CHARACTERS)).numpy()
    changed = 0
    for character, lower in zip(CHARACTERS, found, strict=True):
        if character != "\0":  # NumPy strips it
            assert lower.decode() == library.normalize_str(character), hex(ord(character))
            changed += lower.decode() != character
    assert changed > 1400
    assert lowercase(tf.constant(["\0A\0"]))[0] == b"\0a\0"


def test_lower_case_does_not_depend_on_the_neighbours(lowercase):
    text = "".join(random.Random(0).sample(CHARACTERS, len(CHARACTERS)))
    assert lowercase(tf.constant([text])).numpy()[0].decode() == normalizers.Lowercase().normalize_str(text)


def test_strip_is_pythons():
    white = [c for c in CHARACTERS if c.isspace()]
    near = ["\u200b", "\ufeff", "\u180e", "\u2060", "\x1b", "\x84", "\x86"]  # white space to others, or beside it
    texts = [f"{c}a{c}b{c}" for c in white + near] + ["".join(white), "", " \n a\n", "\n\n", "a", f"{''.join(white)}x"]
    found = strip(tf.constant(texts)).numpy()
    assert [text.decode() for text in found] == [text.strip() for text in texts]


def test_ids_of_all_of_unicode(pair):
    tokenizer, _, encode = pair
    for start in range(0, len(CHARACTERS), 2**18):
        part = CHARACTERS[start : start + 2**18]
        texts = ["".join(part[i : i + 64]) for i in range(0, len(part), 64)]
        wanted = tokenizer.encode_batch(texts)
        found = encode(tf.constant(texts))
        np.testing.assert_array_equal(found.row_lengths(), list(map(len, wanted)))
        np.testing.assert_array_equal(found.values, np.concatenate(wanted))


PIECES = [
    *"aAzZ éÉßẞİIıΣσǅÅÅK𝔄Ⱥ\u0301\u1c89\ua7cb\n\t'.,1²",
    "  ",
    "'S",
    "'LL",
    "<s>",
    "</s>",
    "<pad>",
    "HUND",
    "läuft",
]


@given(st.lists(st.lists(st.sampled_from(PIECES) | st.characters(exclude_categories=["Cs"])).map("".join), min_size=1))
@settings(max_examples=150, deadline=None)
def test_ids_of_made_up_texts(pair, texts):
    tokenizer, _, encode = pair
    assert encode(tf.constant(texts)).to_list() == tokenizer.encode_batch(texts)


def test_text_that_looks_like_a_special_token_is_text(pair):
    tokenizer, module, encode = pair
    [ids] = encode(tf.constant(["a</s><pad> <s>"])).to_list()
    assert ids == tokenizer.encode("a</s><pad> <s>")
    assert not {0, 1, 2} & set(ids)
    assert module.decode([[1, *ids, 2, 0]], skip_special_tokens=True).numpy()[0] == b"a</s><pad> <s>"


def test_what_is_not_utf8_is_read_as_replacement_characters(pair):
    tokenizer, _, encode = pair
    raw = [b"A\xff\xc3", b"\xf0\x9f\x98", b"\xed\xa0\x80Z"]
    assert encode(tf.constant(raw)).to_list() == [tokenizer.encode(text.decode("utf-8", "replace")) for text in raw]


@pytest.mark.parametrize("change", ["normalizer", "special tokens"])
def test_another_tokenizer_is_refused(change):
    backend = tokenizers.Tokenizer.from_str(train_joint_tokenizer(SENTENCES, 300, lowercase=True)._backend.to_str())
    if change == "normalizer":
        backend.normalizer = normalizers.NFKC()
        tokenizer = Tokenizer(backend)
    else:
        tokenizer = Tokenizer(backend)
        tokenizer._backend.encode_special_tokens = False
    with pytest.raises(UserError, match="a Tokenizer of BPE cannot run inside a TensorFlow graph"):
        in_graph_tokenizer(tokenizer)
