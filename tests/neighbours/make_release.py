"""Trains two small models and makes up a third, exports them, and writes beside each release what its Keras model says.

    python tests/neighbours/make_release.py FOLDER

Run in tfgpt's own environment: the neighbours' has no TensorFlow, and reads nothing but the files.
"""

import json
import pathlib
import random
import sys

import keras
import numpy as np

from tfgpt.context_window import pad_left
from tfgpt.export import export_release
from tfgpt.export.release import load_for_export
from tfgpt.generation import translate_token_ids
from tfgpt.models import EncoderDecoderBackbone, EncoderDecoderTransformer
from tfgpt.text import train_joint_tokenizer
from tfgpt.training.run_config import RunConfig
from tfgpt.training.trainer import train
from tfgpt.translation_sources import encode_sources, pad_sources

NOUNS = ["king", "river", "lamp", "cat", "dog", "tree"]
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
PROMPTS = {
    "byte_pairs": ["The king", "one two", "Le café naïf: 日本", "three  four\n", "T", "five six seven eight nine"],
    "characters": ["The king", "one two three four five six", "e", " ten eleven\nThe"],
}
MAX_NEW_TOKENS = 24


def write_texts(folder):
    """A text file for each tokenizer; in that for byte pairs texts end, so that its model learns to stop."""
    rng = random.Random(0)
    texts = dict.fromkeys(PROMPTS, "")
    for i in range(400):
        start = rng.randrange(len(NUMBERS))
        numbers = " ".join(NUMBERS[start:] + NUMBERS[:start])
        story = "The {} sees the {}.".format(*rng.sample(NOUNS, 2))
        texts["characters"] += f"{story}\n{numbers}\n"
        texts["byte_pairs"] += f"{story}<|endoftext|>{numbers if i % 4 else 'Le café naïf: 日本, 日本.'}\n"
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")


def make_release(text, tokenizer, prompts, folder):
    config = RunConfig(
        data=[str(text)],
        out=str(folder / "model"),
        tokenizer=tokenizer,
        preset="gpt2-test",
        num_layers=3,
        num_heads=4,
        max_sequence_length=64,
        steps=300,
        batch_size=8,
        learning_rate=1e-2,
        evaluate_every=300,
        sample_tokens=0,
        tensorboard=False,
        compile="none",
    )
    train(config)
    export_release(config.out, folder / "release", formats=("onnx",))
    write_expected(load_for_export(config.out), prompts, folder)


def write_expected(model, prompts, folder):
    """Writes expected.json, the greedy continuation of each prompt, and expected.npz, logits of all in one batch."""
    end_token_id = model.tokenizer.end_token_id
    rows = []
    for prompt in prompts:
        token_ids = model.tokenizer.encode(prompt)
        [new] = model.generate([token_ids], return_prompt=False, max_new_tokens=MAX_NEW_TOKENS)
        text = model.generate(prompt, max_new_tokens=MAX_NEW_TOKENS)
        rows.append({"prompt": prompt, "token_ids": token_ids, "new_token_ids": new, "text": text})
    if end_token_id is not None:
        assert {row["new_token_ids"][-1] == end_token_id for row in rows} == {True, False}, "stopping is to be seen"
    expected = {"max_new_tokens": MAX_NEW_TOKENS, "end_token_id": end_token_id, "rows": rows}
    (folder / "expected.json").write_text(json.dumps(expected), encoding="utf-8")
    token_ids, padding_mask = pad_left([row["token_ids"] + row["new_token_ids"] for row in rows])
    logits = np.asarray(model({"token_ids": token_ids, "padding_mask": padding_mask}))
    np.savez(folder / "expected.npz", token_ids=token_ids, padding_mask=padding_mask, logits=logits)


def make_translation(folder):
    """A release of a translation model of random weights, and logits and greedy translations of its sentences."""
    keras.utils.set_random_seed(1)
    tokenizer = train_joint_tokenizer([f"{noun} {number}" for noun in NOUNS for number in NUMBERS], 320)
    # Shared and scaled embeddings would make a random model repeat its last token.
    sizes = {"num_heads": 2, "hidden_dim": 32, "max_sequence_length": 48, "share_embeddings": False}
    backbone = EncoderDecoderBackbone(tokenizer.vocabulary_size, 2, 3, scale_embeddings=False, **sizes)
    model = EncoderDecoderTransformer(backbone, tokenizer=tokenizer)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1 and "embedding" not in variable.path:
            variable.assign(variable * 3.0)
    model.save_to_preset(folder / "model")
    texts = ["king one two", "river", "cat dog tree seven eight", "lamp three"]
    (folder / "pairs.tsv").write_text("".join(f"{text}\t{text}\n" for text in texts), encoding="utf-8")
    export_release(folder / "model", folder / "release", formats=("onnx",), text=folder / "pairs.tsv")
    sources = encode_sources(tokenizer, texts)
    found = translate_token_ids(
        model, sources, tokenizer.bos_token_id, tokenizer.eos_token_id, max_new_tokens=16, num_beams=1
    )
    greedy, _ = pad_sources([tokens for tokens, _ in found], 16)
    source_ids, source_padding_mask = pad_sources(sources)
    target_ids = np.pad(greedy[:, :-1], ((0, 0), (1, 0)), constant_values=tokenizer.bos_token_id)
    inputs = {"source_ids": source_ids, "source_padding_mask": source_padding_mask, "target_ids": target_ids}
    np.savez(folder / "expected.npz", greedy=greedy, logits=np.asarray(model(inputs)), **inputs)


def main(folder):
    write_texts(folder)
    for name, tokenizer in (("byte_pairs", "bpe"), ("characters", "character")):
        make_release(folder / f"{name}.txt", tokenizer, PROMPTS[name], folder / name)
    make_translation(folder / "translation")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
