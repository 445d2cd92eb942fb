"""What can be trained: the configuration of each task, by name. Nothing here imports TensorFlow."""

from tfgpt.training.run_config import RunConfig

TASKS = {config.task: config for config in (RunConfig,)}
