import json
from types import SimpleNamespace

import pytest
import tensorflow as tf

from tfgpt.errors import UserError
from tfgpt.training.distribution import Distribution, check_compile
from tfgpt.training.fit_config import STRATEGIES
from tfgpt.training.run_config import RunConfig

TWO = {"cluster": {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}, "task": {"type": "worker", "index": 0}}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in ("TF_CONFIG", "TPU_NAME"):
        monkeypatch.delenv(name, raising=False)


def test_auto_is_one_device_where_there_is_nothing_else():
    opened = Distribution.open("auto", 5)
    assert (opened.name, opened.strategy, opened.chief) == ("one_device", tf.distribute.get_strategy(), True)


@pytest.mark.parametrize(
    "cluster, devices, expected",
    [(TWO, {"TPU": 1}, "multi_worker"), ({}, {"TPU": 1, "GPU": 2}, "tpu"), ({}, {"GPU": 2}, "mirrored")],
)
def test_auto_takes_what_there_is(cluster, devices, expected, monkeypatch):
    from tfgpt.training import distribution

    monkeypatch.setenv("TF_CONFIG", json.dumps(cluster))
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [kind] * devices.get(kind, 0))
    monkeypatch.setitem(distribution._OPENERS, expected, tf.distribute.get_strategy)
    assert Distribution.open("auto", 4).name == expected


@pytest.mark.parametrize(
    "name, cluster, message",
    [
        ("mirrored", {}, "strategy is mirrored, but this machine has one device, .*CPU:0; expected several"),
        ("multi_worker", {}, "TF_CONFIG names no workers"),
        ("tpu", {}, "strategy is tpu, but no TPU answers"),
        ("parameter_server", {}, "parameter servers are not supported by Keras 3"),
        ("mirrored", TWO, "strategy is mirrored, but TF_CONFIG names 2 workers; expected multi_worker"),
        ("auto", TWO, "batch_size is 5, expected a multiple of the 2 workers"),
        ("auto", {**TWO, "cluster": {**TWO["cluster"], "ps": ["127.0.0.1:3"]}}, "parameter servers"),
    ],
)
def test_what_a_machine_cannot_give_is_one_sentence(name, cluster, message, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", json.dumps(cluster))
    with pytest.raises(UserError, match=message) as raised:
        Distribution.open(name, 5)
    assert "\n" not in str(raised.value)


def test_a_compiled_step_with_sums_over_replicas_is_refused(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", json.dumps(TWO))
    with pytest.raises(UserError, match="compile is 'step', expected 'none' with strategy multi_worker"):
        Distribution.open("multi_worker", 4, compile="step")


@pytest.mark.parametrize("name", ["mirrored", "multi_worker", "tpu"])
def test_kernels_are_one_devices(name):
    check_compile("kernels", "one_device")
    check_compile("auto", name)
    with pytest.raises(UserError, match=f"compile is 'kernels', expected 'none' with strategy {name}"):
        check_compile("kernels", name)


def test_micro_batches_divide_each_replicas_share(monkeypatch):
    from tfgpt.training import distribution

    monkeypatch.setitem(distribution._OPENERS, "mirrored", lambda: SimpleNamespace(num_replicas_in_sync=2))
    assert Distribution.open("mirrored", 12, accumulate_steps=3).name == "mirrored"
    with pytest.raises(
        UserError, match="accumulate_steps is 4, expected a divisor of the 6 windows of each of the 2 r"
    ):
        Distribution.open("mirrored", 12, accumulate_steps=4)


def test_an_unknown_strategy_is_named():
    assert "tpu" in STRATEGIES
    with pytest.raises(UserError, match="strategy is 'horovod', expected one of auto, one_device"):
        RunConfig(data=["x"], out="y", strategy="horovod")
