import math

import keras
import pytest

from tfgpt.training.schedules import WarmupDecay

STEPS = (0, 1, 50, 99, 100, 101, 700, 1599, 1600, 1800, 1999, 2000, 5000)


def cosine(step):
    return 1e-4 + 0.5 * (1 + math.cos(math.pi * (step - 100) / 1900)) * 9e-4


def linear(step):
    return 1e-3 - 9e-4 * (step - 100) / 1900


def constant(step):
    return 1e-3


def wsd(step):  # the last fifth of 2000 steps
    return 1e-3 if step < 1600 else 1e-3 - 9e-4 * (step - 1600) / 400


def inverse_sqrt(step):
    return max(1e-3 * math.sqrt(100 / step), 1e-4)


@pytest.mark.parametrize("formula", [cosine, linear, constant, wsd, inverse_sqrt])
def test_schedules_are_a_warmup_and_their_formula(formula):
    schedule = WarmupDecay(1e-3, 1e-4, warmup_steps=100, steps=2000, name=formula.__name__)
    for step in STEPS:
        last = step if formula is inverse_sqrt else 2000  # which knows of no end
        expected = 1e-3 * step / 100 if step < 100 else formula(min(step, last))
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "wsd"])
def test_without_warmup_it_begins_at_the_top(name):
    schedule = WarmupDecay(1e-2, 0.0, warmup_steps=0, steps=10, name=name)
    assert float(schedule(0)) == pytest.approx(1e-2)
    assert float(schedule(10)) == pytest.approx(1e-2 if name == "constant" else 0.0, abs=1e-9)


def test_inverse_sqrt_is_the_papers():
    """Vaswani et al. 2017, section 5.3, with D 512 and 4000 steps of warm-up; it goes on past the run's steps."""
    schedule = WarmupDecay((512 * 4000) ** -0.5, 0.0, warmup_steps=4000, steps=10_000, name="inverse_sqrt")
    for step in (1, 100, 3999, 4000, 4001, 20_000, 100_000):
        expected = 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5)
    unwarmed = WarmupDecay(1.0, 0.0, warmup_steps=0, steps=10, name="inverse_sqrt")
    assert [float(unwarmed(step)) for step in (0, 1, 4)] == pytest.approx([1.0, 1.0, 0.5])


def test_cosine_is_keras():
    keras_own = keras.optimizers.schedules.CosineDecay(
        0.0, decay_steps=1900, alpha=0.1, warmup_target=1e-3, warmup_steps=100
    )
    schedule = WarmupDecay(1e-3, 1e-4, warmup_steps=100, steps=2000)
    for step in STEPS:
        assert float(schedule(step)) == pytest.approx(float(keras_own(step)), rel=1e-5, abs=1e-9)


def test_a_decay_that_would_begin_in_the_warmup_begins_after_it():
    schedule = WarmupDecay(1.0, 0.0, warmup_steps=60, steps=100, name="wsd", decay_fraction=0.8)
    assert [float(schedule(step)) for step in (30, 60, 80, 100)] == pytest.approx([0.5, 1.0, 0.5, 0.0])


def test_it_is_saved_with_its_settings():
    schedule = WarmupDecay(1e-3, 1e-4, 10, 100, name="wsd", decay_fraction=0.3)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert again.get_config() == schedule.get_config()
