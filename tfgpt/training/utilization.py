"""Model FLOPs utilization: the products that a model needs, as a share of those that the machine can do."""

import time

import tensorflow as tf

SECONDS = 0.5  # about how long the measurement may take


class ModelFlopsUtilization:
    """The share of a machine's peak that training makes use of (PaLM, Chowdhery et al. 2022, appendix B).

    Args:
        flops_per_token: see `model_flops_per_token`.
        peak: FLOP/s; see `measure_matmul_peak`.

    Example:

    >>> ModelFlopsUtilization(flops_per_token=1e9, peak=1e12)({"tokens_per_second": 500.0})
    {'utilization': 0.5}
    """

    columns = ("utilization",)

    def __init__(self, flops_per_token, peak):
        self.flops_per_token, self.peak = flops_per_token, peak

    def __call__(self, row):
        return {"utilization": row["tokens_per_second"] * self.flops_per_token / self.peak}


def model_flops_per_token(parameters, num_layers, num_heads, head_dim, length):
    """FLOPs of forward and backward pass a token: 6 N + 12 L H Q T, recomputation not counted.

    Args:
        parameters: N, of those in products: with the tied embedding, without position vectors.
        num_layers, num_heads, head_dim, length: L, H, Q and T.

    Example: GPT-2 at 1024 tokens.

    >>> model_flops_per_token(123_653_376, 12, 12, 64, 1024)
    855166464
    """
    return 6 * parameters + 12 * num_layers * num_heads * head_dim * length


def measure_matmul_peak(dtype="float32"):
    """FLOP/s of the fastest of some square products on this machine's first device, in under a second.

    Args:
        dtype: of the operands, such as "bfloat16".
    """
    product = tf.function(tf.linalg.matmul, autograph=False)
    best, spent, size = 0.0, 0.0, 256
    while True:
        matrix = tf.cast(tf.random.stateless_normal((size, size), seed=(0, 0)), dtype)
        product(matrix, matrix)[0, 0].numpy()  # traced, and its threads awake
        for _ in range(3):
            start = time.perf_counter()
            product(matrix, matrix)[0, 0].numpy()  # reading a number waits for an accelerator
            seconds = time.perf_counter() - start
            best, spent = max(best, 2 * size**3 / seconds), spent + seconds
        if spent + 4 * 8 * seconds > SECONDS or size == 8192:  # the next is eight times the work, four times over
            return best
        size *= 2


def utilization_of(model):
    """The `ModelFlopsUtilization` of a `GPT2CausalLM` at its full window, with a peak measured now in its dtype."""
    backbone = model.backbone
    parameters = model.count_params() - backbone.position_embedding.count_params()
    head_dim = backbone.hidden_dim // backbone.num_heads
    flops = model_flops_per_token(
        parameters, backbone.num_layers, backbone.num_heads, head_dim, backbone.max_sequence_length
    )
    return ModelFlopsUtilization(flops, measure_matmul_peak(model.compute_dtype))
