import numpy as np
import pytest

from tfgpt.models import GPT2CausalLM
from tfgpt.training import utilization


def test_flops_of_palm():
    # Appendix B of the paper: PaLM 540B, 118 layers, 48 heads of 256, 2048 tokens, at 238.3 k tokens/s on 6144 TPU v4
    # chips of 275 TFLOP/s reached a model FLOPs utilization of 46.2 %.
    flops = utilization.model_flops_per_token(540.35e9, 118, 48, 256, 2048)
    share = utilization.ModelFlopsUtilization(flops, peak=6144 * 275e12)({"tokens_per_second": 238.3e3})
    assert share["utilization"] == pytest.approx(0.462, abs=0.001)


def test_the_models_own_shape_counts(monkeypatch):
    monkeypatch.setattr(utilization, "measure_matmul_peak", lambda dtype: {"bfloat16": 1e9}[dtype])
    model = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=0, dtype="mixed_bfloat16")
    # Every weight but the position vectors is in a product or beside one: 2 layers of 2 heads of 16, window 32.
    parameters = sum(int(np.prod(v.shape)) for v in model.weights if "position" not in v.path)
    found = utilization.utilization_of(model)
    assert found.flops_per_token == 6 * parameters + 12 * 2 * 2 * 16 * 32
    assert found({"tokens_per_second": 1.0})["utilization"] == pytest.approx(found.flops_per_token / 1e9)


def test_the_measured_peak_is_that_of_real_products():
    # No time is asserted: a rate that counts FLOPs wrongly is off by orders of magnitude from any machine's.
    peak = utilization.measure_matmul_peak("float32")
    assert 1e8 < peak < 1e16
