"""Errors that a user can cause and can mend: one clear line each, exit code 2, never a traceback."""


class UserError(Exception):
    """Something in the user's hands is wrong. Each of `problems` is one complete line for the terminal."""

    exit_code = 2

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class ConfigError(UserError):
    """A setting is wrong: in the YAML file, on the command line, or for this machine."""


class DataError(UserError):
    """The training or validation data cannot be used as it is."""


class ModelError(UserError):
    """The model or tokenizer cannot be loaded or does not fit the settings."""
