import shutil

import numpy as np
import pytest

from tfgpt.errors import UserError
from tfgpt.runtime import RUNTIMES, open_runner
from tfgpt.runtime.runner import Runner, positions_from_mask
from tfgpt.text import CharacterTokenizer


@pytest.fixture(scope="module", params=RUNTIMES)
def runner(request, exported):
    return open_runner(exported.release, request.param)


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
    found = runner.cached_logits(token_ids, mask, prompt_length)
    assert_agree(found, exported.keras.logits(token_ids, mask), mask)


def test_a_step_may_take_several_tokens(runner, exported):
    token_ids, mask = ragged((15, 8), "left")
    positions = positions_from_mask(mask)
    cache, outputs = runner.empty_cache(2), []
    for start, end in [(0, 9), (9, 12), (12, 15)]:
        columns = slice(start, end)
        logits, cache = runner.step(token_ids[:, columns], mask[:, :end], positions[:, columns], cache)
        outputs.append(logits)
    assert_agree(np.concatenate(outputs, axis=1), exported.keras.logits(token_ids, mask), mask)
    assert [tensor.shape for tensor in cache] == [(2, 2, 15, 16)] * 4


def test_greedy_continuations_are_keras(runner, exported):
    """Ragged prompts, past the window of 32 several times."""
    prompts = [ragged((length,), "left", seed=length)[0][0].tolist() for length in (4, 1, 32, 50, 19)]
    expected = exported.keras.greedy(prompts, 90)
    assert all(len(set(tokens)) > 8 for tokens in expected)
    assert runner.greedy(prompts, 90) == expected
    assert [runner.greedy([prompt], 90)[0] for prompt in prompts] == expected
    stops = (expected[0][5], expected[2][40])
    stopped = runner.greedy(prompts, 90, stops)
    assert stopped == exported.keras.greedy(prompts, 90, stops)
    assert len({len(tokens) for tokens in stopped}) > 1


def test_texts_are_keras(runner, exported):
    tokenizer, prompts = exported.model.tokenizer, ["some words", "no one will ever read that again " * 4]
    expected = exported.model.generate(prompts, max_new_tokens=40)
    assert runner.continue_texts(tokenizer, prompts, 40) == expected
    stop = exported.model.generate([tokenizer.encode("some words")], max_new_tokens=9, return_prompt=False)[0][4]
    expected = exported.model.generate(prompts, max_new_tokens=40, stop_token_ids=(stop,))
    assert runner.continue_texts(tokenizer, prompts, 40, stop_token_ids=(stop,)) == expected
    assert expected != exported.model.generate(prompts, max_new_tokens=40)


def test_an_empty_text_is_continued_as_keras_does(runner, exported):
    expected = exported.model.generate(["", "some"], max_new_tokens=10)
    assert runner.continue_texts(exported.model.tokenizer, ["", "some"], 10) == expected
    without_end = CharacterTokenizer.train(["abc"])
    with pytest.raises(UserError, match="prompt 1 is empty, expected at least one token"):
        runner.continue_texts(without_end, ["a", ""], 10)


def test_what_a_runner_knows_of_its_model(runner):
    shape = (runner.window, runner.vocabulary_size, runner.num_layers, runner.num_heads, runner.head_dim)
    assert shape == (32, 280, 2, 2, 16)


# === Bad input ===


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
        with pytest.raises(UserError, match="config.json cannot be read as JSON, expected a release directory"):
            open_runner(release, runtime)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json cannot be read as JSON"):
        open_runner(tmp_path, runtime)


def test_a_runtime_without_a_step_says_so():
    config = {"n_positions": 4, "vocab_size": 5, "n_layer": 1, "n_head": 1, "n_embd": 2}
    with pytest.raises(NotImplementedError, match="Runner has no step"):
        Runner(config).greedy([[1]], 1)
