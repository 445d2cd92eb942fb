"""GPT-2's ids against the `tokenizers` library's and tiktoken's: python -m benchmarks.tokenizer_ids, with tiktoken.

Counts strings whose ids or decoded text differ, special tokens included, and measures speed, in one run, for GPT-2's
files or for a vocabulary trained here on the standard library's source. Nothing is downloaded: tiktoken's `gpt2`
encoding is made of the same two files. Mismatches make the exit code 1.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time

import tiktoken
import tokenizers
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext import openai_public

from benchmarks import report
from benchmarks.in_graph_tokenizer import long_words, passages, standard_library, strings
from tfgpt.text import END_OF_TEXT, BytePairTokenizer


def tiktoken_encoding(vocabulary_path, merges_path):
    """tiktoken's `gpt2` encoding, of files that lie here."""
    os.environ["TIKTOKEN_CACHE_DIR"] = ""  # it would keep a copy, and give that for other files of the same name
    ranks = data_gym_to_mergeable_bpe_ranks(str(merges_path), str(vocabulary_path))
    return tiktoken.Encoding(
        "gpt2",
        pat_str=openai_public.r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: len(ranks)},
        explicit_n_vocab=len(ranks) + 1,
    )


def library_tokenizer(vocabulary_path, merges_path):
    """The `tokenizers` library's own class for GPT-2's two files."""
    tokenizer = tokenizers.ByteLevelBPETokenizer(str(vocabulary_path), str(merges_path))
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def encoders(vocabulary_path, merges_path):
    """Name to (texts → lists of ids, ids → text): ours first."""
    ours = BytePairTokenizer.from_files(vocabulary_path, merges_path)
    library = library_tokenizer(vocabulary_path, merges_path)
    encoding = tiktoken_encoding(vocabulary_path, merges_path)
    return {
        "tfgpt": (ours.encode_batch, ours.decode),
        "tokenizers": (
            lambda texts: [encoded.ids for encoded in library.encode_batch(texts)],
            lambda ids: library.decode(ids, skip_special_tokens=False),
        ),
        "tiktoken": (
            lambda texts: encoding.encode_batch(texts, allowed_special="all", num_threads=os.cpu_count()),
            encoding.decode,
        ),
    }


def mismatches(found, texts):
    """For each peer, how many texts have other ids than ours, and how many of ours do not come back as the text."""
    ids = {name: encode(texts) for name, (encode, _) in found.items()}
    ours = ids.pop("tfgpt")
    wrong = {name: sum(a != b for a, b in zip(ours, theirs)) for name, theirs in ids.items()}
    lost = sum(decode(row) != text for _, decode in found.values() for row, text in zip(ours, texts))
    return wrong, lost


def main():
    """Parses the command line, compares and measures."""
    arguments = parse_arguments()
    load = report.warn_if_busy()
    source = [path.read_text(encoding="utf-8", errors="replace") for path in standard_library()]
    with tempfile.TemporaryDirectory() as folder:
        paths = arguments.vocabulary, arguments.merges
        if arguments.vocabulary is None:
            BytePairTokenizer.train(source, vocabulary_size=arguments.vocabulary_size).save(folder)
            paths = pathlib.Path(folder, "vocab.json"), pathlib.Path(folder, "merges.txt")
        found = encoders(*paths)
        size = len(json.loads(paths[0].read_text(encoding="utf-8")))
    texts = {str(path): path.read_text(encoding="utf-8", errors="replace") for path in arguments.text}
    sets = {
        "strings": strings(arguments.strings),
        "standard library, files": source,
        "words of 100 kB, 2000 characters of each": [word[:2000] for word in long_words().values()],
        **{f"{name}, passages": passages(text) for name, text in texts.items()},
        **{f"{name}, whole": [text] for name, text in texts.items()},
    }
    cells, total = [], 0
    for name, members in sets.items():
        wrong, lost = mismatches(found, members)
        total += sum(wrong.values()) + lost
        special = sum(END_OF_TEXT in member for member in members)
        cells.append([name, f"{len(members)}", f"{special}", *map(str, wrong.values()), f"{lost}"])
    heading = ["", "texts", f"with {END_OF_TEXT}", "other ids than tokenizers", "than tiktoken", "lost in decoding"]
    print(report.markdown_table(heading, cells))
    batch = passages("".join(texts.values()) or "\n".join(source))[:1000]
    megabytes = sum(len(passage.encode()) for passage in batch) / 1e6
    speeds = [f"{megabytes / best(lambda e=encode: e(batch), arguments.repeats):.1f}" for encode, _ in found.values()]
    print(report.markdown_table(["", *found], [[f"encoding {megabytes:.1f} MB of passages, MB/s", *speeds]]))
    versions = f"tokenizers {tokenizers.__version__}, tiktoken {tiktoken.__version__}"
    print(f"best of {arguments.repeats}; vocabulary of {size}; {versions}; load average {load}")
    return 1 if total else 0


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.tokenizer_ids", description=__doc__)
    parser.add_argument("--vocabulary", type=pathlib.Path, metavar="FILE", help="vocab.json or encoder.json")
    parser.add_argument("--merges", type=pathlib.Path, metavar="FILE", help="merges.txt or vocab.bpe")
    parser.add_argument("--vocabulary-size", type=int, default=16000, help="of the vocabulary trained without files")
    parser.add_argument("--text", type=pathlib.Path, nargs="*", default=[], metavar="FILE", help="more texts")
    parser.add_argument("--strings", type=int, default=100_000, help="how many random strings")
    parser.add_argument("--repeats", type=int, default=3, help="how often each speed is measured")
    arguments = parser.parse_args()
    if (arguments.vocabulary is None) != (arguments.merges is None):
        parser.error("--vocabulary and --merges belong together; expected both or none")
    return arguments


def best(call, repeats):
    """The least seconds of several calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    sys.exit(main())
