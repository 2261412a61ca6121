"""The one exception that stands for a mistake its reader can mend."""


class UserError(Exception):
    """What was wrong, where (file, line, key), and what to do, in one line.

    The commands print the message without a traceback and exit with status 2.
    """
