import shutil

import numpy as np
import pytest

from tfgpt.errors import UserError
from tfgpt.export.saved_model import export_saved_model
from tfgpt.models import GPT2CausalLM
from tfgpt.runtime.saved_model import SavedModelRunner

PROMPTS = [[5, 6, 7], [250], [9, 8, 7, 6, 5, 4]]


@pytest.fixture(scope="module")
def runner(exported):
    return SavedModelRunner(exported.release)


@pytest.fixture
def release(exported, tmp_path):
    return shutil.copytree(exported.release, tmp_path / "release", ignore=shutil.ignore_patterns("onnx"))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 1.0},
        {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.3},
    ],
)
def test_the_generate_signature_draws_what_keras_draws(runner, exported, settings):
    expected = exported.model.generate(
        PROMPTS, max_new_tokens=20, seed=(3, 2**40, 5), return_prompt=False, stop_token_ids=(), **settings
    )
    assert runner.generate(PROMPTS, 20, seed=[3, 2**40, 5], **settings) == expected
    # The stream goes on where `first_index` says.
    contexts = [prompt + new[:8] for prompt, new in zip(PROMPTS, expected, strict=True)]
    if "repetition_penalty" not in settings:
        found = runner.generate(contexts, 12, seed=[3, 2**40, 5], first_index=[8] * 3, **settings)
        assert found == [new[8:] for new in expected]


def test_stop_tokens_are_a_rows_own(runner):
    whole = runner.generate(PROMPTS, 12)
    stops = [[whole[0][3]], [-1], [whole[2][6]]]
    found = runner.generate(PROMPTS, 12, stop_token_ids=stops)
    first, third = (whole[i][: whole[i].index(stops[i][0]) + 1] for i in (0, 2))
    assert found == [first, whole[1], third]
    assert len(first) < 12


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
