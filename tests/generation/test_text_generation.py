import pytest

from tfgpt.errors import UserError
from tfgpt.generation import GenerationSettings, generate, generate_token_ids


def test_a_string_gives_a_string_and_a_list_a_list(text_model):
    tokenizer = text_model.tokenizer
    tokens = generate_token_ids(text_model, [tokenizer.encode("some words")], GenerationSettings(max_new_tokens=12))[0]
    assert tokenizer.end_token_id not in tokens
    expected = "some words" + tokenizer.decode(tokens)
    assert text_model.generate("some words", max_new_tokens=12) == expected
    assert text_model.generate(["some words"], max_new_tokens=12) == [expected]
    assert text_model.generate("some words", max_new_tokens=12, return_prompt=False) == tokenizer.decode(tokens)


def test_texts_of_a_batch_are_those_of_each_alone(text_model):
    texts = ["some", "words to merge again and again " * 5, "a"]
    together = text_model.generate(texts, max_new_tokens=50)
    assert together == [text_model.generate(text, max_new_tokens=50) for text in texts]
    assert all(result.startswith(text) for text, result in zip(texts, together, strict=True))


def test_token_ids_in_token_ids_out(model):
    with_prompt = generate(model, [[1, 2], [3]], max_new_tokens=4)
    without = generate(model, [[1, 2], [3]], max_new_tokens=4, return_prompt=False)
    assert with_prompt == [[1, 2] + without[0], [3] + without[1]]
    assert [len(tokens) for tokens in without] == [4, 4]
    assert generate(model, [], max_new_tokens=4) == []


def test_a_stop_token_ends_the_text_and_is_not_in_it(text_model):
    tokenizer = text_model.tokenizer
    tokens = text_model.generate([tokenizer.encode("some words")], max_new_tokens=12, return_prompt=False)[0]
    stop = tokens[6]
    expected = "some words" + tokenizer.decode(tokens[: tokens.index(stop)])
    assert text_model.generate("some words", max_new_tokens=12, stop_token_ids=(stop,)) == expected


def test_the_end_of_text_stops_by_default(text_model):
    """Of the texts sampled under many seeds some hold the end of text, unless it ends them."""
    end, prompts = text_model.tokenizer.end_token_id, [[5]] * 64
    settings = {"max_new_tokens": 30, "temperature": 3.0, "return_prompt": False}
    stopped = text_model.generate(prompts, **settings)
    free = text_model.generate(prompts, stop_token_ids=(), **settings)
    assert any(end in tokens[:-1] for tokens in free)
    assert stopped == [tokens[: tokens.index(end) + 1] if end in tokens else tokens for tokens in free]


def test_an_empty_text_begins_at_the_end_of_text(text_model):
    tokens = text_model.generate([[text_model.tokenizer.end_token_id]], max_new_tokens=8, return_prompt=False)[0]
    assert text_model.tokenizer.end_token_id not in tokens
    assert text_model.generate("", max_new_tokens=8) == text_model.tokenizer.decode(tokens)


@pytest.mark.parametrize(
    "prompts, settings, message",
    [
        ([[1], []], {}, "prompt 1 is empty, expected at least one token"),
        ([[1], [2, 300]], {}, "prompt 1 has token id 300, expected ids from 0 to 299"),
        ([[4, -1]], {}, "prompt 0 has token id -1, expected ids from 0 to 299"),
        ([[1]], {"temperature": -1}, "temperature is -1, expected a finite number from 0"),
        ([[1], [2]], {"temperature": 1.0, "seed": (1,)}, "seed has 1 values for 2 prompts, expected one each"),
        (["text"], {}, "the model has no tokenizer, expected prompts of token ids or a tokenizer"),
        ("text", {}, "the model has no tokenizer, expected prompts of token ids or a tokenizer"),
        ([[1] * 40], {"num_beams": 2}, "a prompt has 40 tokens, expected at most the window's 32 for beam search"),
    ],
)
def test_bad_input_is_one_sentence(model, prompts, settings, message):
    with pytest.raises(UserError) as error:
        generate(model, prompts, **settings)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_an_unknown_setting_is_an_error(model):
    with pytest.raises(TypeError, match="temprature"):
        generate(model, [[1]], temprature=1.0)
