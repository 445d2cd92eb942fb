"""How far an artifact may stand from the Keras model, and why."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """Limits of one numeric format.

    Args:
        logit: largest |difference of logits|, over max(1, largest |logit|).
        reason: where the number comes from.
    """

    logit: float
    reason: str


TOLERANCES = {
    "float32": Tolerance(
        logit=1e-4,
        reason="float32 rounds at 6e-8; sums of a few thousand products in another order, through up to 48 layers, "
        "stay below 1e-5 here, and a wrong weight, mask or position moves logits by 1e-2 and more",
    ),
}
