import keras
import numpy as np
import pytest

from tfgpt.models import GPT2Backbone, GPT2CausalLM
from tfgpt.text import BytePairTokenizer


def scaled_up(model, factor=20.0):
    """Makes the matrices of a freshly initialized model larger: its logits are then far apart, its text varied."""
    embeddings = model.backbone.token_embedding.embeddings
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            # Less for the tied embedding, or each token would be followed by itself.
            variable.assign(variable * (factor / 2 if variable is embeddings else factor))
    return model


@pytest.fixture(scope="session")
def model():
    """A random model with a window of 32 tokens."""
    return scaled_up(GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=0))


@pytest.fixture(scope="session")
def tiny_model():
    """A random model of 5 tokens, few enough to try every text."""
    keras.utils.set_random_seed(4)
    backbone = GPT2Backbone(vocabulary_size=5, num_layers=2, num_heads=2, hidden_dim=8, max_sequence_length=12)
    return scaled_up(GPT2CausalLM(backbone), 30.0)


@pytest.fixture(scope="session")
def text_model():
    """A random model with a tokenizer of its 280 tokens."""
    model = scaled_up(GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=1, vocabulary_size=280))
    text = "".join(f"{word} {word[::-1]} " for word in ("some", "words", "to", "merge", "again", "and")) * 9
    model.tokenizer = BytePairTokenizer.train([text], vocabulary_size=280)
    assert model.tokenizer.vocabulary_size == 280
    return model


@pytest.fixture(scope="session")
def prompts():
    """Ragged prompts, two of them longer than the window of 32."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 300, length).tolist() for length in (5, 1, 17, 32, 50, 33)]
