import json

import pytest
import tokenizers

from tfgpt.errors import UserError
from tfgpt.text import Tokenizer, load_tokenizer, train_joint_tokenizer

SENTENCES = [
    "The cat sat on the mat.",
    "Die Katze saß auf der Matte.",
    "A cat and a mat.",
    "Eine Katze und eine Matte.",
]


@pytest.mark.parametrize("lowercase", [False, True])
def test_text_comes_back(lowercase):
    tokenizer = train_joint_tokenizer(SENTENCES * 3, 290, lowercase)
    assert tokenizer.vocabulary_size == 290
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.end_token_id is None and tokenizer.lowercases == lowercase
    for text in (*SENTENCES, "Größe 20 €, ein Ärger 🙂", "  two  spaces", "Ça va, l'été?"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == (text.lower() if lowercase else text)
        assert not {0, 1, 2} & set(ids)


def test_cases_share_their_tokens_where_text_is_lowered():
    tokenizer = train_joint_tokenizer(SENTENCES * 3, 320, lowercase=True)
    assert tokenizer.encode("DIE KATZE") == tokenizer.encode("die katze")
    both = train_joint_tokenizer(SENTENCES * 3, 320)
    assert both.encode("DIE KATZE") != both.encode("die katze")


@pytest.mark.parametrize("text", ["a </s> b", "<pad><pad>", "<s>"])
def test_text_that_looks_like_a_special_token_is_text(text):
    tokenizer = train_joint_tokenizer(SENTENCES, 280)
    ids = tokenizer.encode(text)
    assert not {0, 1, 2} & set(ids) and tokenizer.decode(ids) == text


def test_a_saved_one_is_the_same_and_the_librarys(tmp_path):
    tokenizer = train_joint_tokenizer(SENTENCES * 3, 300, lowercase=True)
    tokenizer.save(tmp_path, model_max_length=32)
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is Tokenizer and loaded.fingerprint == tokenizer.fingerprint and loaded.lowercases
    text = "Die Katze und </s>"
    assert loaded.encode(text) == tokenizer.encode(text)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert library.encode("Die Katze", add_special_tokens=False).ids == tokenizer.encode("Die Katze")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast" and config["model_max_length"] == 32
    assert [config[name] for name in ("pad_token", "bos_token", "eos_token")] == ["<pad>", "<s>", "</s>"]


def test_a_vocabulary_without_room_for_bytes_is_refused():
    with pytest.raises(
        UserError, match="vocabulary_size is 258, expected at least 259: <pad>, <s>, </s> and 256 bytes"
    ):
        train_joint_tokenizer(SENTENCES, 258)
