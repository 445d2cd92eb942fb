"""Sequence classifiers: an encoder's, and GPT-2's."""

from tfgpt.models.classifier.encoder_backbone import EncoderBackbone
from tfgpt.models.classifier.encoder_classifier import EncoderClassifier
from tfgpt.models.classifier.gpt2_classifier import GPT2Classifier
from tfgpt.models.classifier.model_directory import load_classifier
from tfgpt.models.classifier.sequence_classifier import SequenceClassifier

__all__ = ["EncoderBackbone", "EncoderClassifier", "GPT2Classifier", "SequenceClassifier", "load_classifier"]
