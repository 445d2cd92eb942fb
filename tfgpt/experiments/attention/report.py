"""Pictures and page of a text, as files."""

import pathlib

from tfgpt.atomic import atomic_directory, expect_free, write_text
from tfgpt.errors import UserError
from tfgpt.experiments.attention.figures import attention_figure, lens_figure
from tfgpt.experiments.attention.page import page
from tfgpt.experiments.attention.visible import shortened
from tfgpt.experiments.pictures import expect_matplotlib, save_png
from tfgpt.json_file import read_json
from tfgpt.models import EncoderDecoderTransformer, GPT2CausalLM
from tfgpt.models.encoder_decoder.model_directory import MODEL_TYPE


def show_attention(model, text, out, target=None, top_k=5, overwrite=False):
    """Writes where a model looks as it reads a text: attention.html, and PNGs of attention and logit lens.

    Args:
        model: a model directory, of GPT-2 or of a translator.
        text: that is read; of a translator the source.
        out: a new directory, which appears whole or not at all.
        target: of a translator, the translation to be looked at; by default its own.
        top_k: tokens of the logit lens.
        overwrite: replace what `out` holds.

    Returns:
        The `AttentionView`s by name, and the `LogitLens`.

    Raises:
        UserError: for bad input.
    """
    expect_matplotlib()
    expect_free(out, overwrite)
    config = pathlib.Path(model) / "config.json"
    if config.is_file() and read_json(config).get("model_type") == MODEL_TYPE:
        translator = EncoderDecoderTransformer.from_preset(model)
        if target is None:
            # One less than the window, for the token that every target begins with.
            target = translator.translate(text, max_new_tokens=translator.backbone.max_sequence_length - 1)
        attention = translator.attention(text, target)
        views = {"encoder": attention.encoder, "decoder": attention.decoder, "cross": attention.cross}
        lens = translator.logit_lens(text, target, top_k)
        title, lens_views = f"{text} → {target}", ("decoder", "cross")
    else:
        if target is not None:
            raise UserError(f"target is {target!r}, expected none: {model} is no translator")
        language_model = GPT2CausalLM.from_preset(model)
        views = {"self-attention": language_model.attention(text)}
        lens = language_model.logit_lens(text, top_k)
        title, lens_views = text, tuple(views)
    document = page(views, lens, title=f"Attention: {title}", lens_views=lens_views)
    with atomic_directory(out, overwrite) as temporary:
        write_text(temporary / "attention.html", document)
        for name, view in views.items():
            suffix = "" if len(views) == 1 else f"_{name}"
            heading = shortened(f"Attention weights, {name}", 80)
            save_png(attention_figure(view, heading), temporary / f"attention{suffix}.png")
        save_png(lens_figure(lens), temporary / "logit_lens.png")
    return views, lens
