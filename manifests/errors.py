"""The error that a person can mend."""


class UserError(ValueError):
    """Something was asked wrongly, or is not there. The message says what, where and what to do; no traceback is shown."""
