"""One self-contained HTML page, in which one chooses layer and head and sees where each token looks."""

import base64
import hashlib
import html
import json

import numpy as np

from tfgpt.errors import UserError
from tfgpt.experiments.attention.page_files import BODY, SCRIPT, STYLE
from tfgpt.experiments.attention.visible import shortened, visible

LARGEST = 2**24  # weights in a page: 45 MB, which a browser opens in seconds
ONE = 2**16 - 1  # the weight 1 as a 16-bit integer


def page(views, lens=None, title="Attention", lens_views=()):
    """The page as a string of HTML.

    It loads nothing: style, script and data are in it, its content security policy allows these alone, and tokens are
    data that the script shows as text.

    Args:
        views: `AttentionView`s by name.
        lens: a `LogitLens`, or None.
        title: of the page.
        lens_views: names of the views whose queries are the tokens of `lens`.

    Raises:
        UserError: if there are more weights than a page holds.
    """
    _check_size(views)
    data = {"views": [_view(name, view, name in lens_views) for name, view in views.items()]}
    if lens is not None:
        data["lens"] = {
            "tokens": [[[visible(token) for token in top] for top in layer] for layer in lens.top_tokens],
            "probabilities": np.round(lens.probabilities.astype(float), 5).tolist(),
        }
    # Escaped, no text can end the script element that holds it, or begin a comment in it.
    embedded = json.dumps(data).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    policy = f"default-src 'none'; style-src {_source(STYLE)}; script-src {_source(SCRIPT)}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(shortened(title, 80))}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{html.escape(shortened(title, 200))}</h1>
{BODY}
<script type="application/json" id="data">{embedded}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _check_size(views):
    total = sum(view.weights.size for view in views.values())
    if total > LARGEST:
        layers, heads, queries, keys = max((view.weights.shape for view in views.values()), key=np.prod)
        longest = int((LARGEST / (len(views) * layers * heads)) ** 0.5)
        raise UserError(
            f"the text has {max(queries, keys)} tokens, expected at most {longest} for {layers} layers of {heads} "
            f"heads: a page holds {LARGEST} weights"
        )


def _view(name, view, has_lens):
    layers, heads = view.weights.shape[:2]
    weights = np.round(view.weights.astype(np.float64) * ONE).astype("<u2")
    return {
        "name": name,
        "layers": layers,
        "heads": heads,
        "queries": [visible(token) for token in view.queries],
        "keys": [visible(token) for token in view.keys],
        "weights": base64.b64encode(weights.tobytes()).decode("ascii"),
        "lens": has_lens,
    }


def _source(text):
    """What a content security policy calls an inline element with this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
