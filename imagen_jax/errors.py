"""The exception for mistakes that the user can correct."""


class UserError(ValueError):
    """A wrong input; the message names the value and the remedy.

    The command line tools print the message without a traceback and exit with status 2. Any other
    exception is a defect of this package and keeps its traceback.
    """
