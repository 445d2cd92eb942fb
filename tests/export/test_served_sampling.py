"""Samplers inside a SavedModel: what they draw, from which numbers, and that each row has its own."""

import numpy as np
import pytest

from tests.export.served_model import DEFAULTS, new_tokens, strings

DRAWS = 20_000
PROMPT = "ab"
# The 0.999 quantiles of chi-square by degrees of freedom; seeds are fixed, so a test passes always or never.
CHI_SQUARE = {
    **{1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 6: 22.46, 7: 24.32, 8: 26.12, 9: 27.88, 10: 29.59},
    **{11: 31.26, 12: 32.91, 13: 34.53, 14: 36.12, 15: 37.70, 16: 39.25, 17: 40.79, 18: 42.31, 19: 43.82, 20: 45.31},
    **{21: 46.80, 22: 48.27, 23: 49.73, 24: 51.18, 25: 52.62, 26: 54.05, 27: 55.48, 28: 56.89, 29: 58.30, 30: 59.70},
    **{31: 61.10, 32: 62.49, 33: 63.87, 34: 65.25, 35: 66.62},
}
SAMPLED = {"temperature": 1.1, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.2}


def probabilities_after(model, context, temperature, top_k=0, top_p=1.0, repetition_penalty=1.0, seen=None):
    """What `GenerationSettings` says a token's probability is, in NumPy."""
    logits = model(np.array([context])).numpy()[0, -1].astype(np.float64)
    seen = np.isin(np.arange(len(logits)), context if seen is None else seen)
    penalized = np.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
    logits = np.where(seen, penalized, logits) / temperature
    order = np.argsort(-logits, kind="stable")
    if top_k:
        logits[order[top_k:]] = -np.inf
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    mass_before = np.cumsum(probabilities[order]) - probabilities[order]
    probabilities[order[mass_before >= top_p]] = 0
    return probabilities / probabilities.sum()


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 2.5},
        {"temperature": 6.0},
        {"temperature": 6.0, "top_k": 3},
        {"temperature": 6.0, "top_k": 99},
        {"temperature": 6.0, "top_p": 0.7},
        {"temperature": 4.0, "top_k": 5, "top_p": 0.8},
        {"temperature": 4.0, "repetition_penalty": 2.0},
    ],
    ids=str,
)
def test_pairs_of_tokens_have_the_probabilities_that_were_asked_for(served_characters, character_model, settings):
    """The first token comes from the prompt, the second from the loop and the first: 36 outcomes at most."""
    context = character_model.tokenizer.encode(PROMPT)
    stops = (1, 3)  # after which there is no second token
    expected = np.zeros((6, 7))
    first = probabilities_after(character_model, context, **settings)
    for token in np.flatnonzero(first):
        if token in stops:
            expected[token, 6] = first[token]
        else:
            second = probabilities_after(character_model, [*context, token], **settings)
            expected[token, :6] = first[token] * second
    outputs = served_characters(
        "generate_text", text=[PROMPT] * DRAWS, max_new_tokens=2, seed=np.arange(DRAWS) + 10**6, **settings
    )
    observed = np.zeros((6, 7))
    pairs = [(row[0], row[1] if len(row) > 1 else 6) for row in new_tokens(outputs)]
    np.add.at(observed, tuple(np.transpose(pairs)), 1)

    assert expected.sum() == pytest.approx(1)
    assert observed[expected == 0].sum() == 0
    # Outcomes that are too rare for the statistic's distribution are counted together.
    often = expected * DRAWS >= 5
    rare = (expected * DRAWS)[~often].sum()
    counts, means = observed[often], expected[often] * DRAWS
    if rare >= 5:
        counts, means = np.append(counts, observed[~often].sum()), np.append(means, rare)
    assert len(counts) > 2  # else nothing was sampled
    assert ((counts - means) ** 2 / means).sum() < CHI_SQUARE[len(counts) - 1]


def test_the_same_seed_gives_the_same_text_alone_and_in_a_batch(served, bpe_model):
    texts = ["import os", "x", "class Reader:\n    def", "x", "x"]
    seeds = [7, 7, 2**61, 8, 7]
    together = served("generate_text", text=texts, seed=seeds, max_new_tokens=20, **SAMPLED)
    found = strings(together.text)
    assert found[1] == found[4] != found[3]
    assert strings(served("generate_text", text=texts, seed=seeds, max_new_tokens=20, **SAMPLED).text) == found
    for row, (text, seed) in enumerate(zip(texts, seeds, strict=True)):
        alone = served("generate_text", text=[text], seed=[seed], max_new_tokens=20, **SAMPLED)
        assert strings(alone.text) == [found[row]]
    assert found == bpe_model.generate(texts, seed=tuple(seeds), max_new_tokens=20, **SAMPLED)


@pytest.mark.parametrize("seed", [-(2**63), -1, 2**63 - 1])
def test_any_seed_will_do(served, seed):
    first, again, other = (
        served("generate_text", text=["import"], seed=[s], temperature=1.0).text for s in (seed, seed, seed ^ 1)
    )
    assert first == again != other


def test_settings_are_a_rows_own(served):
    """Requests that share a server's batch: each setting has another value in each row."""
    rows = {
        "text": ["def f(x):", "import", "a", "return None", "  ", "for i in range(10):\n"],
        "max_new_tokens": [3, 17, 9, 1, 12, 20],
        "temperature": [0.0, 1.0, 3.0, 0.7, 0.0, 2.0],
        "top_k": [0, 4, 0, 50, 1, 3],
        "top_p": [1.0, 1.0, 0.8, 0.5, 0.01, 1.0],
        "repetition_penalty": [1.0, 1.0, 1.3, 1.0, 2.0, 0.7],
        "seed": [0, 5, -5, 2**40, 9, 9],
    }
    together = served("generate_text", **rows)
    alone = [served("generate_text", **{name: [values[i]] for name, values in rows.items()}) for i in range(6)]
    assert new_tokens(together) == [new_tokens(outputs)[0] for outputs in alone]
    assert strings(together.text) == [strings(outputs.text)[0] for outputs in alone]
    # Each of them matters: a batch that had the default in its place would say something else.
    for name in ("temperature", "top_k", "top_p", "repetition_penalty", "seed"):
        assert strings(served("generate_text", **{**rows, name: DEFAULTS[name]}).text) != strings(together.text)


def test_repetition_penalty_is_that_of_keras(served, bpe_model):
    texts = ["import os, sys, os", "self.self.self."]
    for penalty in (1.5, 0.5):
        found = strings(served("generate_text", text=texts, repetition_penalty=penalty, max_new_tokens=20).text)
        assert found == bpe_model.generate(texts, repetition_penalty=penalty, max_new_tokens=20)
        assert found != strings(served("generate_text", text=texts, max_new_tokens=20).text)


def test_padding_is_no_token_that_was_seen(served_characters, character_model):
    """Padding is token 0 to the graph, here "a"; the penalty is for the prompt's own tokens."""
    texts = [character * count for character in "bcdef" for count in (1, 2, 3, 4)]
    contexts = [character_model.tokenizer.encode(text) for text in texts]

    def likeliest(seen):
        probabilities = [
            probabilities_after(character_model, context, 1.0, repetition_penalty=3.0, seen=[*context, *seen])
            for context in contexts
        ]
        return ["abcdef"[after.argmax()] for after in probabilities]

    expected = likeliest(seen=[])
    assert likeliest(seen=[0]) != expected
    request = {"text": [*texts, "bcdefbcdef"], "repetition_penalty": 3.0, "max_new_tokens": 1}
    outputs = served_characters("generate_text", **request)
    assert ["abcdef"[row[0]] for row in new_tokens(outputs)][:-1] == expected
