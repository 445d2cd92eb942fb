"""The picture of a run."""

from tfgpt.atomic import atomic_file


def plot_loss_curve(path, train, validation):
    """Draws the loss curve as a PNG, where matplotlib is installed (the `plots` extra).

    Args:
        path: of the PNG.
        train: (step, loss) pairs.
        validation: (step, loss) pairs.

    Returns:
        Whether it was drawn.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(*zip(*train), color="tab:blue", alpha=0.6, linewidth=1, label="train")
    if validation:
        axes.plot(*zip(*validation), color="tab:orange", marker="o", markersize=4, label="validation")
    axes.set(xlabel="step", ylabel="cross-entropy (nats a token)", title="Loss")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)
    return True
