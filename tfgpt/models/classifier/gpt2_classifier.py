import pathlib

import keras

from tfgpt.classification import is_classifier
from tfgpt.errors import UserError
from tfgpt.json_file import read_json
from tfgpt.models.classifier.pooling import last_token
from tfgpt.models.classifier.sequence_classifier import SequenceClassifier
from tfgpt.models.gpt2 import GPT2CausalLM


@keras.saving.register_keras_serializable(package="tfgpt")
class GPT2Classifier(SequenceClassifier):
    """GPT-2 with a linear map on each row's last token (Radford et al. 2018, section 3.3), Hugging Face's
    `GPT2ForSequenceClassification`.

    Args:
        backbone: a `GPT2Backbone`.
        labels, tokenizer, dropout: as in `SequenceClassifier`.
        freeze_backbone: train the linear map alone; the backbone then has no dropout either.

    Call arguments and returns as in `SequenceClassifier`.

    Example:

    >>> model = GPT2Classifier.from_preset("gpt2-test", labels=["bad", "good"], load_weights=False, seed=0)
    >>> model(keras.ops.array([[1, 2, 3]])).shape
    TensorShape([1, 2])
    """

    def __init__(self, backbone, labels, tokenizer=None, dropout=0.0, freeze_backbone=False, **kwargs):
        super().__init__(backbone, labels, tokenizer=tokenizer, dropout=dropout, use_bias=False, **kwargs)
        self.freeze_backbone = freeze_backbone

    @property
    def freeze_backbone(self):
        """Whether the linear map alone is trained."""
        return not self.backbone.trainable

    @freeze_backbone.setter
    def freeze_backbone(self, value):
        self.backbone.trainable = not value

    def pool(self, x, padding_mask):
        return last_token(x, padding_mask)

    def features(self, inputs, training=None):
        return super().features(inputs, False if self.freeze_backbone else training)

    @classmethod
    def from_preset(
        cls, preset, labels=None, load_weights=True, seed=None, dtype=None, freeze_backbone=False, **overrides
    ):
        """A classifier on a pretrained GPT-2, from a classifier's model directory, or from scratch.

        Args:
            preset: the model directory of a language model or of a classifier, or a name such as "gpt2", which needs
                `load_weights=False`.
            labels: the names of the classes; a classifier's directory has its own. Others than these get a new linear
                map.
            load_weights, seed, dtype, **overrides: as in `GPT2CausalLM.from_preset`; the seed is that of the linear
                map, too.
            freeze_backbone: as in the class.

        Raises:
            UserError: if there are no labels, or as `GPT2CausalLM.from_preset`.
        """
        path = pathlib.Path(preset) / "config.json"
        if load_weights and path.is_file() and is_classifier(read_json(path)):
            from tfgpt.models.classifier.model_directory import load_classifier

            model = load_classifier(preset, dtype=dtype, expected=cls)
            if labels is None or tuple(labels) == model.labels:
                model.freeze_backbone = freeze_backbone
                return model
            backbone, tokenizer = model.backbone, model.tokenizer
            if seed is not None:
                keras.utils.set_random_seed(seed)
        else:
            language_model = GPT2CausalLM.from_preset(preset, load_weights, seed, dtype, **overrides)
            backbone, tokenizer = language_model.backbone, language_model.tokenizer
        if labels is None:
            raise UserError(f"{preset} is no classifier, expected labels for the one that is made of it")
        return cls(backbone, labels, tokenizer, freeze_backbone=freeze_backbone)

    def get_config(self):
        return {**super().get_config(), "freeze_backbone": self.freeze_backbone}
