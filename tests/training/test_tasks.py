import dataclasses
import typing

import pytest

from tfgpt.errors import UserError
from tfgpt.training.fit_config import FitConfig
from tfgpt.training.run_config import RunConfig
from tfgpt.training.task import Task
from tfgpt.training.tasks import TASKS
from tfgpt.training.trainer import open_task


def given(config_class):
    """What a configuration cannot do without, and data: a string, or a list of one, for each."""
    required = [field.name for field in dataclasses.fields(config_class) if field.default is dataclasses.MISSING]
    required.append("data")
    hints = typing.get_type_hints(config_class)
    return {name: ["x"] if typing.get_origin(hints[name]) is list else "x" for name in required}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_there(name):
    config = TASKS[name](**given(TASKS[name]))
    assert isinstance(config, FitConfig) and config.task == name
    assert isinstance(open_task(config), Task)


@pytest.mark.parametrize("name", TASKS)
def test_the_configuration_of_one_task_is_none_of_another(name):
    with pytest.raises(UserError, match=f"task is 'knitting', expected '{name}'"):
        TASKS[name](**given(TASKS[name]) | {"task": "knitting"})


def test_text_is_what_a_run_learns_from_unless_it_is_told():
    assert next(iter(TASKS)) == RunConfig.task
