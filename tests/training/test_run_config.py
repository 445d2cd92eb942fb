import pytest

from tfgpt.errors import UserError
from tfgpt.training.run_config import RunConfig


def config(**fields):
    return RunConfig(data=["x"], out="y", **fields)


def test_intervals_divide_each_other():
    run = config(steps=2000)
    assert run.evaluate_every == 200
    assert run.steps % run.evaluate_every == run.evaluate_every % run.log_every == 0
    assert run.log_every % run.steps_per_execution == 0


@pytest.mark.parametrize("steps", [1, 7, 97, 1000, 1024])
def test_any_number_of_steps_has_intervals(steps):
    run = config(steps=steps, warmup_steps=0)
    assert run.steps % run.evaluate_every == run.evaluate_every % run.log_every == 0


def test_one_path_is_a_list_of_one():
    assert RunConfig(data="a.txt", out="y").data == ["a.txt"]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"steps": 0}, "steps is 0, expected at least 1"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0, expected above 0"),
        ({"beta_2": 1.0}, "beta_2 is 1.0, expected from 0 to below 1"),
        ({"dropout": 1.5}, "dropout is 1.5"),
        (
            {"precision": "float8"},
            "precision is 'float8', expected one of auto, float32, bfloat16_products, mixed_bfloat16",
        ),
        (
            {"precision": "bfloat16_products", "compile": "kernels"},
            "precision is 'bfloat16_products', expected compile 'step' with it, not 'kernels'",
        ),
        ({"steps": 100, "evaluate_every": 30}, "evaluate_every is 30, expected a divisor of 100"),
        ({"steps": 100, "evaluate_every": 50, "log_every": 20}, "log_every is 20, expected a divisor of 50"),
        ({"steps": 10, "warmup_steps": 11}, "warmup_steps is 11, expected at most the 10 steps"),
        ({"validation_fraction": 0.0}, "validation_fraction is 0.0"),
        ({"optimizer": "adam"}, "optimizer is 'adam', expected one of adamw, adafactor, lion, muon"),
        ({"schedule": "step"}, "schedule is 'step', expected one of cosine, linear, constant, wsd"),
        ({"decay_fraction": 0.0}, "decay_fraction is 0.0, expected above 0 and at most 1"),
        ({"batch_size": 8, "accumulate_steps": 3}, "accumulate_steps is 3, expected a divisor of the batch_size 8"),
        ({"accumulate_steps": 0}, "accumulate_steps is 0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0, expected from 0 to below 1"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1, expected from 0 to below 1"),
        ({"z_loss": -1.0}, "z_loss is -1.0, expected 0 or more"),
        ({"wandb": ""}, "wandb is '', expected the name of a project"),
        ({"initializer_range": 0.0}, "initializer_range is 0.0, expected above 0"),
    ],
)
def test_bad_values_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        config(**fields)


def test_no_data_is_an_error():
    with pytest.raises(UserError, match="data is empty"):
        RunConfig(data=[], out="y")
