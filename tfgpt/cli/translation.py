"""The `translate` command: texts, or a file of them, through a translation model."""

from __future__ import annotations

import dataclasses

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
    num_beams: int = 5,
    length_penalty: float = 1.0,
    max_new_tokens: int | None = None,
    json: str | None = None,
):
    """Translate sentences with a model that `tfgpt train --task translation` made.

    Args:
        model: a model directory.
        text: one or more sentences.
        file: a text file, a sentence a line; .gz is unpacked.
        out: write the translations to this file, a line each, instead of printing them.
        references: a text file with a translation of each line of `file`, to measure BLEU and chrF against.
        num_beams: of beam search; 1 takes the likeliest token a step.
        length_penalty: beam search ranks by log-probability / length ** length_penalty.
        max_new_tokens: the most tokens of a translation; by default twice its source's and 16.
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
    import_tensorflow()
    from tfgpt.models import EncoderDecoderTransformer
    from tfgpt.training.translation_scores import score_translations

    translator = EncoderDecoderTransformer.from_preset(model)
    if file is not None:
        _check_lines(translator, sources, file)
    settings = {"num_beams": num_beams, "length_penalty": length_penalty, "max_new_tokens": max_new_tokens}
    with show_fraction("translating") as on_progress:
        translations = translator.translate(sources, on_progress=on_progress, **settings)
    if out is not None:
        write_text(out, "".join(f"{line}\n" for line in translations))
    else:
        print(*translations, sep="\n")
    figures = {"translations": translations, **settings}
    if expected is not None:
        scores = score_translations(translations, expected, translator.tokenizer.lowercases)
        # Beside translations that go to standard output, the scores are for whoever watches.
        for line in scores.lines():
            print(line) if out is not None else STDERR.print(line, highlight=False, soft_wrap=True)
        figures |= dataclasses.asdict(scores)
    write_json(json, figures)


def _check_lines(translator, sentences, file):
    """Refuses a file with a sentence that is longer than the window, naming its line."""
    window = translator.backbone.max_sequence_length
    for line, token_ids in enumerate(translator.tokenizer.encode_batch(sentences), start=1):
        if len(token_ids) >= window:
            raise UserError(
                f"{file}, line {line}: the sentence has {len(token_ids) + 1} tokens with its end, expected at most the "
                f"window's {window}"
            )
