"""tiktoken and the tokenizers library give a vocabulary of GPT-2's form the ids that tfgpt gives it."""

import pytest

from benchmarks.in_graph_tokenizer import long_words, standard_library, strings
from tfgpt.text import END_OF_TEXT, BytePairTokenizer

pytestmark = pytest.mark.interop

tokenizer_ids = pytest.importorskip("benchmarks.tokenizer_ids", reason="needs tiktoken")

NONE = {"tokenizers": 0, "tiktoken": 0}, 0


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    source = [path.read_text(encoding="utf-8", errors="replace") for path in standard_library()[::8]]
    folder = tmp_path_factory.mktemp("vocabulary")
    BytePairTokenizer.train(source, vocabulary_size=4000).save(folder)
    return tokenizer_ids.encoders(folder / "vocab.json", folder / "merges.txt")


def test_a_hundred_thousand_strings(found):
    texts = strings(100_000, seed=1)
    assert sum(END_OF_TEXT in text for text in texts) > 1000
    assert tokenizer_ids.mismatches(found, texts) == NONE


def test_words_without_a_break(found):
    assert tokenizer_ids.mismatches(found, [word[:2000] for word in long_words().values()]) == NONE


def test_special_tokens(found):
    encode, _ = found["tiktoken"]
    end = found["tfgpt"][0]([END_OF_TEXT])[0]
    assert len(end) == 1 and encode([END_OF_TEXT]) == [end]
    texts = [f"a{END_OF_TEXT}b", f"{END_OF_TEXT * 2} c", f" {END_OF_TEXT}\n", "<|endoftext |>", "<|endoftext|"]
    assert tokenizer_ids.mismatches(found, texts) == NONE


def test_a_difference_would_show(found):
    broken = found | {"tfgpt": (lambda texts: [[0] for _ in texts], found["tfgpt"][1])}
    assert tokenizer_ids.mismatches(broken, ["the cat", "the dog"]) == ({"tokenizers": 2, "tiktoken": 2}, 6)
