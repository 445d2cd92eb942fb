import itertools
import shutil

import numpy as np
import pytest

from tfgpt.errors import UserError
from tfgpt.generation import GenerationSettings, generate_token_ids
from tfgpt.runtime import RUNTIMES, open_runner
from tfgpt.runtime.runner import Runner, positions_from_mask
from tfgpt.text import CharacterTokenizer

RUNNERS = (("saved_model", "float32"), ("onnx", "portable"), ("onnx", "float32"))


@pytest.fixture(scope="module", params=RUNNERS, ids="-".join)
def runner(request, exported):
    runtime, variant = request.param
    return open_runner(exported.release, runtime, variant)


@pytest.fixture(scope="module")
def prompts():
    """Ragged ones, of which one is longer than the window of 32."""
    return [ragged((length,), "left", seed=length)[0][0].tolist() for length in (4, 1, 32, 50, 19)]


def ragged(lengths, side, width=None, seed=0):
    """A batch of random tokens padded on one side, with token 7 as padding, which must make no difference."""
    rng = np.random.default_rng(seed)
    width = width or max(lengths)
    token_ids, mask = np.full((len(lengths), width), 7), np.zeros((len(lengths), width), int)
    for row, length in enumerate(lengths):
        columns = slice(width - length, width) if side == "left" else slice(0, length)
        token_ids[row, columns] = rng.integers(0, 280, length)
        mask[row, columns] = 1
    return token_ids, mask


def assert_agree(found, expected, mask):
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    real = mask.astype(bool)
    assert np.abs(expected[real]).max() > 1  # logits of a model that says something
    np.testing.assert_allclose(found[real], expected[real], atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("lengths", [(1,), (32,), (5, 32, 1, 17), (3, 3)])
def test_logits_of_ragged_batches_are_keras(runner, exported, lengths, side):
    token_ids, mask = ragged(lengths, side)
    found = runner.logits(token_ids, mask)
    assert_agree(found, exported.keras.logits(token_ids, mask), mask)
    for row, length in enumerate(lengths):
        alone = token_ids[row : row + 1, mask[row].astype(bool)]
        expected = exported.keras.logits(alone, np.ones_like(alone))
        np.testing.assert_allclose(found[row, mask[row].astype(bool)], expected[0], atol=1e-4, rtol=0)
        assert expected.shape == (1, length, 280)


@pytest.mark.parametrize("lengths, prompt_length", [((20, 9, 32), 16), ((32, 30), 1), ((6, 1), 6), ((12,), 11)])
def test_logits_by_way_of_the_cache_are_keras_in_one_pass(runner, exported, lengths, prompt_length):
    token_ids, mask = ragged(lengths, "left")
    if runner.name == "onnx/float32" and min(lengths) <= max(lengths) - prompt_length:
        with pytest.raises(UserError, match=f"no real token among the first {prompt_length}, expected one at least"):
            runner.cached_logits(token_ids, mask, prompt_length)
        return
    found = runner.cached_logits(token_ids, mask, prompt_length)
    assert_agree(found, exported.keras.logits(token_ids, mask), mask)


def test_a_step_may_take_several_tokens(runner, exported):
    if runner.name == "onnx/float32":
        pytest.skip("its cache is one buffer: see test_onnx_runtime.py")
    token_ids, mask = ragged((15, 8), "left")
    positions = positions_from_mask(mask)
    cache, outputs = runner.empty_cache(2), []
    for start, end in [(0, 9), (9, 12), (12, 15)]:
        columns = slice(start, end)
        logits, cache = runner.step(token_ids[:, columns], mask[:, :end], positions[:, columns], cache)
        outputs.append(logits)
    assert_agree(np.concatenate(outputs, axis=1), exported.keras.logits(token_ids, mask), mask)
    assert [tensor.shape for tensor in cache] == [(2, 2, 15, 16)] * 4


def test_greedy_continuations_are_keras(runner, exported, prompts):
    """Past the window several times."""
    expected = exported.keras.greedy(prompts, 90)
    assert all(len(set(tokens)) > 8 for tokens in expected)
    assert runner.greedy(prompts, 90) == expected
    assert [runner.greedy([prompt], 90)[0] for prompt in prompts] == expected
    stops = (expected[0][5], expected[2][40])
    stopped = runner.greedy(prompts, 90, stops)
    assert stopped == exported.keras.greedy(prompts, 90, stops)
    assert len({len(tokens) for tokens in stopped}) > 1


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 12, "seed": 5},
        {"temperature": 1.3, "top_p": 0.8, "seed": 2**40},
        {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.3, "seed": (3, -1, 7, 2**41, 0)},
        {"repetition_penalty": 1.4},
        {"temperature": 1.0, "seed": 9, "stop_token_ids": tuple(range(40, 60))},
    ],
    ids=str,
)
def test_continuations_under_a_seed_are_keras(runner, exported, prompts, settings):
    settings = GenerationSettings(max_new_tokens=60, **settings)
    found = runner.generate(prompts, settings)
    assert found == generate_token_ids(exported.model, prompts, settings)
    assert found != exported.keras.greedy(prompts, 60)
    if settings.stop_token_ids:
        assert len({len(tokens) for tokens in found}) > 1


def test_a_row_is_in_a_batch_what_it_is_alone(runner, prompts):
    settings = {"max_new_tokens": 50, "temperature": 1.0, "repetition_penalty": 1.2}
    together = runner.generate(prompts, GenerationSettings(**settings, seed=11))
    alone = [
        runner.generate([prompt], GenerationSettings(**settings, seed=11 + row))[0]
        for row, prompt in enumerate(prompts)
    ]
    assert together == alone
    assert runner.generate(prompts[::-1], GenerationSettings(**settings, seed=(15, 14, 13, 12, 11))) == together[::-1]


@pytest.mark.parametrize("num_beams", [2, 3, 5])
@pytest.mark.parametrize("length_penalty, stops", [(1.0, ()), (0.4, tuple(range(100, 130))), (2.0, (7, 250))])
def test_beam_searches_are_keras(runner, exported, num_beams, length_penalty, stops):
    prompts = [ragged((length,), "left", seed=length)[0][0].tolist() for length in (6, 1, 17)]
    settings = GenerationSettings(
        max_new_tokens=15, num_beams=num_beams, length_penalty=length_penalty, stop_token_ids=stops
    )
    expected = generate_token_ids(exported.model, prompts, settings)
    assert runner.generate(prompts, settings) == expected
    assert [runner.generate([prompt], settings)[0] for prompt in prompts] == expected
    assert expected != exported.keras.greedy(prompts, 15, stops)


def test_texts_are_keras(runner, exported):
    tokenizer, prompts = exported.model.tokenizer, ["some words", "no one will ever read that again " * 4]
    settings = {"max_new_tokens": 40}
    expected = exported.model.generate(prompts, **settings)
    assert runner.continue_texts(tokenizer, prompts, GenerationSettings(**settings)) == expected
    stop = exported.model.generate([tokenizer.encode("some words")], max_new_tokens=9, return_prompt=False)[0][4]
    settings["stop_token_ids"] = (stop,)
    stopped = exported.model.generate(prompts, **settings)
    assert runner.continue_texts(tokenizer, prompts, GenerationSettings(**settings)) == stopped != expected
    settings |= {"temperature": 1.2, "top_k": 30, "seed": 4}
    sampled = exported.model.generate(prompts, **settings)
    assert runner.continue_texts(tokenizer, prompts, GenerationSettings(**settings)) == sampled != stopped


def test_a_text_ends_at_the_tokenizers_end_of_text(runner, exported):
    """Unless the settings name other tokens, or none."""

    class Ending:
        end_token_id = exported.keras.greedy([exported.model.tokenizer.encode("some words")], 9)[0][6]
        encode, decode = exported.model.tokenizer.encode, exported.model.tokenizer.decode

    prompt = Ending.encode("some words")
    whole = exported.keras.greedy([prompt], 20)[0]
    ended = Ending.decode(whole[: whole.index(Ending.end_token_id)])
    [found] = runner.continue_texts(Ending, ["some words"], GenerationSettings(max_new_tokens=20))
    assert found == "some words" + ended
    pieces = list(runner.stream_text(Ending, "some words", GenerationSettings(max_new_tokens=20)))
    assert "".join(pieces) == ended
    none = GenerationSettings(max_new_tokens=20, stop_token_ids=())
    assert runner.continue_texts(Ending, ["some words"], none) == ["some words" + Ending.decode(whole)]


def test_an_empty_text_is_continued_as_keras_does(runner, exported):
    expected = exported.model.generate(["", "some"], max_new_tokens=10)
    settings = GenerationSettings(max_new_tokens=10)
    assert runner.continue_texts(exported.model.tokenizer, ["", "some"], settings) == expected
    assert "".join(runner.stream_text(exported.model.tokenizer, "", settings)) == expected[0]
    without_end = CharacterTokenizer.train(["abc"])
    with pytest.raises(UserError, match="prompt 1 is empty, expected at least one token"):
        runner.continue_texts(without_end, ["a", ""], settings)


def test_what_a_runner_knows_of_its_model(runner):
    shape = (runner.window, runner.vocabulary_size, runner.num_layers, runner.num_heads, runner.head_dim)
    assert shape == (32, 280, 2, 2, 16)


# === Streams ===


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 1.0, "seed": 6},
        {"temperature": 1.4, "top_k": 50, "repetition_penalty": 1.3, "seed": (2**33,)},
        {"temperature": 1.0, "seed": 1, "stop_token_ids": tuple(range(0, 280, 40))},
    ],
    ids=str,
)
@pytest.mark.parametrize("row", [0, 3])
def test_a_stream_gives_the_same_tokens(runner, prompts, settings, row):
    """From a short prompt and from one longer than the window, past the window several times."""
    settings = GenerationSettings(max_new_tokens=80, **settings)
    [expected] = runner.generate([prompts[row]], settings)
    assert list(itertools.islice(runner.stream(prompts[row], settings), 100)) == expected
    assert (len(expected) < 80) == bool(settings.stop_token_ids)


def test_a_stream_gives_the_same_text(runner, exported):
    """Of a model that writes bytes at random, of which few are whole characters."""
    settings = GenerationSettings(max_new_tokens=80, temperature=1.0, seed=3)
    [expected] = runner.continue_texts(exported.model.tokenizer, ["some words"], settings)
    pieces = list(runner.stream_text(exported.model.tokenizer, "some words", settings))
    assert "some words" + "".join(pieces) == expected
    assert "\N{REPLACEMENT CHARACTER}" in expected
    assert all(pieces) and len(pieces) > 20


class Scripted(Runner):
    """A model that says one text, whatever it is given."""

    name = "scripted"

    def __init__(self, token_ids):
        super().__init__({"n_positions": 8, "vocab_size": 300, "n_layer": 1, "n_head": 1, "n_embd": 2})
        self.token_ids, self.place = list(token_ids), 0

    def step(self, token_ids, padding_mask, position_ids, cache):
        logits = np.zeros((*token_ids.shape, 300), np.float32)
        logits[:, -1, self.token_ids[self.place]] = 1
        self.place += 1
        return logits, cache


TEXT = "naïve 日本語 👍🏽 ∑ end"


def test_a_stream_of_text_gives_whole_characters(exported):
    tokenizer = exported.model.tokenizer
    token_ids = tokenizer.encode(TEXT)
    assert len(token_ids) > len(TEXT)  # characters of several tokens, of which no single one is text
    settings = GenerationSettings(max_new_tokens=len(token_ids))
    pieces = list(Scripted(token_ids).stream_text(tokenizer, "some", settings))
    assert "".join(pieces) == TEXT
    assert {"ï", "日", "👍", "🏽", "∑"} <= set(pieces)


def test_what_is_left_of_a_character_comes_last(exported):
    tokenizer = exported.model.tokenizer
    token_ids = tokenizer.encode("a 日")
    settings = GenerationSettings(max_new_tokens=len(token_ids) - 1)
    pieces = list(Scripted(token_ids).stream_text(tokenizer, "some", settings))
    assert "".join(pieces) == tokenizer.decode(token_ids[:-1])
    assert pieces[-1].strip("\N{REPLACEMENT CHARACTER}") == ""


def test_a_token_is_there_before_the_next_is_computed():
    runner = Scripted([5, 6, 7, 8, 9, 10, 11, 12, 13, 14])
    stream = runner.stream([1, 2], GenerationSettings(max_new_tokens=9))
    for number, token in enumerate(itertools.islice(stream, 9)):
        assert token == 5 + number
        assert runner.place == number + 1


# === Bad input ===


def test_prompts_that_no_model_can_read(runner):
    settings = GenerationSettings(max_new_tokens=4)
    for prompts, message in (
        ([[1], []], "prompt 1 is empty, expected at least one token"),
        ([[1, 280]], "prompt 0 has token id 280, expected 0 to 279"),
        ([[1], [2, -1]], "prompt 1 has token id -1, expected 0 to 279"),
    ):
        with pytest.raises(UserError, match=message):
            runner.generate(prompts, settings)
        with pytest.raises(UserError, match=message.replace("prompt 1", "prompt 0")):
            list(runner.stream(prompts[-1], settings))
    assert runner.generate([], settings) == []


def test_beam_search_stays_within_the_window(runner):
    settings = GenerationSettings(max_new_tokens=10, num_beams=2)
    with pytest.raises(UserError, match="expected max_new_tokens of at most 9 after the longest prompt, found 10"):
        runner.generate([[1] * 24, [1]], settings)
    assert len(runner.generate([[1] * 23, [1]], settings)[0]) == 10
    with pytest.raises(UserError, match="a prompt has 33 tokens, expected at most the window's 32 for beam search"):
        runner.generate([[1] * 33], settings)
    with pytest.raises(UserError, match="num_beams is 2, expected 1: beam search cannot stream"):
        list(runner.stream([1], settings))


def test_seeds_are_one_a_prompt(runner):
    with pytest.raises(UserError, match="seed has 2 values for 1 prompts, expected one each"):
        runner.generate([[1]], GenerationSettings(temperature=1.0, seed=(1, 2)))


def test_batches_that_no_model_can_read(runner):
    for token_ids, message in (
        (np.ones((1, 33), int), "the sequence has 33 tokens, expected at most the window's 32"),
        (np.array([[1, 280]]), "token id 280 is outside the vocabulary, expected 0 to 279"),
        (np.array([[1, -3]]), "token id -3 is outside the vocabulary, expected 0 to 279"),
    ):
        with pytest.raises(UserError, match=message):
            runner.logits(token_ids, np.ones_like(token_ids))
        with pytest.raises(UserError, match=message):
            runner.cached_logits(token_ids, np.ones_like(token_ids), 1)


def test_an_unknown_runtime(exported):
    with pytest.raises(UserError, match="unknown runtime 'tflite', expected one of saved_model, onnx"):
        open_runner(exported.release, "tflite")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_release_without_the_format(exported, tmp_path, runtime):
    release = shutil.copytree(exported.release, tmp_path / "release", ignore=shutil.ignore_patterns(runtime))
    with pytest.raises(
        UserError, match=f"{release}/{runtime}.*, expected a release exported with the format {runtime}"
    ):
        open_runner(release, runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_directory_that_is_no_release(tmp_path, runtime):
    for release in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="config.json does not exist, expected a release directory"):
            open_runner(release, runtime)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json cannot be read as JSON"):
        open_runner(tmp_path, runtime)


def test_a_runtime_without_a_step_says_so():
    config = {"n_positions": 4, "vocab_size": 5, "n_layer": 1, "n_head": 1, "n_embd": 2}
    with pytest.raises(NotImplementedError, match="Runner has no step"):
        Runner(config).greedy([[1]], 1)
