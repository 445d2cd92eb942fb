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


@pytest.mark.parametrize("name", ["max_new_tokens", "top_k"])
def test_a_count_that_no_graph_can_take(name):
    assert getattr(GenerationSettings(**{name: 2**31 - 1}), name) == 2**31 - 1
    with pytest.raises(UserError, match=f"{name} is 2147483648, expected less than 2\\^31"):
        GenerationSettings(**{name: 2**31})


# === generation_config.json ===


@pytest.mark.parametrize(
    "config, settings",
    [
        ({}, {}),
        ({"transformers_version": "4.50.0", "max_length": 20, "pad_token_id": 0}, {}),
        ({"do_sample": False, "temperature": 0.7, "top_k": 40}, {"temperature": 0.0, "top_k": 40}),
        ({"temperature": 0.7}, {"temperature": 0.0}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": True, "temperature": None, "top_k": None}, {"temperature": 1.0}),
        ({"do_sample": True, "temperature": 0.7}, {"temperature": 0.7}),
        ({"do_sample": True, "temperature": 0}, {"temperature": 0}),
        ({"do_sample": None, "temperature": 0.7}, {"temperature": 0.0}),
        (
            {"do_sample": True, "top_k": 5, "top_p": 0.9, "repetition_penalty": 1.3, "max_new_tokens": 7, "seed": 3},
            {"temperature": 1.0, "top_k": 5, "top_p": 0.9, "repetition_penalty": 1.3, "max_new_tokens": 7, "seed": 3},
        ),
        ({"num_beams": 3, "length_penalty": 0.5}, {"num_beams": 3, "length_penalty": 0.5}),
        ({"eos_token_id": 5}, {"stop_token_ids": (5,)}),
        ({"eos_token_id": 0}, {"stop_token_ids": (0,)}),
        ({"eos_token_id": [5, 6]}, {"stop_token_ids": (5, 6)}),
        ({"eos_token_id": []}, {"stop_token_ids": ()}),
        ({"eos_token_id": None}, {"stop_token_ids": ()}),
    ],
    ids=str,
)
def test_from_hugging_face(config, settings):
    assert GenerationSettings.from_hugging_face(config) == GenerationSettings(**settings)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"do_sample": True, "temperature": -1}, "temperature is -1, expected a finite number from 0"),
        ({"top_p": 2}, "top_p is 2, expected above 0 and at most 1"),
        ({"top_k": "5"}, "top_k is '5', expected a number"),
        ({"max_new_tokens": True}, "max_new_tokens is True, expected a number"),
        ({"top_p": [0.5]}, "top_p is [0.5], expected a number"),
        ({"top_k": 5.5}, "top_k is 5.5, expected an integer"),
        ({"num_beams": 2.0}, "num_beams is 2.0, expected an integer"),
        ({"seed": 1.0}, "seed is 1.0, expected an integer"),
        ({"eos_token_id": "5"}, "eos_token_id is '5', expected a token id, a list of them, or null"),
        ({"eos_token_id": [5, 6.0]}, "eos_token_id is [5, 6.0], expected a token id, a list of them, or null"),
    ],
    ids=str,
)
def test_a_value_of_a_hugging_face_file_that_is_wrong(config, message):
    with pytest.raises(UserError) as error:
        GenerationSettings.from_hugging_face(config)
    assert str(error.value) == message
