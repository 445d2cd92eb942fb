"""What two papers claim, and what the records of an ablation say to that."""

import dataclasses
import math

import numpy as np

TOLERANCE = 0.1  # nats: a smaller difference of final losses counts as none
EXPONENT_TOLERANCE = 0.2


@dataclasses.dataclass
class Finding:
    """A claim beside a measurement.

    Attributes:
        claim: with its source.
        measured: a sentence made of the records.
        verdict: "yes", "no", "in part", or "not measured".
    """

    claim: str
    measured: str
    verdict: str


def findings(ablation):
    """A `Finding` for each claim."""
    return [claim(ablation) for claim in (_pre_norm, _post_norm, _towards_output, _by_depth, _degradation, _scaling)]


def _pre_norm(ablation):
    claim = "Pre-norm needs no warm-up (Xiong et al. 2020, section 4.2)"
    pairs = _warm_and_cold(ablation, "pre")
    if not pairs:
        return Finding(claim, "Pre-norm was not run.", "not measured")
    good = [ablation.trains(cold) and _excess(cold, warm) <= TOLERANCE for warm, cold in pairs]
    return Finding(claim, _differences(pairs), _verdict(good))


def _post_norm(ablation):
    claim = "Post-norm needs warm-up (Xiong et al. 2020, section 3.2)"
    pairs = _warm_and_cold(ablation, "post")
    if not pairs:
        return Finding(claim, "Post-norm was not run.", "not measured")
    needs = [
        ablation.trains(warm) and (not ablation.trains(cold) or _excess(cold, warm) > TOLERANCE) for warm, cold in pairs
    ]
    return Finding(claim, _differences(pairs), _verdict(needs))


def _towards_output(ablation):
    claim = (
        "At initialization post-norm's gradients grow towards the output and are large there; pre-norm's stay alike "
        "(Xiong et al. 2020, sections 3.3 and 3.4, figure 3)"
    )
    ends = {variant: _second_kernel_gradients(ablation, variant) for variant in ("pre", "post")}
    if not all(ends.values()):
        return Finding(claim, "Pre-norm or post-norm was not run.", "not measured")
    depth = max(ends["pre"])
    if depth < 2:
        return Finding(claim, "One block has no first and last.", "not measured")
    pre, post = (np.array(ends[variant][depth]) for variant in ("pre", "post"))
    ratios = {"pre": pre[-1] / pre[0], "post": post[-1] / post[0]}
    measured = (
        f"In {depth} blocks the second feed-forward kernel's gradient is {post[-1]:.3g} in the last and {post[0]:.3g} "
        f"in the first with post-norm ({ratios['post']:.3g} times), {pre[-1]:.3g} and {pre[0]:.3g} with pre-norm "
        f"({ratios['pre']:.3g} times)."
    )
    good = [ratios["post"] > 1.0, post[-1] > pre[-1], 0.5 <= ratios["pre"] <= 2.0]
    return Finding(claim, measured, _verdict(good))


def _by_depth(ablation):
    claim = (
        "At initialization the last block's gradient falls as 1/√L with pre-norm, and not at all with post-norm "
        "(Xiong et al. 2020, theorem 1)"
    )
    exponents = {}
    for variant, expected in (("pre", -0.5), ("post", 0.0)):
        gradients = _second_kernel_gradients(ablation, variant)
        if len(gradients) < 2:
            return Finding(claim, "There are no two depths of pre-norm and of post-norm.", "not measured")
        last = [norms[-1] for norms in gradients.values()]
        exponents[variant] = float(np.polyfit(np.log(list(gradients)), np.log(last), 1)[0]), expected
    measured = " ".join(
        f"With {variant}-norm it goes as L^{round(exponent, 2) + 0.0:.2f} (claimed: {expected:g})."
        for variant, (exponent, expected) in exponents.items()
    )
    good = [abs(exponent - expected) <= EXPONENT_TOLERANCE for exponent, expected in exponents.values()]
    return Finding(claim, measured, _verdict(good))


def _degradation(ablation):
    claim = (
        "Deeper plain networks have the higher training error, deeper residual ones do not (He et al. 2016, sections 1 "
        "and 4.1, of convolutional networks)"
    )
    parts, good = [], []
    for variant, name in (("no_residual", "Without"), ("pre", "With")):
        runs = ablation.find(variant=variant, warmup=True, residual_scaling=False)
        if len(runs) < 2:
            return Finding(claim, "There are no two depths with and without residual connections.", "not measured")
        runs = sorted(runs, key=lambda run: run.depth)
        losses = [final_training_loss(run) for run in runs]
        worse = not losses[-1] <= losses[0] + TOLERANCE  # also where it is no number
        good.append(worse == (variant == "no_residual"))
        series = ", ".join(f"{loss:.2f}" for loss in losses)
        depths = ", ".join(str(run.depth) for run in runs)
        parts.append(f"{name} residual connections the training loss at the end is {series} at depths {depths}.")
        if variant == "no_residual" and not any(map(ablation.trains, runs)):
            parts.append("None of these plain networks trains.")
    return Finding(claim, " ".join(parts), _verdict(good))


def _scaling(ablation):
    claim = (
        "Residual kernels scaled by 1/√(2L) at initialization make up for what depth adds to the residual stream "
        "(Radford et al. 2019, section 2.3)"
    )
    growth = {}
    for scaling in (False, True):
        runs = ablation.find(variant="pre", warmup=True, residual_scaling=scaling)
        growth[scaling] = {run.depth: _growth(run) for run in runs}
    if not growth[False] or len(growth[False]) < 2:
        return Finding(claim, "There are no two depths of pre-norm.", "not measured")
    shallow, deep = min(growth[False]), max(growth[False])
    ratios = {scaling: by_depth[deep] / by_depth[shallow] for scaling, by_depth in growth.items()}
    measured = " ".join(
        f"{'With' if scaling else 'Without'} scaling the pre-norm stream's norm grows {by_depth[shallow]:.2f} times at "
        f"depth {shallow} and {by_depth[deep]:.2f} times at depth {deep}."
        for scaling, by_depth in growth.items()
    )
    good = [ratios[False] > 1.2, abs(ratios[True] - 1.0) < 0.2]
    return Finding(claim, measured, _verdict(good))


def final_training_loss(run):
    """The mean training loss of the last tenth of the steps; NaN of a run that ended early."""
    last = run.losses[-max(len(run.losses) // 10, 1) :]
    return sum(last) / len(last)


def _warm_and_cold(ablation, variant):
    """Pairs of runs with and without warm-up by depth, without residual scaling."""
    warm, cold = (ablation.find(variant=variant, warmup=warmup, residual_scaling=False) for warmup in (True, False))
    return list(zip(warm, cold, strict=True))


def _excess(run, other):
    return run.final_loss - other.final_loss if math.isfinite(run.final_loss) else math.inf


def _differences(pairs):
    words = [f"{cold.final_loss:.2f} and {warm.final_loss:.2f} at depth {cold.depth}" for warm, cold in pairs]
    return f"Held-out losses without and with warm-up: {'; '.join(words)}."


def _second_kernel_gradients(ablation, variant):
    """Depth → the gradient norm at step 0 of each block's second feed-forward kernel, from input to output."""
    runs = ablation.find(variant=variant, warmup=True, residual_scaling=False)
    return {run.depth: [row[2] for row in run.norms_at(0)[1:]] for run in runs}


def _growth(run):
    norms = [row[3] for row in run.norms_at(0)]
    return norms[-1] / norms[0]


def _verdict(good):
    return "yes" if all(good) else "in part" if any(good) else "no"
