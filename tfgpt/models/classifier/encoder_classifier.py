import keras

from tfgpt.errors import UserError
from tfgpt.models.classifier.pooling import first_token, mean_of_tokens
from tfgpt.models.classifier.sequence_classifier import SequenceClassifier

POOLINGS = {"mean": mean_of_tokens, "first": first_token}


@keras.saving.register_keras_serializable(package="tfgpt")
class EncoderClassifier(SequenceClassifier):
    """An encoder that classifies sequences, by the mean of its tokens or by the first (Devlin et al. 2019, section 3).

    Args:
        backbone: an `EncoderBackbone`.
        labels, tokenizer, dropout: as in `SequenceClassifier`.
        pooling: "mean" over a row's real tokens, or its "first".

    Call arguments and returns as in `SequenceClassifier`.

    Example:

    >>> from tfgpt.models.classifier import EncoderBackbone
    >>> backbone = EncoderBackbone(vocabulary_size=50, num_layers=1, num_heads=2, hidden_dim=8, max_sequence_length=16)
    >>> model = EncoderClassifier(backbone, labels=["bad", "good"])
    >>> model(keras.ops.array([[1, 2, 3]])).shape
    TensorShape([1, 2])
    """

    def __init__(self, backbone, labels, tokenizer=None, dropout=0.0, pooling="mean", **kwargs):
        if pooling not in POOLINGS:
            raise UserError(f"pooling is {pooling!r}, expected one of {', '.join(POOLINGS)}")
        super().__init__(backbone, labels, tokenizer=tokenizer, dropout=dropout, **kwargs)
        self.pooling = pooling

    def pool(self, x, padding_mask):
        return POOLINGS[self.pooling](x, padding_mask)

    def get_config(self):
        return {**super().get_config(), "pooling": self.pooling}
