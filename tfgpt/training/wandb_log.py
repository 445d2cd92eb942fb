"""Weights & Biases logs of a run, where it is asked for and installed (the `wandb` extra)."""

import dataclasses
import html
import importlib.util

from tfgpt.errors import UserError


class WandbLog:
    """Writes what `TensorBoardLog` writes to a Weights & Biases run.

    WANDB_MODE=offline keeps the run in the directory, from where `wandb sync` sends it.

    Args:
        config: a `FitConfig` whose `wandb` names the project.
        directory: where wandb keeps its files; the run has the name of the model directory.

    Raises:
        UserError: if wandb is not installed, or does not begin a run.
    """

    def __init__(self, config, directory):
        self.check(config)
        import wandb

        self.wandb = wandb
        try:
            self.run = wandb.init(
                project=config.wandb,
                name=directory.absolute().parent.name,
                config=dataclasses.asdict(config),
                dir=str(directory),
                settings=wandb.Settings(silent=True),
            )
        except (wandb.Error, OSError) as error:
            raise UserError(f"cannot begin a Weights & Biases run: {' '.join(str(error).split())}") from error

    @staticmethod
    def check(config):
        """Says that wandb is missing, before a run has done any work."""
        if config.wandb is not None and importlib.util.find_spec("wandb") is None:
            raise UserError(
                f"wandb is {config.wandb!r} but Weights & Biases is not installed, expected pip install 'tfgpt[wandb]'"
            )

    def add_row(self, row):
        """Logs a row of `Records`."""
        self.run.log({name: value for name, value in row.items() if name not in ("step", "seconds")}, step=row["step"])

    def add_sample(self, step, text):
        """Logs a sample of text."""
        self.run.log({"sample": self.wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False)}, step=step)

    def add_weights(self, step, model):
        """Logs a histogram of each variable."""
        histograms = {f"weights/{v.path}": self.wandb.Histogram(v.numpy()) for v in model.trainable_variables}
        self.run.log(histograms, step=step)

    def close(self):
        """Ends the run."""
        self.run.finish()
