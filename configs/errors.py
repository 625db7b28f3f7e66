"""The one exception that means "the user gave something we cannot use"."""


class RefusedInput(ValueError):
    """Input a person can correct: a config value, an option, a path, a file.

    The message says what was wrong, the value, where it came from and what to do. Commands print it
    without a traceback and leave with exit code 2 (see `configs.command_line`).
    """
