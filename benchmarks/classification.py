"""An encoder from scratch beside a bag of words on labelled sentences: classification.py TRAIN DEV [--seeds 0 1 2].

Runs `tfgpt train --config configs/sst2_encoder.yaml` once a seed, validating at the last step alone, so that nothing is
chosen by the dev set; beside it scikit-learn's logistic regression on counts of words, its regularization chosen by
cross-validation on the training set. Prints accuracies on the dev set, and writes build/bench/classification.json.
"""

import argparse
import csv
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "sst2_encoder.yaml"
STRENGTHS = (0.03, 0.1, 0.3, 1.0)  # of which cross-validation chooses


def main():
    """Parses the command line and runs the contestants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=pathlib.Path, help="a TSV file, sentence TAB label")
    parser.add_argument("dev", type=pathlib.Path, help="the same, to measure on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="in place of the configuration's")
    arguments = parser.parse_args()
    for path in (arguments.train, arguments.dev):
        if not path.is_file():
            parser.error(f"{path} is missing, expected sentences and their labels")
    results = [
        {"who": f"logistic regression, {what}", **bag_of_words(arguments.train, arguments.dev, grams)}
        for what, grams in (("words", (1, 1)), ("words and pairs of words", (1, 2)))
    ]
    runs = [run_encoder(arguments.train, arguments.dev, seed, arguments.steps) for seed in arguments.seeds]
    results += [{"who": f"tfgpt encoder, seed {seed}", **run} for seed, run in zip(arguments.seeds, runs)]
    for result in results:
        figures = f"{result['accuracy']:7.2%}  macro F1 {result['macro_f1']:.4f}  {result['seconds']:5.0f} s"
        print(f"{result['who']:46s} {figures}")
    mean = statistics.mean(run["accuracy"] for run in runs)
    print(f"tfgpt encoder, mean of {len(runs)} seeds: {mean:.2%}")
    out = ROOT / "build" / "bench" / "classification.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"mean_accuracy": mean, "results": results}, indent=2) + "\n")


def run_encoder(train, dev, seed, steps=None):
    """Our process, from the command line to the model directory: metrics of the last weights."""
    import yaml

    steps = steps or yaml.safe_load(CONFIG.read_text())["steps"]
    with tempfile.TemporaryDirectory() as folder:
        figures = pathlib.Path(folder) / "figures.json"
        command = [sys.executable, "-m", "tfgpt.cli", "train", "--config", str(CONFIG), "--data", str(train)]
        command += ["--validation-data", str(dev), "--out", f"{folder}/model", "--seed", str(seed)]
        command += ["--steps", str(steps), "--evaluate-every", str(steps), "--warmup-steps", str(min(100, steps // 10))]
        start = time.perf_counter()
        process = subprocess.run([*command, "--json", str(figures)], cwd=ROOT, capture_output=True, text=True)
        if process.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{process.stderr}")
        found = json.loads(figures.read_text())
    metrics = {name: found["metrics"][name] for name in ("accuracy", "macro_f1", "loss")}
    return {**metrics, "parameters": found["parameters"], "seconds": time.perf_counter() - start}


def bag_of_words(train, dev, grams):
    """scikit-learn's logistic regression on which words a sentence has: metrics on the dev set."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    start = time.perf_counter()
    (texts, labels), (dev_texts, dev_labels) = read(train), read(dev)
    # Words as they stand between spaces: the sentences are tokenized, and "n't" and "." say something.
    counts = CountVectorizer(binary=True, ngram_range=grams, token_pattern=r"\S+")
    pipeline = make_pipeline(counts, LogisticRegression(solver="liblinear"))
    search = GridSearchCV(pipeline, {"logisticregression__C": STRENGTHS}, cv=5)
    found = search.fit(texts, labels).predict(dev_texts)
    return {
        "accuracy": float(accuracy_score(dev_labels, found)),
        "macro_f1": float(f1_score(dev_labels, found, average="macro")),
        "seconds": time.perf_counter() - start,
    }


def read(path):
    """Sentences and labels of a TSV file."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [text for text, _ in rows], [label for _, label in rows]


if __name__ == "__main__":
    main()
