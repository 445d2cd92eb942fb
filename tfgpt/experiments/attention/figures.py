"""PNGs of attention and of the logit lens."""

import functools

import numpy as np

from tfgpt.experiments.attention.visible import shortened, visible
from tfgpt.experiments.pictures import grid

PANEL = 1.3  # inches of a head's matrix
LARGEST = 24.0  # inches of a figure
PIXELS = 160  # of a head's matrix on a side at most: more tokens are drawn as the largest weight among neighbours
LENS_TOKENS = 32  # in the picture of the logit lens, the last ones
LENS_CHARACTERS = 8


def attention_figure(view, title):
    """A grid, layers × heads, of the attention matrices of an `AttentionView`."""
    layers, heads, queries, keys = view.weights.shape
    mosaic = mosaic_of(view.weights)
    panel = min(PANEL, LARGEST / max(layers, heads))
    size = (max(panel * heads, 4.0) + 1.6, max(panel * layers, 2.0) + 1.2)
    figure, [[axes]] = grid(1, 1, size)
    # In units of heads and layers: the middle of the first is at 1. Square roots show small weights, too.
    image = axes.imshow(
        np.sqrt(mosaic), extent=(0.5, heads + 0.5, layers + 0.5, 0.5), aspect="auto", vmin=0.0, vmax=1.0, cmap="magma"
    )
    for edge in range(1, heads):
        axes.axvline(edge + 0.5, color="white", linewidth=1)
    for edge in range(1, layers):
        axes.axhline(edge + 0.5, color="white", linewidth=1)
    axes.set(xlabel=f"head (in each: {keys} keys across)", ylabel=f"layer (in each: {queries} queries down)")
    axes.set_xticks(_ticks(heads))
    axes.set_yticks(_ticks(layers))
    axes.set_title(title)
    bar = figure.colorbar(
        image, ax=axes, label="attention weight", fraction=0.05, pad=0.02, ticks=np.sqrt([0, 0.05, 0.25, 0.5, 1])
    )
    bar.ax.set_yticklabels(["0", "0.05", "0.25", "0.5", "1"])
    return figure


def mosaic_of(weights):
    """Weights (L, H, T, S) as one matrix (L T', H S'), where T' and S' are at most `PIXELS`."""
    for axis in (2, 3):
        step = -(-weights.shape[axis] // PIXELS)
        starts = np.arange(0, weights.shape[axis], step)
        weights = np.maximum.reduceat(weights, starts, axis=axis) if step > 1 else weights
    layers, heads, queries, keys = weights.shape
    return weights.transpose(0, 2, 1, 3).reshape(layers * queries, heads * keys)


def lens_figure(lens):
    """The likeliest next token after each layer (rows) at each token (columns), coloured by its probability."""
    first = max(len(lens.tokens) - LENS_TOKENS, 0)
    probabilities = lens.probabilities[:, first:, 0]
    layers, count = probabilities.shape
    figure, [[axes]] = grid(1, 1, (max(0.75 * count, 3.5) + 1.5, 0.4 * layers + 1.9))
    image = axes.imshow(probabilities, aspect="auto", vmin=0.0, vmax=1.0, cmap="Blues", origin="lower")
    for layer in range(layers):
        for column in range(count):
            axes.text(
                column,
                layer,
                _drawable(lens.top_tokens[layer][first + column][0]),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if probabilities[layer, column] > 0.6 else "black",
                parse_math=False,
            )
    axes.set_xticks(range(count), [_drawable(token) for token in lens.tokens[first:]], rotation=60, ha="right")
    for label in axes.get_xticklabels():
        label.set_parse_math(False)
    axes.set_yticks(range(layers), [str(layer + 1) for layer in range(layers)])
    shown = f", the last {count} tokens of {len(lens.tokens)}" if first else ""
    axes.set(xlabel="token that is read", ylabel="layer", title=f"Logit lens: likeliest next token by layer{shown}")
    figure.colorbar(image, ax=axes, label="its probability", fraction=0.05, pad=0.01)
    return figure


def _ticks(count):
    return range(1, count + 1, -(-count // 24))


def _drawable(token):
    """A token, short, and without characters that the font lacks."""
    has_glyph = _glyphs()
    text = "".join(c if has_glyph(ord(c)) else ascii(c)[1:-1] for c in visible(token))
    return shortened(text, LENS_CHARACTERS)


@functools.cache
def _glyphs():
    from matplotlib import font_manager

    return font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_char_index
