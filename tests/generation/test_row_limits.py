"""Rows of a batch with limits and length penalties of their own: each gives what it gives alone."""

import numpy as np
import pytest

from tests.generation.test_translation import BOS, made, sources_of
from tfgpt.generation import translate_by_beam_search, translate_greedily, translate_token_ids
from tfgpt.translation_sources import pad_sources

pytestmark = pytest.mark.filterwarnings("ignore:You are using a softmax over axis")  # of a single key: right so

LIMITS = [1, 12, 3, 7, 9, 5]
PENALTIES = [1.0, 0.0, 2.0, 0.5, -1.0, 1.0]


@pytest.fixture(scope="module")
def model():
    return made(60, seed=1)


@pytest.fixture(scope="module")
def sources():
    return sources_of(len(LIMITS), seed=3)


@pytest.fixture(scope="module")
def end(model, sources):
    """A token that the model says early, so that some rows end before their limits."""
    return translate_token_ids(model, sources[1:2], BOS, -1, num_beams=1, max_new_tokens=12)[0][0][2]


def rows(outputs):
    pairs = zip(outputs["token_ids"].numpy(), outputs["num_new_tokens"].numpy(), strict=True)
    return [tokens[:length].tolist() for tokens, length in pairs]


@pytest.mark.parametrize("num_beams", [2, 5])
def test_beam_search(model, sources, end, num_beams):
    limits, penalties = np.array(LIMITS, np.int32), np.array(PENALTIES, np.float32)
    found = translate_by_beam_search(model, *pad_sources(sources), BOS, end, limits, num_beams, penalties)
    assert found["token_ids"].shape == (len(LIMITS), max(LIMITS))
    for row, (source, limit, penalty) in enumerate(zip(sources, LIMITS, PENALTIES, strict=True)):
        settings = {"num_beams": num_beams, "length_penalty": penalty, "max_new_tokens": limit}
        [(tokens, score)] = translate_token_ids(model, [source], BOS, end, **settings)
        assert rows(found)[row] == tokens
        assert len(tokens) <= limit
        np.testing.assert_allclose(found["score"][row], score, rtol=1e-5)
    assert {len(tokens) < limit for tokens, limit in zip(rows(found), LIMITS, strict=True)} == {True, False}


def test_greedy(model, sources, end):
    found = translate_greedily(model, *pad_sources(sources), BOS, end, np.array(LIMITS, np.int32))
    for row, (source, limit) in enumerate(zip(sources, LIMITS, strict=True)):
        [(tokens, _)] = translate_token_ids(model, [source], BOS, end, num_beams=1, max_new_tokens=limit)
        assert rows(found)[row] == tokens
        assert len(tokens) == limit or tokens[-1] == end
    assert len(rows(found)[1]) < LIMITS[1]
