import itertools
import json
import subprocess
import sys
import time

import numpy as np
import pytest
import tokenizers

from tfgpt.errors import UserError
from tfgpt.text import BytePairTokenizer, CharacterTokenizer, Tokenizer, load_tokenizer
from tfgpt.text.tokenizer import PIECE_LENGTH, SAFE_CUT

DOCUMENTS = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind.\n" * 3,
    "def encode(text):\n    return [ids[character] for character in text]\n\n\ndef decode(ids):\n    return ids\n",
    "naïve café, 日本語, 🎉🎉  two  spaces\t\ttabs \r\n windows 1234 5678\n",
]

TEXTS = [
    "",
    " ",
    "the dog's fox",
    "Unseen: Ωmega — “quotes” 👩‍👩‍👧 \x00\x7f\u2028 end ",
    "tail\n\n\n  head\n",
    *DOCUMENTS,
]


@pytest.fixture(scope="module")
def byte_pair():
    return BytePairTokenizer.train(DOCUMENTS, vocabulary_size=300)


@pytest.fixture
def saved(byte_pair, tmp_path):
    byte_pair.save(tmp_path, model_max_length=64)
    return tmp_path


# === Byte pairs ===


def test_byte_pair_round_trip(byte_pair):
    for text in TEXTS:
        assert byte_pair.decode(byte_pair.encode(text)) == text
    assert byte_pair.encode_batch(TEXTS) == [byte_pair.encode(text) for text in TEXTS]
    assert byte_pair.encode_batch([]) == []


def test_byte_pair_ids_are_those_of_the_tokenizers_library(saved, byte_pair):
    witness = tokenizers.ByteLevelBPETokenizer(str(saved / "vocab.json"), str(saved / "merges.txt"))
    for text in TEXTS:
        assert byte_pair.encode(text) == witness.encode(text).ids


def test_byte_pair_merges_are_those_of_the_tokenizers_library(byte_pair):
    witness = tokenizers.ByteLevelBPETokenizer()
    witness.train_from_iterator(DOCUMENTS, vocab_size=299, min_frequency=2, show_progress=False)
    vocabulary = json.loads(byte_pair._backend.to_str())["model"]["vocab"]
    assert vocabulary == {**witness.get_vocab(), "<|endoftext|>": 299}


def test_byte_pair_vocabulary(byte_pair):
    assert byte_pair.vocabulary_size == 300
    assert byte_pair.end_token_id == 299
    assert byte_pair.encode("fox<|endoftext|>dog")[-2:] != byte_pair.encode("fox")
    assert 299 in byte_pair.encode("fox<|endoftext|>dog")
    assert byte_pair.decode([299]) == "<|endoftext|>"
    smallest = BytePairTokenizer.train(DOCUMENTS, vocabulary_size=257)
    assert (smallest.vocabulary_size, smallest.end_token_id) == (257, 256)
    assert len(smallest.encode("日本")) == 6


def test_byte_pair_vocabulary_is_smaller_where_the_text_has_too_few_pairs():
    assert BytePairTokenizer.train(["abab"], vocabulary_size=1000).vocabulary_size < 262


def test_byte_pair_training_is_deterministic(byte_pair):
    script = (
        "import json, sys; from tfgpt.text import BytePairTokenizer;"
        "print(BytePairTokenizer.train(json.load(sys.stdin), 300).fingerprint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(DOCUMENTS), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == byte_pair.fingerprint


@pytest.mark.parametrize(
    "line",
    [
        "the dog's fox\n",
        "fox \n dog\n\n dog \n",
        "café\n日本\nfox\n",
        "a\n\u00a0b\nc\x1c\nd\n",
        "it's\n's\n<|endoftext|>\n",
    ],
)
def test_pieces_change_no_token(saved, byte_pair, line):
    text = line * (3 * PIECE_LENGTH // len(line)) + "the end"
    pieces = byte_pair.pieces(text)
    assert "".join(pieces) == text
    expected = tokenizers.Tokenizer.from_file(str(saved / "tokenizer.json")).encode(text).ids
    assert byte_pair.encode(text) == expected
    assert [i for piece in pieces for i in byte_pair.encode(piece)] == expected


def test_every_safe_cut_changes_no_token(saved, byte_pair):
    witness = tokenizers.Tokenizer.from_file(str(saved / "tokenizer.json"))
    random = np.random.default_rng(0)
    alphabet = [
        *" \n\n  '\t\r\u00a0\u3000\x1c\x85\u2028\u180e",
        "a",
        "é",
        "日",
        "1",
        "!",
        "'s",
        "<|endoftext|>",
        "👍",
        "\u200b",
    ]
    for _ in range(2000):
        text = "".join(random.choice(alphabet, 30))
        cuts = [0, *(cut.start() for cut in SAFE_CUT.finditer(text)), len(text)]
        parts = [text[start:stop] for start, stop in itertools.pairwise(cuts)]
        assert [i for part in parts for i in witness.encode(part).ids] == witness.encode(text).ids


@pytest.mark.parametrize("block", [1000, 70_001, 10**7])
def test_pieces_of_a_stream(byte_pair, block):
    text = "the dog's fox\n 日本 " * 20_000
    *pieces, last = byte_pair.stream_pieces(text[i : i + block] for i in range(0, len(text), block))
    assert "".join(piece for piece, _ in [*pieces, last]) == text
    assert last[1] and not any(is_last for _, is_last in pieces)
    assert max(len(piece) for piece, _ in pieces) < PIECE_LENGTH + 20
    assert list(byte_pair.stream_pieces([])) == [("", True)]


def test_pieces_of_a_long_text_are_short(byte_pair):
    pieces = byte_pair.pieces("the dog's fox\n" * 20000)
    assert len(pieces) > 3 and max(map(len, pieces)) < PIECE_LENGTH + 20


# === Characters ===


def test_character_ids_are_nanogpts():
    text = "".join(DOCUMENTS)
    tokenizer = CharacterTokenizer.train(DOCUMENTS)
    stoi = {character: i for i, character in enumerate(sorted(set(text)))}
    assert tokenizer.encode(text) == [stoi[character] for character in text]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocabulary_size == len(stoi)
    assert tokenizer.end_token_id is None
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""


def test_character_tokenizer_json_alone_reproduces_it(tmp_path):
    tokenizer = CharacterTokenizer.train(DOCUMENTS)
    tokenizer.save(tmp_path)
    witness = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in DOCUMENTS:
        assert witness.encode(text).ids == tokenizer.encode(text)
        assert witness.decode(tokenizer.encode(text)) == text


def test_character_outside_the_vocabulary():
    tokenizer = CharacterTokenizer.train(["abc"])
    with pytest.raises(UserError, match="'z' is not in the vocabulary; expected text made of the 3 characters"):
        tokenizer.encode("abz")


def test_characters_are_quick():
    text = "The quick brown fox.\n" * 50_000  # 1 MB; some 0.05 s
    tokenizer = CharacterTokenizer.train([text])
    start = time.perf_counter()
    tokenizer.encode(text)
    assert time.perf_counter() - start < 1
    assert "".join(tokenizer.pieces(text)) == text and len(tokenizer.pieces(text)) > 10


# === Files ===


@pytest.mark.parametrize("kind", ["byte_pair", "character"])
def test_save_and_load(tmp_path, byte_pair, kind):
    tokenizer = byte_pair if kind == "byte_pair" else CharacterTokenizer.train(DOCUMENTS)
    tokenizer.save(tmp_path / "model", model_max_length=64)
    loaded = load_tokenizer(tmp_path / "model")
    assert type(loaded) is type(tokenizer)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.vocabulary_size == tokenizer.vocabulary_size
    assert loaded.encode(DOCUMENTS[0]) == tokenizer.encode(DOCUMENTS[0])
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"}


def test_fingerprints_differ(byte_pair):
    assert len(byte_pair.fingerprint) == 64
    assert BytePairTokenizer.train(DOCUMENTS, 299).fingerprint != byte_pair.fingerprint


def test_hugging_face_config(saved, tmp_path):
    config = json.loads((saved / "tokenizer_config.json").read_text())
    assert config == {
        "tokenizer_class": "GPT2Tokenizer",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "add_prefix_space": False,
        "model_max_length": 64,
    }
    CharacterTokenizer.train(["abc"]).save(tmp_path / "characters")
    config = json.loads((tmp_path / "characters" / "tokenizer_config.json").read_text())
    assert config == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }


def test_from_files_and_from_a_directory_without_tokenizer_json(saved, byte_pair):
    tokenizer = BytePairTokenizer.from_files(saved / "vocab.json", saved / "merges.txt")
    assert tokenizer.fingerprint == byte_pair.fingerprint
    (saved / "tokenizer.json").unlink()
    assert load_tokenizer(saved).fingerprint == byte_pair.fingerprint


def test_from_files_reads_openais_form(saved, byte_pair):
    """ASCII escapes in encoder.json; no matter how vocab.bpe ends, or whether it has a header."""
    vocabulary = json.loads((saved / "vocab.json").read_text())
    (saved / "encoder.json").write_text(json.dumps(vocabulary))
    merges = (saved / "merges.txt").read_text()
    for text in (merges, merges.rstrip("\n"), merges.split("\n", 1)[1], merges.replace("\n", "\r\n")):
        (saved / "vocab.bpe").write_bytes(text.encode())
        tokenizer = BytePairTokenizer.from_files(saved / "encoder.json", saved / "vocab.bpe")
        assert tokenizer.fingerprint == byte_pair.fingerprint


def test_from_files_without_an_end_token(saved):
    vocabulary = json.loads((saved / "vocab.json").read_text())
    del vocabulary["<|endoftext|>"]
    (saved / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = BytePairTokenizer.from_files(saved / "vocab.json", saved / "merges.txt")
    assert (tokenizer.vocabulary_size, tokenizer.end_token_id) == (299, None)
    tokenizer.save(saved)
    assert json.loads((saved / "tokenizer_config.json").read_text())["eos_token"] is None


def test_others_tokenizers_keep_their_own_rules(tmp_path):
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert type(tokenizer) is Tokenizer
    assert tokenizer.encode("a b c a") == [0, 1, 2, 0]
    with_prefix = tokenizers.ByteLevelBPETokenizer(add_prefix_space=True)
    with_prefix.train_from_iterator(DOCUMENTS, vocab_size=270, show_progress=False)
    with_prefix.save(str(tmp_path / "tokenizer.json"))
    assert type(load_tokenizer(tmp_path)) is Tokenizer


# === Errors ===


def test_vocabulary_too_small():
    with pytest.raises(UserError, match="256 is too small; expected at least 257"):
        BytePairTokenizer.train(DOCUMENTS, vocabulary_size=256)


@pytest.mark.parametrize("train", [CharacterTokenizer.train, lambda texts: BytePairTokenizer.train(texts, 300)])
@pytest.mark.parametrize("documents", [[], ["", ""]])
def test_no_text_to_train_on(train, documents):
    with pytest.raises(UserError, match="no text to train a tokenizer on"):
        train(documents)


def test_decode_of_a_negative_id(byte_pair):
    with pytest.raises(UserError, match="token id -1 is not in the vocabulary; expected 0 to 299"):
        byte_pair.decode([1, -1, 2])


def test_an_id_past_the_vocabulary_is_no_text(byte_pair):
    assert byte_pair.decode([1, 300, 2, 50303]) == byte_pair.decode([1, 2]) != ""


def test_encode_of_a_lone_surrogate(byte_pair):
    with pytest.raises(UserError, match=r"'\\ud800' at character 1"):
        byte_pair.encode("a\ud800")
    with pytest.raises(UserError, match="is not in the vocabulary"):
        CharacterTokenizer.train(["abc"]).encode("\ud800")


def test_directory_without_a_tokenizer(tmp_path):
    with pytest.raises(UserError, match="holds no tokenizer; expected tokenizer.json, or vocab.json and merges.txt"):
        load_tokenizer(tmp_path / "nowhere")


def test_malformed_tokenizer_json(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(UserError, match="tokenizer.json is not a tokenizer of the tokenizers library"):
        load_tokenizer(tmp_path)


def test_missing_merges(saved):
    (saved / "tokenizer.json").unlink()
    (saved / "merges.txt").unlink()
    with pytest.raises(UserError, match="merges.txt does not exist; expected a merge a line"):
        load_tokenizer(saved)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "vocab.json is not JSON"),
        ("[1]", "vocab.json holds other things than token ids"),
        ('{"a": "b"}', "vocab.json holds other things than token ids"),
        ('{"a": 0, "b": 2}', "does not number its 2 tokens from 0 to 1"),
        ('{"a": 0, "b": 1}', "lacks '!', the token of a single byte"),
    ],
)
def test_malformed_vocabulary(saved, text, message):
    (saved / "vocab.json").write_text(text)
    with pytest.raises(UserError, match=message):
        BytePairTokenizer.from_files(saved / "vocab.json", saved / "merges.txt")


@pytest.mark.parametrize("bad", ["one", "a b c", "", "a ", "a  b"])
def test_malformed_merge(saved, bad):
    lines = (saved / "merges.txt").read_text().split("\n")
    (saved / "merges.txt").write_text("\n".join([*lines[:3], bad, *lines[3:]]))
    with pytest.raises(UserError, match=f"merges.txt, line 4: found '{bad}'; expected two tokens"):
        BytePairTokenizer.from_files(saved / "vocab.json", saved / "merges.txt")


def test_merge_of_another_vocabulary(saved):
    lines = (saved / "merges.txt").read_text().split("\n")
    (saved / "merges.txt").write_text("\n".join([*lines[:3], "q z", *lines[3:]]))
    with pytest.raises(UserError, match="merges.txt, line 4: 'q z' needs the token 'qz', which .*vocab.json"):
        BytePairTokenizer.from_files(saved / "vocab.json", saved / "merges.txt")


def test_truncated_merges(saved):
    lines = (saved / "merges.txt").read_text().split("\n")
    (saved / "merges.txt").write_text("\n".join(lines[:-3]))
    with pytest.raises(UserError, match="has 41 merges, none of which makes the token"):
        BytePairTokenizer.from_files(saved / "vocab.json", saved / "merges.txt")


# === Imports ===


def test_tensorflow_is_imported_by_the_pipelines_alone():
    script = (
        "import sys, tfgpt.text; assert 'tokenizers' not in sys.modules;"
        "tfgpt.text.Tokenizer, tfgpt.text.write_token_shards, tfgpt.text.read_documents;"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_unknown_name():
    import tfgpt.text

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tfgpt.text.nothing  # noqa: B018
    assert set(tfgpt.text.__all__) <= set(dir(tfgpt.text))
