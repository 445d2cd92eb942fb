import re

import numpy as np
import pytest

from tfgpt.errors import UserError
from tfgpt.models import GPT2CausalLM
from tfgpt.training import language_modeling
from tfgpt.training.divergence import first_nonfinite_layer
from tfgpt.training.run_config import RunConfig
from tfgpt.training.trainer import RunObserver, train

TEXT = "the quick brown fox jumps over the lazy dog and the dog sleeps on. " * 60


def config(folder, **fields):
    (folder / "foxes.txt").write_text(TEXT)
    defaults = {
        "preset": "gpt2-test",
        "tokenizer": "character",
        "steps": 20,
        "batch_size": 4,
        "warmup_steps": 0,
        "evaluate_every": 20,
        "log_every": 5,
        "sample_tokens": 0,
        "dropout": 0.1,
        "tensorboard": False,
        "compile": "none",
    }
    return RunConfig(data=[str(folder / "foxes.txt")], out=str(folder / "model"), **(defaults | fields))


def plant(model, layer):
    kernel = layer.kernel.numpy()
    kernel[0, 0] = np.inf
    layer.kernel.assign(kernel)


@pytest.fixture
def model():
    return GPT2CausalLM.from_preset("gpt2-test", load_weights=False, seed=0, dropout=0.5)


def test_the_first_layer_is_found_whatever_follows_it(model):
    seeds = [v.numpy() for v in model.non_trainable_variables]
    inputs = np.arange(12).reshape(2, 6)
    assert first_nonfinite_layer(model, inputs) is None
    plant(model, model.backbone.blocks[1].feed_forward.sublayer.output_dense)
    path, rows = first_nonfinite_layer(model, inputs)
    assert path.endswith("/block_1/feed_forward/sublayer/output")
    assert rows == [0, 1]
    plant(model, model.backbone.blocks[0].attention.sublayer.output_dense)
    path, _ = first_nonfinite_layer(model, inputs)
    assert "block_0/attention/sublayer/" in path
    assert all(np.array_equal(v.numpy(), seed) for v, seed in zip(model.non_trainable_variables, seeds))
    assert not any("call" in vars(layer) for layer in model._flatten_layers())  # nothing stays patched


def test_the_rows_are_those_that_are_not_finite(model):
    # The vector of one token alone is Inf, so only rows that have it are bad.
    embeddings = model.backbone.token_embedding.get_weights()[0]
    embeddings[7, 0] = np.inf
    model.backbone.token_embedding.set_weights([embeddings])
    path, rows = first_nonfinite_layer(model, np.array([[1, 2], [3, 7], [4, 5], [7, 7]]))
    assert path.endswith("token_embedding") and rows == [1, 3]


def test_a_run_names_the_layer_that_went_first(tmp_path, monkeypatch):
    make_model = language_modeling.make_model

    def planted(*arguments):
        model = make_model(*arguments)
        plant(model, model.backbone.blocks[1].feed_forward.sublayer.output_dense)
        return model

    monkeypatch.setattr(language_modeling, "make_model", planted)
    with pytest.raises(UserError) as error:
        train(config(tmp_path))
    expected = (
        r"the loss became nan between steps 1 and 5, expected a finite one; .*; at step 1 the activations of \S+/"
        r"block_1/feed_forward/sublayer/output were the first that are not finite, in rows 0, 1, 2, 3 of the batch "
        r"that seed 0 draws for it \(its weights kernel are not finite either\); the last good checkpoint is \S+/000000"
    )
    assert re.fullmatch(expected, str(error.value)), error.value


def test_the_step_is_found_by_taking_those_before_it_again(tmp_path):
    # Warm-up begins at 0, so the first step changes nothing; the second one throws the weights out of range.
    fields = {"log_every": 1, "warmup_steps": 10, "learning_rate": 1e37, "clip_norm": 0.0}
    notes = []

    class Watcher(RunObserver):
        def note(self, text):
            notes.append(text)

    with pytest.raises(UserError, match="; at step 3 the activations of .* were the first") as error:
        train(config(tmp_path, **fields), Watcher())
    assert "the loss became" in str(error.value) and "at step 3, expected a finite one" in str(error.value)
    [note] = notes
    assert re.fullmatch("the loss became nan at step 3; taking the steps since .*/000000 again to find the layer", note)


def test_what_does_not_happen_again_is_said_so(tmp_path, monkeypatch):
    models, make_model = [], language_modeling.make_model
    monkeypatch.setattr(language_modeling, "make_model", lambda *a: models.append(make_model(*a)) or models[-1])

    class Vandal(RunObserver):
        def row(self, row):
            if row["step"] == 10:
                plant(models[0], models[0].backbone.blocks[0].feed_forward.sublayer.output_dense)

    with pytest.raises(UserError, match="between steps 11 and 15.*taken again, these steps had finite activations"):
        train(config(tmp_path), Vandal())
