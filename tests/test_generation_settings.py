import math

import pytest

from tfgpt.errors import UserError
from tfgpt.generation_settings import GenerationSettings


@pytest.mark.parametrize(
    "name, values, message",
    [
        ("max_new_tokens", (0, -3), "max_new_tokens is {}, expected at least 1"),
        ("temperature", (-0.5, math.inf, math.nan), "temperature is {}, expected a finite number from 0"),
        ("top_k", (-1,), "top_k is {}, expected 0 (all tokens) or more"),
        ("top_p", (0, -1, 1.01, math.nan), "top_p is {}, expected above 0 and at most 1"),
        (
            "repetition_penalty",
            (0, -1, math.inf, math.nan),
            "repetition_penalty is {}, expected a finite number above 0",
        ),
        ("num_beams", (0, -2), "num_beams is {}, expected at least 1"),
        ("length_penalty", (math.inf, math.nan), "length_penalty is {}, expected a finite number"),
    ],
)
def test_a_setting_out_of_range(name, values, message):
    for value in values:
        with pytest.raises(UserError) as error:
            GenerationSettings(**{name: value})
        assert str(error.value) == message.format(value)


@pytest.mark.parametrize("settings", [{"temperature": 0.7}, {"repetition_penalty": 1.2}])
def test_beam_search_with_sampling_is_refused(settings):
    with pytest.raises(UserError, match="beam search takes no temperature and no repetition_penalty"):
        GenerationSettings(num_beams=2, **settings)


def test_the_edges_of_the_ranges_are_inside():
    GenerationSettings(max_new_tokens=1, temperature=0, top_k=0, top_p=1, repetition_penalty=0.01, num_beams=1)
    GenerationSettings(num_beams=3, length_penalty=-1.5)


def test_row_i_has_the_seed_plus_i_or_its_own():
    assert GenerationSettings(seed=5).row_seeds(3) == [5, 6, 7]
    assert GenerationSettings(seed=(9, 2, 9)).row_seeds(3) == [9, 2, 9]
    with pytest.raises(UserError, match="seed has 2 values for 3 prompts, expected one each"):
        GenerationSettings(seed=(1, 2)).row_seeds(3)


@pytest.mark.parametrize("seed", [-(2**62), 2**62, (0, 2**64)])
def test_a_seed_out_of_range(seed):
    with pytest.raises(UserError, match="seed is .*, expected less than 2\\^62"):
        GenerationSettings(seed=seed)
