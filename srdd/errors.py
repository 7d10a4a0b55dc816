"""The one exception that means "the input is wrong", not "the code is"."""


class UserError(Exception):
    """Wrong input, said in one line: what is wrong and what to do.

    The command line prints the message and exits non-zero; a server answers 4xx. Everything else
    that is raised is a bug and keeps its traceback.

    Args:
        message: the line. Line ends in it, such as in the name of a file, become blanks.
        field: the setting at fault, where the message begins with its name. The command line says
            the name of its option instead (``top_k must be ...`` becomes ``--top-k must be ...``).
    """

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(" ".join(line.strip() for line in message.strip().splitlines()))
        self.field = field

    def renamed(self, name: str) -> "UserError":
        """The same error with another name for the setting at fault."""
        message = str(self)
        if not self.field or not message.startswith(self.field):
            return self
        return UserError(name + message.removeprefix(self.field), field=name)
