"""The error that a person can mend."""


class UserError(ValueError):
    """Something was asked wrongly, or is missing. Its message says what, where and what to do, without a traceback."""
