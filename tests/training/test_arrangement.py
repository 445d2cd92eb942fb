"""What "auto" stands for, by device, width and strategy."""

import pathlib

import pytest
import tensorflow as tf

from tfgpt.errors import UserError
from tfgpt.training import arrangement
from tfgpt.training.arrangement import arrange, cpu_has_bfloat16
from tfgpt.training.run_config import RunConfig

BFLOAT16, PRODUCTS, NARROW, WIDE = "mixed_bfloat16", "bfloat16_products", 255, 256
AMPERE, TURING = (8, 0), (7, 5)


class TPUStrategy:
    """Stands for TensorFlow's, which needs a TPU."""


@pytest.fixture
def device(monkeypatch):
    """Has this machine look like another one."""

    def pretend(cpu_bfloat16, capabilities, strategy):
        monkeypatch.setattr(arrangement, "cpu_has_bfloat16", lambda: cpu_bfloat16)
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: capabilities if kind == "GPU" else ["CPU"])
        details = {None: {}}
        monkeypatch.setattr(
            tf.config.experimental, "get_device_details", lambda c: details.get(c, {"compute_capability": c})
        )
        monkeypatch.setattr(tf.distribute, "TPUStrategy", TPUStrategy)
        monkeypatch.setattr(tf.distribute, "has_strategy", lambda: strategy is not None)
        monkeypatch.setattr(tf.distribute, "get_strategy", lambda: strategy)

    return pretend


REPLICAS, TPU = object(), TPUStrategy()


@pytest.mark.parametrize(
    "cpu_bfloat16, gpus, strategy, width, chosen",
    [
        (True, [], None, WIDE, (BFLOAT16, "kernels")),
        (False, [], None, WIDE, ("float32", "kernels")),
        (True, [], None, NARROW, (PRODUCTS, "step")),
        (False, [], None, NARROW, ("float32", "step")),
        (True, [AMPERE], None, NARROW, (BFLOAT16, "step")),
        (True, [AMPERE], None, WIDE, (BFLOAT16, "step")),
        (True, [TURING], None, WIDE, ("float32", "step")),
        (True, [None], None, WIDE, ("float32", "step")),  # a GPU that does not say
        (True, [AMPERE, TURING], REPLICAS, WIDE, ("float32", "none")),
        (True, [AMPERE, AMPERE], REPLICAS, NARROW, (BFLOAT16, "none")),
        (True, [], REPLICAS, WIDE, ("float32", "none")),
        (False, [], TPU, NARROW, (BFLOAT16, "none")),
    ],
)
def test_auto(cpu_bfloat16, gpus, strategy, width, chosen, device):
    device(cpu_bfloat16, gpus, strategy)
    config = arrange(RunConfig(data=["x"], out="y"), width)
    assert (config.precision, config.compile) == chosen
    assert arrange(config, width) == config


@pytest.mark.parametrize(
    "given, chosen",
    [
        ({"precision": "float32"}, ("float32", "kernels")),
        ({"precision": "mixed_float16"}, ("mixed_float16", "step")),
        ({"compile": "none"}, (BFLOAT16, "none")),
        ({"compile": "step"}, (BFLOAT16, "step")),
        ({"precision": "float32", "compile": "none"}, ("float32", "none")),
        ({"precision": PRODUCTS}, (PRODUCTS, "step")),
    ],
)
def test_what_is_given_is_kept(given, chosen, device):
    device(True, [], None)
    config = arrange(RunConfig(data=["x"], out="y", **given), WIDE)
    assert (config.precision, config.compile) == chosen


@pytest.mark.parametrize("compile, precision", [("step", PRODUCTS), ("kernels", "float32"), ("none", "float32")])
def test_narrow_models_have_bfloat16_products_where_xla_makes_them(compile, precision, device):
    device(True, [], None)
    assert arrange(RunConfig(data=["x"], out="y", compile=compile), NARROW).precision == precision


def test_replicas_are_not_compiled_and_so_refuse_bfloat16_products(device):
    device(True, [], REPLICAS)
    with pytest.raises(UserError, match="'bfloat16_products', expected compile 'step' with it, not 'none'"):
        arrange(RunConfig(data=["x"], out="y", precision=PRODUCTS), NARROW)


@pytest.mark.parametrize(
    "cpuinfo, has",
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16\n", True),
        ("processor\t: 0\nflags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f\nbugs\t\t: amx_bf16\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", True),
        ("processor\t: 0\n", False),
        (None, False),
    ],
)
def test_what_a_cpu_says_of_itself(cpuinfo, has, monkeypatch):
    def read(path, **options):
        assert path == pathlib.Path("/proc/cpuinfo")
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return cpuinfo

    monkeypatch.setattr(pathlib.Path, "read_text", read)
    assert cpu_has_bfloat16() is has
