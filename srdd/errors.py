"""The one exception that means "the input is wrong", not "the code is"."""


class UserError(Exception):
    """Wrong input, said in one line: what is wrong and what to do.

    The command line prints the message and exits non-zero; a server answers 4xx. Everything else
    that is raised is a bug and keeps its traceback.
    """
