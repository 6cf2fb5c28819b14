"""The one exception that means "the user can mend this"."""


class UserError(ValueError):
    """A wrong input: the message names the offending value and the remedy.

    The command line tools print the message alone, without a traceback, and exit with status 2.
    Anything else that escapes is a defect of this package and keeps its traceback.
    """
