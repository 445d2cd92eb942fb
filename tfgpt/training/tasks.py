"""What can be trained: the configuration of each task, by name. Nothing here imports TensorFlow."""

from tfgpt.training.classification_config import ClassificationConfig
from tfgpt.training.run_config import RunConfig
from tfgpt.training.translation_config import TranslationConfig

TASKS = {config.task: config for config in (RunConfig, TranslationConfig, ClassificationConfig)}
