"""The callbacks of a run, and what they log to."""

import pathlib

from tfgpt.training.averaging import AveragedValidation
from tfgpt.training.callbacks import (
    Checkpoints,
    EarlyStopping,
    Records,
    Samples,
    StopOnInterrupt,
    WeightHistograms,
)
from tfgpt.training.distribution import AgreeOnStopping
from tfgpt.training.measures import make_measures
from tfgpt.training.optimizer import make_schedule
from tfgpt.training.run_state import restore_newest, state_variables
from tfgpt.training.tensorboard import TensorBoardLog
from tfgpt.training.wandb_log import WandbLog


class RunCallbacks:
    """The callbacks of a run, in their order.

    Args:
        config: a `FitConfig`, arranged.
        task: its `Task`, begun.
        model: compiled.
        observer: a `RunObserver`.
        distribution: a `Distribution`.
        utilization: a `ModelFlopsUtilization`, or None.
    """

    def __init__(self, config, task, model, observer, distribution, utilization=None):
        directory = pathlib.Path(config.out)
        training, schedule = directory / "training", make_schedule(config)
        self.distribution = distribution
        self.loggers = make_loggers(config, training)
        self.records = Records(
            training / "metrics.csv",
            task.tokens_per_step,
            lambda step: float(schedule(step)),
            on_row=[observer.row, *(logger.add_row for logger in self.loggers)],
            measures=make_measures(config, model, utilization),
            validation_columns=task.validation_columns,
        )
        self.interrupt, self.stopping = StopOnInterrupt(), EarlyStopping(config.patience, task.score)
        self.samples = Samples(
            training / "samples.txt",
            task.sample if distribution.chief else None,
            on_sample=[observer.sample, *(logger.add_sample for logger in self.loggers)],
        )
        self.histograms = WeightHistograms([logger.add_weights for logger in self.loggers if config.log_gradients])
        remembered = {"records": self.records, "samples": self.samples, "early_stopping": self.stopping}
        self.own = task.callbacks(model, observer)
        remembered |= {type(c).__name__: c for c in (*self.records.measures, *self.own) if hasattr(c, "state")}
        self.checkpoints = Checkpoints(
            directory, task.write, config.checkpoint_every, config.keep_checkpoints, remembered, task.score
        )

    def restore(self, model, on_note):
        """Has the chief's model and callbacks go on from its newest whole checkpoint.

        Args:
            model: the run's.
            on_note: called with sentences on damaged checkpoints.
        """
        path, state = restore_newest(self.checkpoints.checkpoints, model, on_note)
        self.checkpoints.restore(path, state)

    def share(self, model):
        """Gives every worker what the chief restored, and returns the step that the run goes on from."""
        self.records.step = self.distribution.from_chief(self.checkpoints.step)
        if self.records.step:
            self.distribution.broadcast([v for group in state_variables(model).values() for v in group])
        return self.records.step

    def in_order(self):
        """As `fit` calls them: the average is in the model when validation begins, the task's own add to its logs, and
        checkpoints come when the others have done what they remember, and workers have agreed on an end."""
        callbacks = [AveragedValidation(), *self.own, self.records, self.interrupt, self.samples]
        callbacks += [self.histograms, self.stopping]
        if self.distribution.cluster.workers:
            callbacks.append(AgreeOnStopping(self.distribution))
        return [*callbacks, self.checkpoints] if self.distribution.chief else callbacks

    def close(self):
        """Gives signals their meaning back and closes the logs."""
        self.interrupt.restore()
        for logger in self.loggers:
            logger.close()


def make_loggers(config, training):
    """Those to which a run's rows, samples and weights go beside metrics.csv.

    Args:
        config: a `FitConfig`.
        training: where they write.
    """
    loggers = []
    if config.tensorboard and TensorBoardLog.available():
        loggers.append(TensorBoardLog(training / "tensorboard"))
    if config.wandb is not None:
        loggers.append(WandbLog(config, training))
    return loggers
