import json

import pytest

from tfgpt.errors import UserError
from tfgpt.training.cluster import Cluster


def cluster(tasks, kind="worker", index=0):
    return Cluster.from_environment(
        {"TF_CONFIG": json.dumps({"cluster": tasks, "task": {"type": kind, "index": index}})}
    )


def test_without_tf_config_a_process_is_alone():
    for environment in ({}, {"TF_CONFIG": ""}, {"TF_CONFIG": "{}"}):
        alone = Cluster.from_environment(environment)
        assert alone.workers == () and alone.chief


def test_the_first_worker_is_the_chief():
    tasks = {"worker": ["a:1", "b:2"]}
    assert cluster(tasks, index=0).chief and not cluster(tasks, index=1).chief
    assert cluster(tasks, index=1).workers == ("a:1", "b:2")


def test_a_task_of_type_chief_comes_before_the_workers():
    tasks = {"chief": ["c:1"], "worker": ["a:1"]}
    assert cluster(tasks, "chief").chief
    worker = cluster(tasks, "worker")
    assert (worker.index, worker.workers, worker.chief) == (1, ("c:1", "a:1"), False)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "TF_CONFIG is '{', expected JSON"),
        ("[1]", "expected JSON with a cluster and a task"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "task is 'worker' 1"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}', "task is 'ps' 0"),
    ],
)
def test_a_wrong_tf_config_is_one_sentence(text, message):
    with pytest.raises(UserError, match=message) as raised:
        Cluster.from_environment({"TF_CONFIG": text})
    assert "\n" not in str(raised.value)
