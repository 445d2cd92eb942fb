"""How far an artifact may stand from the Keras model, and why."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """Limits of one numeric format; a limit that is None does not hold.

    Args:
        reason: where the numbers come from.
        logit: largest |difference of logits|, over max(1, largest |logit|). With it each position's likeliest token
            must be the same, but where the two best logits are nearer than this.
        perplexity: largest increase of the perplexity of held-out text, as a fraction of the Keras model's. Decoding
            from the cache, measured on far fewer positions, may take twice as much.
        cache: the same as `logit`, of decoding from the cache against one pass of the artifact itself. Where
            activations are rounded to 8 bits, those that round the other way move logits by up to 0.02.
        same_text: greedy continuations must be the same, token by token, but after such a near tie.
    """

    reason: str
    logit: float | None = None
    perplexity: float | None = None
    cache: float | None = None
    same_text: bool = False

    def __str__(self):
        limits = []
        if self.logit is not None:
            limits.append(f"|Δlogit| ≤ {self.logit:.0e} × max(1, max |logit|)")
        if self.perplexity is not None:
            limits.append(f"perplexity at most {self.perplexity:.1%} above")
        if self.same_text:
            limits.append("the same greedy text")
        if self.cache is not None:
            limits.append(f"cache within {self.cache:.0e}")
        return ", ".join(limits)


TOLERANCES = {
    "float32": Tolerance(
        logit=1e-4,
        same_text=True,
        reason="float32 rounds at 6e-8; sums of a few thousand products in another order, through up to 48 layers, "
        "stay below 1e-5 here, and a wrong weight, mask or position moves logits by 1e-2 and more",
    ),
    "float16": Tolerance(
        logit=2e-2,
        perplexity=0.002,
        cache=2e-2,
        reason="float16 rounds at 5e-4, once in each of some ten operators a layer",
    ),
    "int8": Tolerance(
        perplexity=0.01,
        cache=5e-2,
        reason="8 bits for weights and activations: what users give up for a quarter of the size; on x86 without VNNI "
        "instructions the kernels may saturate, so another processor wants a check of its own",
    ),
    "int8_weight_only": Tolerance(
        perplexity=0.01,
        cache=5e-2,
        reason="8 bits for weights, with a scale for every block of them",
    ),
    "int4": Tolerance(
        perplexity=0.06,
        cache=5e-2,
        reason="16 levels for a weight: what users give up for an eighth of the size",
    ),
}
