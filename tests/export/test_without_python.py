import json
import pathlib
import subprocess
import sys

import pytest

from tests.export import tensorflow_c_api
from tests.export.served_model import DEFAULTS, text_of_tokens

INVALID_ARGUMENT = 3  # TF_Code
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def prompts(bpe_model, texts):
    """Short ones and ones that do not fit into a TF_TString's own 24 bytes; of ASCII and not."""
    pieces = [text_of_tokens(texts, 3000 * (i + 1), 8 * i + 1, bpe_model.tokenizer) for i in range(6)]
    prompts = ["a", "é", "", "x" * 22, "y" * 23, "na\u00efve \u6f22\u5b57 \U0001f980", "<|endoftext|>b", *pieces]
    assert any(len(prompt.encode()) > 40 for prompt in prompts)
    return prompts


@pytest.fixture(scope="module")
def answers(served, prompts):
    """Of a ragged batch, of a bad request, and of each prompt alone."""
    requests = [{"text": prompts}, {"text": ["a"], "temperature": [-1.0]}, *({"text": [prompt]} for prompt in prompts)]
    for request in requests:
        for name, value in {**DEFAULTS, "max_new_tokens": NEW_TOKENS}.items():
            request.setdefault(name, [value] * len(request["text"]))
    script = pathlib.Path(tensorflow_c_api.__file__)
    process = subprocess.run(
        [sys.executable, "-I", str(script), str(served.path), "generate_text"],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_text_is_that_of_keras(answers, prompts, bpe_model):
    expected = bpe_model.generate(prompts, max_new_tokens=NEW_TOKENS)
    assert len(set(expected)) == len(prompts)
    together, _, *alone = (answer.get("outputs") for answer in answers)
    assert [bytes.fromhex(text).decode() for text in together["text"]] == expected
    assert [bytes.fromhex(outputs["text"][0]).decode() for outputs in alone] == expected


def test_all_outputs_are_there(answers, prompts, bpe_model):
    outputs = answers[0]["outputs"]
    encoded = [bpe_model.tokenizer.encode(prompt) or [bpe_model.tokenizer.end_token_id] for prompt in prompts]
    assert outputs["num_prompt_tokens"] == [len(token_ids) for token_ids in encoded]
    expected = bpe_model.generate(
        encoded,
        max_new_tokens=NEW_TOKENS,
        return_prompt=False,
        stop_token_ids=(bpe_model.tokenizer.end_token_id,),
    )
    assert outputs["num_new_tokens"] == [len(token_ids) for token_ids in expected]
    longest = max(map(len, expected))
    assert outputs["token_ids"] == [token_ids + [0] * (longest - len(token_ids)) for token_ids in expected]
    assert {bytes.fromhex(reason).decode() for reason in outputs["finish_reason"]} <= {"stop", "length"}


def test_an_error_ends_the_request_and_not_the_session(answers):
    assert answers[1]["code"] == INVALID_ARGUMENT
    assert "temperature of row 0 is -1, expected a finite number from 0" in answers[1]["message"]
    assert all("outputs" in answer for answer in answers[2:])
