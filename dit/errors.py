"""The one exception that is meant for people: a single clear line, shown without a traceback, exit code 2."""


class UserError(ValueError):
    """Bad input: the message names the value, what was expected and what to do. Never spans more than one line."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))
