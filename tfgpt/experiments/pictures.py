"""Figures as PNG files, without pyplot's global state."""

from tfgpt.atomic import atomic_file
from tfgpt.errors import UserError

DOTS_PER_INCH = 110


def expect_matplotlib():
    """Raises a `UserError` if matplotlib is not installed, which long work should ask before it begins."""
    try:
        import matplotlib  # noqa: F401 (whether it is there)
    except ImportError as error:
        raise UserError("matplotlib is not installed, expected pip install 'tfgpt[plots]'") from error


def grid(rows, columns, size, **options):
    """A figure of rows × columns axes.

    Args:
        size: (width, height) of the whole in inches.
        **options: of matplotlib's `Figure.subplots`.

    Returns:
        The figure, and an array (rows, columns) of its axes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save_png(figure, path):
    """Writes a figure atomically."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=DOTS_PER_INCH, format="png")
