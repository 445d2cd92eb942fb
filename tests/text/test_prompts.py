import json

import numpy as np
import pytest

from tfgpt.errors import UserError
from tfgpt.text import BytePairTokenizer, CharacterTokenizer
from tfgpt.text.prompts import (
    PromptedText,
    encode_prompted,
    prompted_batch,
    prompted_training,
    prompted_validation,
    read_prompted,
)

TOKENIZER = BytePairTokenizer.train(["Q: who? A: me"], vocabulary_size=257)  # bytes, and 256 ends a text
TEMPLATES = ("Q: {question}\nA:", " {answer}")


def write(folder, *rows):
    path = folder / "f.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_templates(tmp_path):
    path = write(tmp_path, {"question": ["who?", "you?"], "answer": 42}, {"question": "{x}", "answer": "me", "n": 1})
    first, second = read_prompted([path], *TEMPLATES)
    assert (first.prompt, first.answer, first.place) == ("Q: who?\nyou?\nA:", " 42", f"{path}, line 1")
    assert (second.prompt, second.answer) == ("Q: {x}\nA:", " me")  # braces of the data are text


@pytest.mark.parametrize(
    "row, message",
    [
        ({"answer": "x"}, "line 1 has the fields answer, expected one named 'question' for the template"),
        ({"question": {"a": 1}, "answer": "x"}, "line 1 has question {'a': 1}, expected a string, a number or a list"),
        ({"question": True, "answer": "x"}, "line 1 has question True, expected a string"),
        ({"question": "x", "answer": " "}, "line 1 has an empty answer, expected some characters"),
        ("x", "line 1 holds a JSON str, expected an object"),
    ],
)
def test_bad_examples(row, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_prompted([write(tmp_path, row)], *TEMPLATES)


def test_bad_files(tmp_path):
    with pytest.raises(UserError, match="none.jsonl is missing"):
        read_prompted([tmp_path / "none.jsonl"], *TEMPLATES)
    with pytest.raises(UserError, match="f.jsonl holds no examples"):
        read_prompted([write(tmp_path)], *TEMPLATES)


# === Tokens ===


def examples(*pairs):
    return [PromptedText(prompt, answer, f"f.jsonl, line {i}") for i, (prompt, answer) in enumerate(pairs, 1)]


def test_an_answer_ends_and_counts_alone():
    tokens = encode_prompted(TOKENIZER, examples(("ab", "xyz"), ("", "q")), window=8)
    inputs, targets, weights = prompted_batch(tokens, [0, 1, -1], width=8)
    a, b, x, y, z, q = TOKENIZER.encode("abxyzq")
    end = TOKENIZER.end_token_id
    assert inputs.tolist() == [[a, b, x, y, z, 0, 0, 0], [end, q, *[0] * 6], [0] * 8]
    assert targets.tolist() == [[b, x, y, z, end, 0, 0, 0], [q, end, *[0] * 6], [0] * 8]
    assert weights.tolist() == [[0, 1, 1, 1, 1, 0, 0, 0], [1, 1, *[0] * 6], [0] * 8]
    assert tokens.num_answer_bytes == 4


def test_a_tokenizer_without_an_end():
    tokens = encode_prompted(CharacterTokenizer.train(["ab"]), examples(("a", "b")), window=4)
    assert tokens.token_ids[0].tolist() == [0, 1]


def test_long_examples():
    too_long = examples(("ab", "c"), ("abcdef", "xyz"))
    with pytest.raises(UserError, match="^f.jsonl, line 2 has 6 tokens of prompt and 4 of answer, .* window's 6; --tr"):
        encode_prompted(TOKENIZER, too_long, window=5)
    cut = encode_prompted(TOKENIZER, too_long, window=5, truncate=True)
    assert TOKENIZER.decode(cut.token_ids[1]) == "efxyz<|endoftext|>" and cut.num_prompt_tokens == (2, 2)
    with pytest.raises(UserError, match="line 1 has an answer of 7 tokens, expected at most the window's 5"):
        encode_prompted(TOKENIZER, examples(("a", "abcdef")), window=5, truncate=True)


# === Batches ===


def test_batches_are_a_function_of_seed_and_step():
    tokens = encode_prompted(TOKENIZER, examples(*((chr(65 + i), chr(97 + i)) for i in range(10))), window=4)
    datasets = [prompted_training(tokens, 4, 5, seed, start).as_numpy_iterator() for seed, start in ((0, 0), (0, 2))]
    batches = [next(datasets[0]) for _ in range(4)]
    for expected in batches[2:]:
        for found, array in zip(next(datasets[1]), expected, strict=True):
            np.testing.assert_array_equal(found, array)
    epoch = sorted(int(first) for inputs, _, _ in batches[:2] for first in inputs[:, 0])
    assert epoch == sorted(TOKENIZER.encode("ABCDEFGHIJ"))
    parts = [next(prompted_training(tokens, 4, 6, 0, 0, 2, part).as_numpy_iterator())[0] for part in (0, 1)]
    whole = next(prompted_training(tokens, 4, 6, 0).as_numpy_iterator())[0]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_validation_takes_each_example_once():
    tokens = encode_prompted(TOKENIZER, examples(*((chr(65 + i), "x") for i in range(10))), window=4)
    batches = list(prompted_validation(tokens, 4, 4).as_numpy_iterator())
    assert [float(weights.sum()) for _, _, weights in batches] == [8, 8, 4]
    assert int(prompted_validation(tokens, 4, 4, num_batches=2).cardinality()) == 2
