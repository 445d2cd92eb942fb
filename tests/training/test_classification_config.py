import pytest

from tfgpt.errors import UserError
from tfgpt.training.classification_config import ClassificationConfig


def config(**fields):
    return ClassificationConfig(**{"data": ["train.tsv"], "out": "model", **fields})


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"data": []}, "data is empty, expected .tsv, .csv or .jsonl files"),
        ({"model": "rnn"}, "model is 'rnn', expected one of encoder, gpt2"),
        ({"batching": "random"}, "batching is 'random', expected one of bucketed, padded"),
        ({"select_by": "luck"}, "select_by is 'luck', expected one of loss, accuracy, macro_f1"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0, expected between 0 and 1"),
        ({"token_dropout": 1.0}, "token_dropout is 1.0, expected from 0 to below 1"),
        ({"num_layers": 0}, "num_layers is 0, expected at least 1"),
        ({"init": "gpt2"}, "model is 'encoder', expected gpt2 with init"),
        ({"init": "gpt2", "model": "gpt2", "num_layers": 2}, "num_layers is 2, expected none with init"),
        ({"freeze_backbone": True, "model": "gpt2"}, "freeze_backbone is True, expected a pretrained backbone"),
        ({"class_weights": ["good"]}, "class_weights has 'good', expected balanced, or label=weight"),
        ({"class_weights": ["good=0"]}, "class_weights has 'good=0', expected balanced, or label=weight"),
        ({"class_weights": ["good=nan"]}, "class_weights has 'good=nan', expected balanced"),
        ({"steps": 0}, "steps is 0, expected at least 1"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(UserError, match=message):
        config(**fields)


def test_class_weights():
    assert config().weights_by_label() is None
    assert config(class_weights=["balanced"]).weights_by_label() == "balanced"
    assert config(class_weights=["a=b=2", "c=.5"]).weights_by_label() == {"a=b": 2.0, "c": 0.5}


def test_a_single_file_is_a_list_of_one():
    made = config(data="train.tsv", validation_data="dev.tsv")
    assert (made.data, made.validation_data) == (["train.tsv"], ["dev.tsv"])
