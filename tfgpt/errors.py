"""The error that a user can cause."""


class UserError(ValueError):
    """Something the user gave is wrong; the message is one sentence with what was found and what was expected.

    The command line prints it on stderr without a traceback and exits with code 2.
    """
