"""BLEU and chrF of translations, by sacrebleu."""

from __future__ import annotations

import dataclasses

from tfgpt.errors import UserError


@dataclasses.dataclass(frozen=True)
class TranslationScores:
    """How near translations are to the references.

    Args:
        bleu: corpus BLEU, 0 to 100 (Papineni et al. 2002), sacrebleu's (Post 2018).
        chrf: chrF2, 0 to 100 (Popović 2015).
        bleu_signature, chrf_signature: sacrebleu's, which say how they were computed.
    """

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str

    def lines(self):
        """What to print of them."""
        return [f"BLEU {self.bleu:.2f}   {self.bleu_signature}", f"chrF {self.chrf:.2f}   {self.chrf_signature}"]


def score_translations(translations, references, lowercase=False):
    """BLEU and chrF of plain text against one reference each; sacrebleu tokenizes it by its own "13a".

    Args:
        translations, references: lists of str of the same length.
        lowercase: whether both are lower-cased first.

    Raises:
        UserError: if there are not as many references as translations.

    Example:

    >>> scores = score_translations(["The cat sat on the mat ."], ["the cat sat on the mat ."], lowercase=True)
    >>> scores.bleu, scores.bleu_signature.partition("|version")[0]
    (100.0, 'nrefs:1|case:lc|eff:no|tok:13a|smooth:exp')
    """
    from sacrebleu.metrics import BLEU, CHRF

    if len(translations) != len(references):
        raise UserError(f"there are {len(references)} references, expected the {len(translations)} of the translations")
    bleu, chrf = BLEU(lowercase=lowercase), CHRF(lowercase=lowercase)
    return TranslationScores(
        bleu=round(bleu.corpus_score(translations, [references]).score, 4),
        chrf=round(chrf.corpus_score(translations, [references]).score, 4),
        bleu_signature=str(bleu.get_signature()),
        chrf_signature=str(chrf.get_signature()),
    )
