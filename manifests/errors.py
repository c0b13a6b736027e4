"""The error that a user can fix."""


class UserError(ValueError):
    """A wrong argument or setting, or a missing file. The message says what, where and how to fix it.

    Commands print the message without a traceback and end with exit code 2.
    """
