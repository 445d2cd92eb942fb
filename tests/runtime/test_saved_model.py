import shutil

import numpy as np
import pytest
import tensorflow as tf

from tfgpt.context_window import pad_left
from tfgpt.errors import UserError
from tfgpt.export.saved_model import export_saved_model
from tfgpt.generation import GenerationSettings
from tfgpt.models import GPT2CausalLM
from tfgpt.runtime.saved_model import SavedModelRunner

PROMPTS = [[5, 6, 7], [250], [9, 8, 7, 6, 5, 4]]


@pytest.fixture(scope="module")
def runner(exported):
    return SavedModelRunner(exported.release)


@pytest.fixture
def release(exported, tmp_path):
    return shutil.copytree(exported.release, tmp_path / "release", ignore=shutil.ignore_patterns("onnx"))


def call_continue(runner, prompts, max_new_tokens, **rows):
    """Calls the signature that the runner calls, with one value of each setting a row."""
    token_ids, padding_mask = pad_left(prompts)
    defaults = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "seed": 0, "first_index": 0}
    settings = {"max_new_tokens": max_new_tokens, "stop_token_ids": [[]] * len(prompts), **defaults, **rows}
    _, specifications = runner.signatures["continue_tokens"].structured_input_signature
    outputs = runner.signatures["continue_tokens"](
        token_ids=tf.constant(token_ids),
        padding_mask=tf.constant(padding_mask),
        **{
            name: tf.constant(value if isinstance(value, list) else [value] * len(prompts), specifications[name].dtype)
            for name, value in settings.items()
        },
    )
    lengths = outputs["num_new_tokens"].numpy()
    return [tokens[:length].tolist() for tokens, length in zip(outputs["token_ids"].numpy(), lengths, strict=True)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 1.0},
        {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.3},
    ],
)
def test_the_signature_draws_what_keras_draws(runner, exported, settings):
    seeds = [3, 2**40, 5]
    expected = exported.model.generate(
        PROMPTS, max_new_tokens=20, seed=tuple(seeds), return_prompt=False, stop_token_ids=(), **settings
    )
    assert call_continue(runner, PROMPTS, 20, seed=seeds, **settings) == expected
    # The stream goes on where `first_index` says.
    contexts = [prompt + new[:8] for prompt, new in zip(PROMPTS, expected, strict=True)]
    if "repetition_penalty" not in settings:
        found = call_continue(runner, contexts, 12, seed=seeds, first_index=8, **settings)
        assert found == [new[8:] for new in expected]


def test_settings_are_a_rows_own(runner):
    """Greedy, sampled and of another length, in one call."""
    rows = {"temperature": [0.0, 1.0, 1.3], "top_k": [0, 5, 0], "max_new_tokens": [12, 7, 9], "seed": [1, 2, 3]}
    found = call_continue(runner, PROMPTS, **rows)
    assert [len(tokens) for tokens in found] == [12, 7, 9]
    for row, prompt in enumerate(PROMPTS):
        assert call_continue(runner, [prompt], **{name: [values[row]] for name, values in rows.items()}) == [found[row]]


def test_stop_tokens_are_a_rows_own(runner):
    whole = call_continue(runner, PROMPTS, 12)
    stops = [[whole[0][3]], [-1], [whole[2][6]]]
    found = call_continue(runner, PROMPTS, 12, stop_token_ids=stops)
    first, third = (whole[i][: whole[i].index(stops[i][0]) + 1] for i in (0, 2))
    assert found == [first, whole[1], third]
    assert len(first) < 12


def test_generation_runs_inside_tensorflow(runner, monkeypatch):
    """One call of the signature for every segment of a text, and not one a token."""
    calls, signatures = [], dict(runner.signatures)

    def continue_tokens(**inputs):
        calls.append(inputs["token_ids"].shape.as_list())
        return signatures["continue_tokens"](**inputs)

    monkeypatch.setattr(runner, "signatures", {"continue_tokens": continue_tokens})
    [new] = runner.generate([[1, 2, 3]], GenerationSettings(max_new_tokens=40, temperature=1.0))
    assert len(new) == 40
    assert calls == [[1, 3], [1, 16]]  # up to the window of 32, and on from the last half of it


def test_logits_of_padding_anywhere(runner, exported):
    """The signature takes no mask: the runner moves padding behind the tokens, and the logits back."""
    rng = np.random.default_rng(0)
    token_ids = rng.integers(0, 280, (3, 8))
    mask = np.array([[0, 0, 0, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 1, 0, 1, 0]])
    found = runner.logits(token_ids, mask)
    for row in range(3):
        tokens = token_ids[row, mask[row] == 1]
        np.testing.assert_allclose(found[row, mask[row] == 1], exported.model(tokens[None])[0], atol=1e-4)


def test_the_newest_version_is_run(release, exported):
    """By number, not by name: 10 comes after 9."""
    model = GPT2CausalLM.from_preset(exported.directory)
    model.backbone.final_norm.beta.assign_add(np.ones(32))
    export_saved_model(model, release / "saved_model" / "served" / "10")
    shutil.copytree(release / "saved_model" / "served" / "1", release / "saved_model" / "served" / "9")
    (release / "saved_model" / "served" / "assets").mkdir()
    runner = SavedModelRunner(release)
    assert runner.path.name == "10"
    token_ids = np.array([[1, 2, 3]])
    np.testing.assert_allclose(runner.logits(token_ids, np.ones_like(token_ids)), model(token_ids), atol=1e-4)


@pytest.mark.parametrize(
    "file", ["saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"]
)
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_saved_model_that_is_not_whole(release, file, damage):
    path = release / "saved_model" / "served" / "1" / file
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="/saved_model/served/1 cannot be loaded by TensorFlow: ") as error:
        SavedModelRunner(release)
    assert "\n" not in str(error.value)
