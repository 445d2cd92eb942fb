"""The tokenizer in a TensorFlow graph against the `tokenizers` library: python -m benchmarks.in_graph_tokenizer.

Counts texts whose ids differ and measures speed, in one run, for GPT-2's files or for a vocabulary trained here on the
standard library's source. Mismatches make the exit code 1.
"""

import argparse
import base64
import math
import pathlib
import random
import string
import sys
import sysconfig
import tempfile
import time

import tensorflow as tf
import tokenizers

from benchmarks import report
from tfgpt.text import END_OF_TEXT, BytePairTokenizer, valid_utf8
from tfgpt.text.in_graph_tokenizer import in_graph_tokenizer

BATCH_BYTES = 2**20  # about how much is compared at once
PASSAGES, PASSAGE_LENGTH, PROMPT_LENGTH = 64, 4096, 1000

POOLS = [
    *("abcdefghijklmnop ABC", "0123456789", "   \t\n\r  ", "'s't're'll I'm've'd", "!?.,;:()[]{}#@", "éüñçßøæœ"),
    *(
        "中文字符日本語한국어",
        "🙂👍🏽👨\u200d👩\u200d👧\u200d👦",
        "²³½Ⅷ٣९",
        "a\u0301e\u0308",
        "\x00\x1c\x1d\x1e\x1f\x7f",
    ),
    "\u00a0\u2003\u200b\u3000\ufeff\u2028\u2029\u0085\u1680\u202f\u205f\x0b\x0c ",
]
CONTRACTIONS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'RE", "'Ll", "'ſ", "'r", "'l", "'", "’s", "ʼt"]
GLUE = ["a", "s", "é", "1", "!", " ", "  ", "\n", "\u00a0", "\u0301", "_", "''"]
SPECIAL = [END_OF_TEXT, "<|endoftext|", "|endoftext|>", "<|endof", "text|>", "<|", "|>", "<", "<|ENDOFTEXT|>"]


def strings(count, seed=0):
    """`count` random strings of the kinds that break tokenizers, most of them short."""
    generator = random.Random(seed)
    kinds = [_from_pools, _from_pools, _contractions, _special_tokens, _any_code_points, _runs]
    return [kinds[i % len(kinds)](generator) for i in range(count)]


def _from_pools(generator):
    return "".join(generator.choice(generator.choice(POOLS)) for _ in range(generator.randint(1, 25)))


def _contractions(generator):
    return "".join(generator.choice(generator.choice([CONTRACTIONS, GLUE])) for _ in range(generator.randint(1, 12)))


def _special_tokens(generator):
    return "".join(generator.choice(generator.choice([SPECIAL, GLUE])) for _ in range(generator.randint(1, 8)))


def _any_code_points(generator):
    text = ""
    for _ in range(generator.randint(1, 12)):
        code_point = generator.randrange(generator.choice([0x80, 0x3000, 0x20000, 0x110000]))
        text += chr(code_point) if not 0xD800 <= code_point < 0xE000 else " "
    return text


def _runs(generator):
    parts = range(generator.randint(1, 3))
    return "".join(
        generator.choice(generator.choice(POOLS)) * int(math.exp(generator.uniform(0, math.log(500)))) for _ in parts
    )


def long_words(size=100_000, seed=0):
    """Words of 100 kB without a break in them: dict from names to texts."""
    generator = random.Random(seed)
    return {
        "random letters": "".join(generator.choices(string.ascii_lowercase, k=size)),
        "one letter": "a" * size,
        "two letters": "".join(generator.choices("ab", k=size)),
        "base64": base64.b64encode(generator.randbytes(size * 3 // 4)).decode(),
        "DNA": "".join(generator.choices("ACGT", k=size)),
        "one symbol": "-" * size,
        "spaces": " " * size,
        "Chinese": "".join(generator.choices("的一是不了人我在有他这为之大来以个中上们", k=size // 3)),
    }


def main():
    """Parses the command line, compares and measures."""
    arguments = parse_arguments()
    load = report.warn_if_busy()
    source = [path.read_text(encoding="utf-8", errors="replace") for path in standard_library()]
    if arguments.vocabulary:
        tokenizer = BytePairTokenizer.from_files(arguments.vocabulary, arguments.merges)
    else:
        tokenizer = BytePairTokenizer.train(source, vocabulary_size=arguments.vocabulary_size)
    contest = Contest(tokenizer)
    texts = {str(path): path.read_text(encoding="utf-8", errors="replace") for path in arguments.text}
    fuzzed = strings(arguments.strings)
    sets = {
        "fuzzed strings": fuzzed,
        "fuzzed texts of 100 kB": fuzzed_texts(fuzzed),
        "standard library, files": source,
        **{f"{name}, passages of {PASSAGE_LENGTH}": passages(text) for name, text in texts.items()},
        **{f"{name}, whole": [text] for name, text in texts.items()},
        "words of 100 kB": list(long_words().values()),
    }
    cells, wrong = [], 0
    for name, members in sets.items():
        count, wrong_ids, wrong_text, megabytes = contest.mismatches(members)
        wrong += wrong_ids + wrong_text
        cells.append([name, f"{count}", f"{megabytes:.1f}", f"{wrong_ids}", f"{wrong_text}"])
        print(f"{name}: {wrong_ids} of {count} differ in ids, {wrong_text} in decoded text", flush=True)
    wrong_text = contest.wrong_decodings(arguments.strings)
    wrong += wrong_text
    cells.append(["random ids", f"{arguments.strings}", "–", "–", f"{wrong_text}"])
    english = "".join(texts.values()) or "\n".join(source)
    print()
    print(report.markdown_table(["", "texts", "MB", "other ids", "other decoded text"], cells))
    print(report.markdown_table(["", "in the graph", "tokenizers library"], contest.speed(english, arguments.repeats)))
    print(f"best of {arguments.repeats}; vocabulary of {tokenizer.vocabulary_size}; load average {load}")
    return 1 if wrong else 0


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.in_graph_tokenizer", description=__doc__)
    parser.add_argument("--vocabulary", type=pathlib.Path, metavar="FILE", help="vocab.json or encoder.json")
    parser.add_argument("--merges", type=pathlib.Path, metavar="FILE", help="merges.txt or vocab.bpe")
    parser.add_argument("--vocabulary-size", type=int, default=16000, help="of the vocabulary trained without files")
    parser.add_argument("--text", type=pathlib.Path, nargs="*", default=[], metavar="FILE", help="more texts")
    parser.add_argument("--strings", type=int, default=100_000, help="how many fuzzed strings")
    parser.add_argument("--repeats", type=int, default=5, help="how often each speed is measured")
    arguments = parser.parse_args()
    if (arguments.vocabulary is None) != (arguments.merges is None):
        parser.error("--vocabulary and --merges belong together; expected both or none")
    return arguments


def standard_library():
    """The paths of the standard library's source files, its tests included."""
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    return [path for path in sorted(folder.rglob("*.py")) if "site-packages" not in path.parts]


def passages(text):
    """A text in passages of `PASSAGE_LENGTH` characters."""
    return [text[start : start + PASSAGE_LENGTH] for start in range(0, len(text), PASSAGE_LENGTH)]


def fuzzed_texts(fuzzed):
    """Texts of about 100 kB out of fuzzed strings: a tenth of the strings at most."""
    texts, text = [], ""
    for member in fuzzed[: len(fuzzed) // 10]:
        text += member
        if len(text.encode()) >= 100_000:
            texts.append(text)
            text = ""
    return [*texts, text]


class Contest:
    """The tokenizer in a graph, loaded from a SavedModel, beside the library, which opens its own file.

    Args:
        tokenizer: a `BytePairTokenizer`.
    """

    def __init__(self, tokenizer):
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save(folder)
            self._library = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
        self._vocabulary_size = tokenizer.vocabulary_size
        start = time.perf_counter()
        module = in_graph_tokenizer(tokenizer)
        module.encode_texts = tf.function(module.encode, input_signature=[tf.TensorSpec([None], tf.string)])
        module.decode_ids = tf.function(
            lambda token_ids: valid_utf8(module.decode(token_ids)),
            input_signature=[tf.RaggedTensorSpec([None, None], tf.int32, 1)],
        )
        with tempfile.TemporaryDirectory() as folder:
            tf.saved_model.save(module, folder)
            size = sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*") if path.is_file())
            print(f"built and saved in {time.perf_counter() - start:.2f} s: {size / 1e6:.1f} MB", flush=True)
            self._graph = tf.saved_model.load(folder)

    def mismatches(self, texts):
        """(texts, those with other ids, those whose ids decode to other text, MB)."""
        wrong_ids = wrong_text = size = 0
        for batch in _batches(texts):
            token_ids = self._graph.encode_texts(tf.constant(batch))
            decoded = self._graph.decode_ids(token_ids).numpy()
            expected_ids = [encoding.ids for encoding in self._library.encode_batch(batch)]
            for text, ids, expected, back in zip(batch, token_ids.to_list(), expected_ids, decoded):
                size += len(text.encode())
                wrong_text += back.decode() != self._library.decode(expected, skip_special_tokens=False)
                if ids != expected:
                    wrong_ids += 1
                    print(f"  {text[:60]!r}: {ids[:8]}, expected {expected[:8]}", flush=True)
        return len(texts), wrong_ids, wrong_text, size / 1e6

    def wrong_decodings(self, count, seed=0):
        """Of `count` rows of random ids, few of which are whole characters, those that decode to other text."""
        generator = random.Random(seed)
        sizes = [generator.choice([256, self._vocabulary_size]) for _ in range(count)]  # the first 256 are bytes
        rows = [[generator.randrange(size) for _ in range(generator.randrange(12))] for size in sizes]
        decoded = self._graph.decode_ids(tf.ragged.constant(rows, tf.int32, 1)).numpy()
        expected = [self._library.decode(row, skip_special_tokens=False) for row in rows]
        return sum(ours.decode() != theirs for ours, theirs in zip(decoded, expected))

    def speed(self, text, repeats):
        """Rows of a table: name, of the graph, of the library."""
        batch = passages(text)[:PASSAGES]
        size = sum(len(passage.encode()) for passage in batch) / 1e6
        rows = [self._row(f"encoding {PASSAGES} × {PASSAGE_LENGTH}, MB/s", batch, repeats, lambda s: f"{size / s:.1f}")]
        ids = self._graph.encode_texts(tf.constant(batch))
        lists = ids.to_list()
        ours = _best(lambda: self._graph.decode_ids(ids), repeats)
        library = _best(lambda: [self._library.decode(row, skip_special_tokens=False) for row in lists], repeats)
        rows.append(["decoding the same, MB/s", f"{size / ours:.1f}", f"{size / library:.1f}"])
        prompt = [text[:PROMPT_LENGTH]]
        rows.append(
            self._row(f"a prompt of {PROMPT_LENGTH} characters, ms", prompt, repeats, lambda s: f"{1e3 * s:.2f}")
        )
        for name, word in long_words().items():
            rows.append(self._row(f"a word of 100 kB, {name}, s", [word], repeats, lambda s: f"{s:.3f}"))
        return rows

    def _row(self, name, texts, repeats, form):
        tensor = tf.constant(texts)
        ours = _best(lambda: self._graph.encode_texts(tensor), repeats)
        return [name, form(ours), form(_best(lambda: self._library.encode_batch(texts), repeats))]


def _batches(texts):
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_BYTES or len(batch) == 4096:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _best(call, repeats):
    seconds = []
    for _ in range(repeats + 1):  # the first also warms up
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    sys.exit(main())
