import types

import numpy as np
import pytest

from tfgpt.export import export_release
from tfgpt.export.keras_runner import KerasRunner
from tfgpt.models import GPT2CausalLM
from tfgpt.text import BytePairTokenizer

WORDS = ["some", "words", "to", "merge", "again", "and", "some", "more", "that", "no", "one", "will", "ever", "read"]


@pytest.fixture(scope="package")
def exported(tmp_path_factory):
    """A random model whose text is varied, its release, and the Keras model as a runner."""
    folder = tmp_path_factory.mktemp("runtime")
    rng = np.random.default_rng(0)
    text = " ".join(rng.choice(WORDS, 2000))
    (folder / "text.txt").write_text(text)
    model = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=1, vocabulary_size=280)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            # Less for the tied embedding, or each token would be followed by itself.
            variable.assign(variable * (8.0 if variable is model.backbone.token_embedding.embeddings else 16.0))
    model.tokenizer = BytePairTokenizer.train([text], vocabulary_size=280)
    model.save_to_preset(folder / "model")
    export_release(folder / "model", folder / "release", name="served", text=folder / "text.txt")
    return types.SimpleNamespace(
        model=model, release=folder / "release", directory=folder / "model", keras=KerasRunner(model)
    )
