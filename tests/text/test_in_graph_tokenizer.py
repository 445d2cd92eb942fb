import itertools
import json
import pathlib
import random

import pytest
import tensorflow as tf
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from benchmarks.in_graph_tokenizer import long_words, strings
from tfgpt.errors import UserError
from tfgpt.text import END_OF_TEXT, BytePairTokenizer, CharacterTokenizer, InGraphBytePairTokenizer, Tokenizer
from tfgpt.text.in_graph_tokenizer import InGraphCharacterTokenizer, in_graph_tokenizer, valid_utf8

SOURCE = pathlib.Path(json.__file__).parent.parent  # the standard library's


@pytest.fixture(scope="module")
def trained():
    documents = [path.read_text(encoding="utf-8") for path in sorted(SOURCE.glob("[a-h]*.py"))]
    return BytePairTokenizer.train([*documents, "naïve café 中文字符 日本語 🙂👍🏽\n" * 9], vocabulary_size=3000)


@pytest.fixture(scope="module")
def library(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    trained.save(folder)
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def module(trained):
    return functions_of(trained)


def functions_of(tokenizer):
    """The tokenizer for a graph, with functions of it that can be saved."""
    module = in_graph_tokenizer(tokenizer)
    texts, ids = tf.TensorSpec([None], tf.string), tf.RaggedTensorSpec([None, None], tf.int32, 1)
    module.encode_texts = tf.function(module.encode, input_signature=[texts])
    module.decode_ids = tf.function(lambda token_ids: valid_utf8(module.decode(token_ids)), input_signature=[ids])
    module.round_trip = tf.function(lambda texts: module.decode(module.encode(texts)), input_signature=[texts])
    return module


def ids_of(library, texts):
    return [encoding.ids for encoding in library.encode_batch(texts)]


# === Byte pairs ===


def test_fuzzed_strings_get_the_librarys_ids(module, library):
    texts = strings(6000)
    expected = ids_of(library, texts)
    assert module.encode_texts(tf.constant(texts)).to_list() == expected
    decoded = module.decode_ids(tf.ragged.constant(expected, tf.int32, 1)).numpy()
    assert [text.decode() for text in decoded] == texts == [library.decode(ids, False) for ids in expected]


def test_source_gets_the_librarys_ids(module, library):
    texts = [path.read_text(encoding="utf-8") for path in sorted(SOURCE.glob("[p-z]*.py"))]
    assert len(texts) > 50
    assert module.encode_texts(tf.constant(texts)).to_list() == ids_of(library, texts)


@pytest.mark.parametrize("name", long_words())
def test_long_words_get_the_librarys_ids(module, library, name):
    texts = [long_words()[name], "a word"]
    assert module.encode_texts(tf.constant(texts)).to_list() == ids_of(library, texts)


def test_long_fuzzed_texts_get_the_librarys_ids(module, library):
    texts = ["".join(strings(2000, seed)) for seed in (1, 2)]
    assert min(len(text.encode()) for text in texts) > 100_000
    assert module.encode_texts(tf.constant(texts)).to_list() == ids_of(library, texts)


def test_empty_texts_and_nul_bytes(module, trained):
    assert module.encode_texts(tf.constant([], tf.string)).to_list() == []
    assert module.encode_texts(tf.constant(["", ""])).to_list() == [[], []]
    texts = ["\x00", "a\x00b\x00\x00", "", "\x00 "]
    assert module.encode_texts(tf.constant(texts)).to_list() == trained.encode_batch(texts)
    for ids in ([], [[], []]):
        assert module.decode_ids(tf.ragged.constant(ids, tf.int32, 1)).numpy().tolist() == [b""] * len(ids)


def test_eager_calls_and_other_inputs(module, trained):
    ids = module(tf.constant(["the cat"]))
    assert ids.dtype == tf.int32 and ids.shape.as_list() == [1, None]
    assert ids.to_list() == [trained.encode("the cat")]
    assert module.decode(tf.cast(ids.to_tensor(), tf.int64)).numpy().tolist() == [b"the cat"]
    assert module.vocabulary_size == trained.vocabulary_size


def test_special_tokens_are_decoded_or_skipped(module, trained, library):
    ids = trained.encode(f"so {END_OF_TEXT}{END_OF_TEXT} on")
    for skip in (False, True):
        decoded = module.decode(tf.constant([ids]), skip_special_tokens=skip).numpy()[0].decode()
        assert decoded == library.decode(ids, skip_special_tokens=skip)


def test_special_tokens_that_are_not_ascii():
    special = ["<é>", "<a b>", "<日>"]  # the library takes the é of the first for GPT-2's byte E9
    vocabulary = {token: i for i, token in enumerate([*pre_tokenizers.ByteLevel.alphabet(), *special])}
    library = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    library.add_special_tokens(special)
    module = InGraphBytePairTokenizer(vocabulary, [], special)
    texts = ["<é><a b>x<日>", "<é <日>"]
    expected = ids_of(library, texts)
    ids = module.encode(tf.constant(texts))
    assert ids.to_list() == expected
    for skip in (False, True):
        decoded = valid_utf8(module.decode(ids, skip_special_tokens=skip)).numpy()
        assert [text.decode() for text in decoded] == [library.decode(row, skip) for row in expected]


def test_random_ids_decode_as_in_the_library(module, library):
    generator = random.Random(0)
    rows = [[generator.randrange(generator.choice([256, 3000])) for _ in range(i % 12)] for i in range(5000)]
    decoded = module.decode_ids(tf.ragged.constant(rows, tf.int32, 1)).numpy()
    expected = [library.decode(row, skip_special_tokens=False) for row in rows]
    assert [text.decode() for text in decoded] == expected
    assert sum("\ufffd" in text for text in expected) > 1000


def test_merges_as_strings_and_pairs_given_twice():
    vocabulary = {token: i for i, token in enumerate([*pre_tokenizers.ByteLevel.alphabet(), "ab", "bc"])}
    merges = ["a b", "b c", "a b"]  # the last rank counts
    expected = [token.id for token in models.BPE(vocabulary, [tuple(m.split()) for m in merges]).tokenize("abc")]
    assert expected == [vocabulary["a"], vocabulary["bc"]]
    assert InGraphBytePairTokenizer(vocabulary, merges).encode(tf.constant(["abc"])).to_list() == [expected]


def test_a_token_that_its_own_bytes_do_not_give():
    vocabulary = {token: i for i, token in enumerate([*pre_tokenizers.ByteLevel.alphabet(), "ab", "bc", "abc", "cab"])}
    merges = [("b", "c"), ("ab", "c"), ("a", "b"), ("c", "ab")]
    model = models.BPE(vocabulary, merges)
    words = ["abc", "cab", "ab"]
    expected = [[token.id for token in model.tokenize(word)] for word in words]
    assert expected[0] == [vocabulary["a"], vocabulary["bc"]]
    assert InGraphBytePairTokenizer(vocabulary, merges).encode(tf.constant(words)).to_list() == expected


# === UTF-8 ===


def test_valid_utf8_replaces_as_python_does():
    edges = [0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED, 0xEE,
             0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xF7, 0xF8, 0xFC, 0xFE, 0xFF]  # fmt: skip
    malformed = [bytes([i]) for i in range(256)] + [bytes(pair) for pair in itertools.product(range(256), repeat=2)]
    malformed += [bytes(three) for three in itertools.product(edges, repeat=3)]
    generator = random.Random(0)
    malformed += [bytes(generator.choices(edges, k=generator.randint(4, 9))) for _ in range(50_000)]
    malformed += [chr(i).encode() for i in (0xFFFE, 0xFFFF, 0xFEFF, 0xFFFD, 0x1FFFF, 0x10FFFF)]
    expected = [text.decode("utf-8", "replace") for text in malformed]
    assert [text.decode() for text in valid_utf8(tf.constant(malformed)).numpy()] == expected


def test_malformed_texts_are_encoded_as_replaced(module, trained):
    generator = random.Random(0)
    parts = [b"a", b" ", b"\x80", b"\xc3", b"\xe4\xb8", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff", "日".encode()]
    texts = [b"".join(generator.choices(parts, k=generator.randrange(8))) for _ in range(2000)]
    texts += [b"\xe4\xb8", b"\xad"]  # halves of a character in two rows are none
    expected = trained.encode_batch([text.decode("utf-8", "replace") for text in texts])
    assert module.encode_texts(tf.constant(texts)).to_list() == expected


# === Characters ===


def test_characters():
    tokenizer = CharacterTokenizer.train(["hello wörld 日🙂\ufffd\x00"])
    module = in_graph_tokenizer(tokenizer)
    assert isinstance(module, InGraphCharacterTokenizer)
    texts = ["", "wörld", "日🙂\x00 hello", ""]
    ids = tf.function(module.encode)(tf.constant(texts))
    assert ids.dtype == tf.int32
    assert ids.to_list() == tokenizer.encode_batch(texts)
    assert [text.decode() for text in module.decode(ids).numpy()] == texts
    assert module(tf.constant([], tf.string)).to_list() == []
    assert module(tf.constant([b"h\xe4\xb8", b"\xad"])).to_list() == tokenizer.encode_batch(["h\ufffd", "\ufffd"])


@pytest.mark.parametrize("wrap", [lambda call: call, tf.function], ids=["eager", "graph"])
@pytest.mark.parametrize("character, name", [("z", r"z \(U\+007A\)"), ("é", r"U\+00E9"), ("\n", r"U\+000A"),
                                             ("🙂", r"U\+1F642"), ('"', r"U\+0022")])  # fmt: skip
def test_unknown_character(character, name, wrap):
    module = in_graph_tokenizer(CharacterTokenizer.train(["hello"]))
    expected = f"the character {name} is not in the vocabulary; expected text made of the 4 characters"
    with pytest.raises(tf.errors.InvalidArgumentError, match=expected):
        wrap(module.encode)(tf.constant(["hell", f"o{character}x"]))


# === Graphs and files ===


def test_saved_model_round_trip(trained, tmp_path):
    text = "it's the  end\n" * 2 + END_OF_TEXT
    characters = CharacterTokenizer.train([text])
    for tokenizer in (trained, characters):
        module = functions_of(tokenizer)
        tf.saved_model.save(module, str(tmp_path), signatures=module.round_trip)
        assert not list((tmp_path / "assets").iterdir())
        del module  # nothing of it may be needed
        loaded = tf.saved_model.load(str(tmp_path))
        assert loaded.encode_texts(tf.constant([text, ""])).to_list() == [tokenizer.encode(text), []]
        found = loaded.signatures["serving_default"](tf.constant([text]))
        assert [value.numpy().tolist() for value in found.values()] == [[text.encode()]]


def test_saved_model_in_a_session_as_servers_load_it(tmp_path):
    module = functions_of(CharacterTokenizer.train(["hello"]))
    tf.saved_model.save(module, str(tmp_path), signatures=module.round_trip)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        signature = tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path)).signature_def["serving_default"]
        (texts,), (found,) = signature.inputs.values(), signature.outputs.values()
        assert session.run(found.name, {texts.name: ["hole", ""]}).tolist() == [b"hole", b""]
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=r"the character z \(U\+007A\) is not in the vocabulary"
        ):
            session.run(found.name, {texts.name: ["hell", "z"]})


def test_saved_tables_in_a_session_as_servers_load_them(module, trained, tmp_path):
    tf.saved_model.save(module, str(tmp_path), signatures=module.round_trip)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        signature = tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path)).signature_def["serving_default"]
        (texts,), (found,) = signature.inputs.values(), signature.outputs.values()
        sent = [text.encode() for text in strings(500)]
        assert session.run(found.name, {texts.name: sent}).tolist() == sent


def test_graphs_hold_core_operators_alone_and_small_constants(module):
    operators, size = set(), 0
    for function in (module.encode_texts, module.decode_ids):
        graph = function.get_concrete_function().graph.as_graph_def()
        size += graph.ByteSize()
        for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
            operators |= {node.op for node in nodes}
            # On a machine with a GPU too. Inputs and outputs are where the caller has them, strings always there.
            elsewhere = {node.op for node in nodes if "CPU" not in node.device}
            assert elsewhere <= {"Placeholder", "Identity", "NoOp", "UnicodeTranscode"}
    assert {"While", "LookupTableFindV2", "UnsortedSegmentJoin"} <= operators  # inner functions were seen too
    assert not {name for name in operators if "PyFunc" in name or "Regex" in name}
    # tests/export/test_operators.py sees in a bare process that they are TensorFlow's own.
    assert size < 400_000  # vocabulary and tables are captured, and saved once


# === What goes wrong ===


def test_ids_out_of_the_vocabulary(module):
    for token_id in (3000, -1):
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"token id {token_id} is not .* expected 0 to 2999"):
            module.decode_ids(tf.ragged.constant([[1], [2, token_id]], tf.int32, 1))


def backend(**settings):
    alphabet = {character: i for i, character in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    made = tokenizers.Tokenizer(models.BPE(alphabet, [], **settings))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return made


def test_other_tokenizers_are_refused():
    with pytest.raises(UserError, match="a Tokenizer of WordLevel cannot run inside a TensorFlow graph; expected GPT"):
        in_graph_tokenizer(Tokenizer(tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))))
    with pytest.raises(UserError, match="dropout set to 0.5; expected none"):
        in_graph_tokenizer(BytePairTokenizer(backend(dropout=0.5)))
    with pytest.raises(UserError, match="ignore_merges set to True"):
        in_graph_tokenizer(BytePairTokenizer(backend(ignore_merges=True)))
    stripping = backend()
    stripping.add_special_tokens([tokenizers.AddedToken(END_OF_TEXT, lstrip=True)])
    with pytest.raises(UserError, match="lstrip set; expected"):
        in_graph_tokenizer(BytePairTokenizer(stripping))


def test_vocabularies_that_do_not_fit():
    alphabet = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    with pytest.raises(UserError, match="lacks '!'"):
        InGraphBytePairTokenizer({k: v for k, v in alphabet.items() if k != "!"}, [])
    with pytest.raises(UserError, match="merge 'a b' needs the token 'ab'"):
        InGraphBytePairTokenizer(alphabet, [("a", "b")])
    with pytest.raises(UserError, match="has 3 parts; expected two"):
        InGraphBytePairTokenizer(alphabet, ["a b c"])
    with pytest.raises(UserError, match="special token '<end>' has no id"):
        InGraphBytePairTokenizer(alphabet, [], ["<end>"])
    with pytest.raises(UserError, match="an id twice"):
        InGraphBytePairTokenizer(alphabet | {"ab": 0}, [])
    with pytest.raises(UserError, match="holds 'ab'; expected single characters"):
        InGraphCharacterTokenizer({"ab": 0})
