"""The errors that the command line tells in one sentence."""


class UserError(ValueError):
    """Something the user gave is wrong; the message is one sentence with what was found and what was expected.

    The command line prints it on stderr without a traceback and exits with code 2.
    """


class WorkerLostError(RuntimeError):
    """Another worker of the cluster has ended; the message is one sentence.

    The command line prints it without a traceback and exits with code 1, on which launchers start the workers anew.
    """


class Terminated(RuntimeError):
    """SIGTERM ended a run after a checkpoint; the message is one sentence.

    The command line prints it without a traceback and exits with code 143, as a shell says of a process that SIGTERM
    ended.
    """
