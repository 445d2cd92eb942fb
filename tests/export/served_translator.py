"""A trained translation model of a few seconds, for tests: numbers in English to numbers in reversed German."""

import random

ENGLISH = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
GERMAN = ["eins", "zwei", "drei", "vier", "fünf", "Sechs", "sieben", "Acht", "neun", "zehn"]


def sentence_pairs(count, seed=0):
    """Sentences of two to six numbers, and their translations, in the reverse order."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(count):
        numbers = [rng.randrange(10) for _ in range(rng.randint(2, 6))]
        source = " ".join(ENGLISH[i] for i in numbers)
        pairs.append((source.capitalize() + ".", " ".join(GERMAN[i] for i in reversed(numbers)) + "."))
    return pairs


def make_directory(folder, steps=150, seed=0, **options):
    """Trains such a model and writes its model directory, and the held-out pairs as training leaves them."""
    import keras

    from tfgpt.models import EncoderDecoderBackbone, EncoderDecoderTransformer
    from tfgpt.text import train_joint_tokenizer
    from tfgpt.translation_sources import pad_sources

    pairs = sentence_pairs(512)
    tokenizer = train_joint_tokenizer([text for pair in pairs for text in pair], 330, lowercase=True)
    keras.utils.set_random_seed(seed)
    sizes = {"num_heads": 2, "hidden_dim": 32, "intermediate_dim": 64, "max_sequence_length": 32}
    backbone = EncoderDecoderBackbone(tokenizer.vocabulary_size, 2, 2, **{**sizes, **options})
    model = EncoderDecoderTransformer(backbone, tokenizer=tokenizer)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    sources = [[*tokenizer.encode(source), eos] for source, _ in pairs]
    targets = [[bos, *tokenizer.encode(target), eos] for _, target in pairs]
    source_ids, source_mask = pad_sources(sources)
    target_ids, target_mask = pad_sources(targets)
    inputs = {"source_ids": source_ids, "source_padding_mask": source_mask, "target_ids": target_ids[:, :-1]}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(5e-3), loss=loss, jit_compile=False)
    epochs = -(-steps * 32 // len(pairs))
    model.fit(inputs, target_ids[:, 1:], sample_weight=target_mask[:, 1:], batch_size=32, epochs=epochs, verbose=0)
    model.save_to_preset(folder)
    write_held_out(folder / "training", held_out())
    return model


def held_out(count=24):
    """Pairs that were not trained on."""
    return sentence_pairs(count, seed=1)


def write_held_out(folder, pairs):
    """The files that training leaves of its validation pairs."""
    folder.mkdir(exist_ok=True)
    for side, texts in zip(("source", "target"), zip(*pairs, strict=True), strict=True):
        (folder / f"validation.{side}.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
