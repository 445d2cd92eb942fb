import math

import numpy as np
import pytest

from tfgpt.errors import UserError
from tfgpt.models import GPT2CausalLM
from tfgpt.training.evaluation import evaluate_tokens


@pytest.fixture(scope="module")
def model():
    model = GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=0, vocabulary_size=11, max_sequence_length=8)
    for variable in model.trainable_variables:
        if len(variable.shape) == 2:
            variable.assign(variable * 20)
    return model


def log_probability(model, context, token):
    logits = np.asarray(model(np.array([context])), np.float64)[0, -1]
    return logits[token] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


@pytest.mark.parametrize("count", [2, 7, 9, 10, 17, 40])
@pytest.mark.parametrize("stride", [1, 3, 4, 8])
def test_every_target_counts_once_with_the_context_that_is_promised(model, count, stride):
    tokens = np.random.default_rng(count).integers(0, 11, count)
    total, right, start, predicted = 0.0, 0, 0, 0
    # The definition, one target at a time.
    while predicted < count - 1:
        for target in range(predicted + 1, min(start + 8, count - 1) + 1):
            context = tokens[start:target]
            total -= log_probability(model, context, tokens[target])
            right += int(np.asarray(model(np.array([context])))[0, -1].argmax() == tokens[target])
            predicted = target
        start += stride
    result = evaluate_tokens(model, tokens, num_bytes=3 * count, stride=stride)
    assert result.tokens == count - 1
    assert result.loss == pytest.approx(total / (count - 1), rel=1e-4)
    assert result.accuracy == pytest.approx(right / (count - 1))
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert result.bits_per_byte == pytest.approx(total / math.log(2) / (3 * count), rel=1e-4)


def test_more_context_never_changes_what_is_counted(model):
    tokens = np.random.default_rng(0).integers(0, 11, 30)
    assert evaluate_tokens(model, tokens, 30).tokens == evaluate_tokens(model, tokens, 30, stride=8).tokens == 29


def test_bad_input(model):
    with pytest.raises(UserError, match="the text has 1 tokens, expected at least 2"):
        evaluate_tokens(model, [3], 1)
    with pytest.raises(UserError, match="stride is 9, expected 1 to the window of 8 tokens"):
        evaluate_tokens(model, [3, 4], 2, stride=9)


def test_token_ids_outside_the_vocabulary(model):
    with pytest.raises(UserError, match="token ids from 3 to 11, expected 0 to 10"):
        evaluate_tokens(model, [3, 11], 2)
