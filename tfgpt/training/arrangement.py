"""How a step is computed on the device that there is: what `precision` and `compile` stand for when they are "auto"."""

from __future__ import annotations

import dataclasses
import pathlib

import tensorflow as tf

WIDE = 256  # from this hidden dim on, products outweigh what it costs to start kernels one by one
CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86, and of ARM
COMPUTE_CAPABILITY = (8, 0)  # of the first GPUs with bfloat16 units


def arrange(config, hidden_dim):
    """The `FitConfig` with `precision` and `compile` chosen, where they are "auto", for the strategy in scope.

    Measured in benchmarks/RESULTS.md:

    - one CPU, from 256 wide: `compile` is "kernels" (see `tfgpt.training.kernels`), `precision` mixed_bfloat16 where
      the CPU has units for it;
    - one CPU, narrower models, whose time goes into starting kernels: the whole step compiled, bfloat16_products where
      the CPU has units for them, else float32;
    - one GPU: mixed_bfloat16 from compute capability 8.0 on, else float32; the whole step compiled;
    - TPUs: mixed_bfloat16; their strategy compiles the step itself;
    - several replicas of other devices: float32, or on GPUs as above; not compiled, for XLA does not sum over replicas.
    """
    gpus = tf.config.list_physical_devices("GPU")
    strategy = tf.distribute.get_strategy() if tf.distribute.has_strategy() else None
    on_one_cpu, on_tpu = strategy is None and not gpus, isinstance(strategy, tf.distribute.TPUStrategy)
    precision, compile = config.precision, config.compile
    if compile == "auto":
        in_kernels = on_one_cpu and hidden_dim >= WIDE and precision not in ("bfloat16_products", "mixed_float16")
        compile = "none" if strategy is not None else "kernels" if in_kernels else "step"
    if precision == "auto":
        precision = "float32"
        if on_tpu or (gpus and all(map(_gpu_has_bfloat16, gpus))):
            precision = "mixed_bfloat16"
        elif on_one_cpu and cpu_has_bfloat16():
            narrow = "bfloat16_products" if compile == "step" else "float32"
            precision = "mixed_bfloat16" if hidden_dim >= WIDE else narrow
    config = dataclasses.replace(config, precision=precision, compile=compile)
    config.check_products()
    return config


def cpu_has_bfloat16():
    """Whether this machine's processor multiplies bfloat16 matrices itself; False where /proc does not say."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return not CPU_FLAGS.isdisjoint(flags.split())


def _gpu_has_bfloat16(gpu):
    return tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) >= COMPUTE_CAPABILITY
