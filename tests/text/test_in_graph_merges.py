import random

import numpy as np
import pytest
import tensorflow as tf
from tokenizers import models

from tfgpt.text.in_graph_merges import BytePairMerger

LETTERS = "abc"


def random_merges(generator):
    """Merges of few letters, in an order that no training gives: products before their parts, several ways to one."""
    letters = LETTERS[: generator.randint(1, 3)]
    tokens, merges, longest = list(letters), [], generator.choice([3, 6, 12])
    for _ in range(generator.randint(1, 60)):
        pair = generator.choice(tokens), generator.choice(tokens)
        if len("".join(pair)) <= longest:
            merges.append(pair)
            tokens.append("".join(pair))
    if generator.random() < 0.6:
        ways = [(token[:i], token[i:]) for token in dict.fromkeys(tokens) for i in range(1, len(token))]
        merges += [pair for pair in ways if set(pair) <= set(tokens) and generator.random() < 0.4]
    if generator.random() < 0.7:
        generator.shuffle(merges)
    return letters, list(dict.fromkeys(merges))


def merger_and_witness(merges):
    vocabulary = {chr(byte): byte for byte in range(256)}
    for left, right in merges:
        for token in (left, right, left + right):
            vocabulary.setdefault(token, len(vocabulary))
    merger = BytePairMerger(
        len(vocabulary),
        range(256),
        [(vocabulary[left], vocabulary[right], vocabulary[left + right]) for left, right in merges],
        {token_id: len(token) for token, token_id in vocabulary.items()},
    )
    model = models.BPE(vocabulary, merges)
    return merger, lambda word: [token.id for token in model.tokenize(word)]


@pytest.mark.parametrize("seed", range(60))
def test_any_merges_give_the_librarys_tokens(seed):
    generator = random.Random(seed)
    letters, merges = random_merges(generator)
    merger, witness = merger_and_witness(merges)
    sizes = [generator.randint(1, generator.choice([5, 20, 120])) for _ in range(200)]
    words = ["".join(generator.choices(letters, k=size)) for size in sizes]
    words += [generator.choice(letters) * generator.randint(1, 100) for _ in range(10)]
    assert merger(tf.constant(words)).to_list() == [witness(word) for word in words]


def test_random_merges_hold_hard_cases():
    cases = [random_merges(random.Random(seed))[1] for seed in range(60)]
    several_ways = [merges for merges in cases if len({a + b for a, b in merges}) < len(merges)]
    unordered = [m for m in cases if any({a + b} & set(sum(m[:i], ())) for i, (a, b) in enumerate(m))]
    assert len(several_ways) > 20 and len(unordered) > 20


@pytest.mark.parametrize(
    "merges, word, expected",
    [
        ([("a", "a")], "aaaaa", ["aa", "aa", "a"]),
        ([("b", "a"), ("a", "a")], "baaaa", ["ba", "aa", "a"]),  # the lower rank takes the run's first
        ([("a", "b"), ("a", "a")], "aaaab", ["aa", "a", "ab"]),
        ([("b", "c"), ("a", "bc"), ("a", "b")], "abcab", ["abc", "ab"]),
        # "ab" is made at rank 2, and then goes on at rank 0, before the next "ab" is made.
        ([("ab", "a"), ("c", "b"), ("a", "b")], "ababcb", ["aba", "b", "cb"]),
        ([("a", "b")], "c", ["c"]),
        ([], "ab", ["a", "b"]),
    ],
)
def test_order_of_merges(merges, word, expected):
    merger, witness = merger_and_witness(merges)
    tokens = [chr(i) if i < 256 else None for i in witness(word)]
    assert [token or "?" for token in tokens] == [token if len(token) == 1 else "?" for token in expected]
    assert merger(tf.constant([word])).to_list() == [witness(word)]


def test_no_words():
    merger, _ = merger_and_witness([("a", "b")])
    assert merger(tf.constant([], tf.string)).to_list() == []


def test_long_words_take_few_iterations():
    generator = random.Random(0)
    merges = [(a, b) for a in "abcd" for b in "abcd"]
    merges += [(a + b, c + d) for a, b in merges for c, d in merges]
    merger, witness = merger_and_witness(merges)
    iterations = []
    merge = merger._merge

    def counted(*arguments):
        iterations.append(1)
        return merge(*arguments)

    merger._merge = counted  # eager: called once an iteration
    for word in ("".join(generator.choices("abcd", k=100_000)), "a" * 100_000, "ab" * 50_000):
        iterations.clear()
        assert np.array_equal(merger(tf.constant([word])).values, witness(word))
        assert len(iterations) < 200
