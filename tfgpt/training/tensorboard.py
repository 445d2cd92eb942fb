"""TensorBoard logs of a run, where the package is installed (the `plots` extra)."""

import importlib.util

import tensorflow as tf


class TensorBoardLog:
    """Writes losses, learning rate, speed, other measures, samples and histograms of weights for TensorBoard.

    Args:
        directory: of the event files.
    """

    def __init__(self, directory):
        self.writer = tf.summary.create_file_writer(str(directory))

    @staticmethod
    def available():
        """Whether `tf.summary` can write: TensorFlow leaves that to the tensorboard package."""
        return importlib.util.find_spec("tensorboard") is not None

    def add_row(self, row):
        """Logs a row of `Records`."""
        with self.writer.as_default(step=row["step"]):
            for name, value in row.items():
                if name not in ("step", "seconds"):
                    tf.summary.scalar(name, value)

    def add_sample(self, step, text):
        """Logs a sample of text."""
        with self.writer.as_default(step=step):
            tf.summary.text("sample", f"```\n{text}\n```")

    def add_weights(self, step, model):
        """Logs a histogram of each variable."""
        with self.writer.as_default(step=step):
            for variable in model.trainable_variables:
                tf.summary.histogram(f"weights/{variable.path}", variable.value)

    def close(self):
        """Flushes what was logged."""
        self.writer.close()
