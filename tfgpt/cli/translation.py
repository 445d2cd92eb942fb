"""The `translate` command: texts, or a file of them, through a translation model."""

from __future__ import annotations

import dataclasses
import pathlib

from tfgpt.atomic import write_text
from tfgpt.cli.figures import write_json
from tfgpt.cli.quiet import import_tensorflow
from tfgpt.errors import UserError


def translate(
    model: str,
    text: list[str] = (),
    file: str | None = None,
    out: str | None = None,
    references: str | None = None,
    runtime: str = "keras",
    num_beams: int | None = None,
    length_penalty: float | None = None,
    max_new_tokens: int | None = None,
    threads: int = 0,
    json: str | None = None,
):
    """Translate sentences with a model that `tfgpt train --task translation` made, or with its release.

    Args:
        model: a model directory, or a release directory.
        text: one or more sentences.
        file: a text file, a sentence a line; .gz is unpacked.
        out: write the translations to this file, a line each, instead of printing them.
        references: a text file with a translation of each line of `file`, to measure BLEU and chrF against.
        runtime: keras for a model directory; saved_model or onnx for a release.
        num_beams: of beam search; 1 takes the likeliest token a step. By default generation_config.json's, as for the
            next two.
        length_penalty: beam search ranks by log-probability / length ** length_penalty.
        max_new_tokens: the most tokens of a translation; where nobody says, twice its source's and 16.
        threads: of ONNX Runtime; 0 lets it choose.
        json: also write the translations and the scores to this file.
    """
    if bool(text) == (file is not None):
        raise UserError(f"found {'both --text and --file' if text else 'neither --text nor --file'}, expected one")
    if references is not None and file is None:
        raise UserError("--references is given without --file, expected the file that they are translations of")
    from tfgpt.cli.progress import STDERR, show_fraction
    from tfgpt.text import read_sentence_pairs, read_sentences

    expected = None
    if references is not None:
        pairs = read_sentence_pairs(file, references)
        sources, expected = pairs.sources, pairs.targets
    else:
        sources = list(text) if text else read_sentences(file)
    from tfgpt.runtime.translator import default_settings

    given = {"num_beams": num_beams, "length_penalty": length_penalty, "max_new_tokens": max_new_tokens}
    settings = {name: value for name, value in given.items() if value is not None}
    if len(settings) < len(given):
        settings = default_settings(model) | settings
    with show_fraction("translating") as on_progress:
        tokenizer, translations = _translate(model, runtime, threads, sources, file, settings, on_progress)
    if out is not None:
        write_text(out, "".join(f"{line}\n" for line in translations))
    else:
        print(*translations, sep="\n")
    figures = {"translations": translations, "runtime": runtime, **settings}
    if expected is not None:
        from tfgpt.training.translation_scores import score_translations

        scores = score_translations(translations, expected, tokenizer.lowercases)
        # Beside translations that go to standard output, the scores are for whoever watches.
        for line in scores.lines():
            print(line) if out is not None else STDERR.print(line, highlight=False, soft_wrap=True)
        figures |= dataclasses.asdict(scores)
    write_json(json, figures)


def _translate(model, runtime, threads, sources, file, settings, on_progress):
    """The tokenizer of a model or release, and its translations."""
    if runtime == "keras":
        if (pathlib.Path(model) / "manifest.json").is_file():
            raise UserError(f"{model} is a release directory, expected --runtime saved_model or onnx with it")
        import_tensorflow()
        from tfgpt.models import EncoderDecoderTransformer

        translator = EncoderDecoderTransformer.from_preset(model)
        _check_lines(translator.tokenizer, translator.backbone.max_sequence_length, sources, file)
        return translator.tokenizer, translator.translate(sources, on_progress=on_progress, **settings)
    if runtime != "onnx":
        import_tensorflow()
    from tfgpt.runtime import open_translator
    from tfgpt.text import load_tokenizer

    translator = open_translator(model, runtime, threads)
    tokenizer = load_tokenizer(model)
    _check_lines(tokenizer, translator.window, sources, file)
    return tokenizer, translator.translate(tokenizer, sources, on_progress=on_progress, **settings)


def _check_lines(tokenizer, window, sentences, file):
    """Refuses a file with a sentence that is longer than the window, naming its line."""
    for line, token_ids in enumerate(tokenizer.encode_batch(sentences if file else ()), start=1):
        if len(token_ids) >= window:
            raise UserError(
                f"{file}, line {line}: the sentence has {len(token_ids) + 1} tokens with its end, expected at most the "
                f"window's {window}"
            )
