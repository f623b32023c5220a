"""What a user can do wrong, as exceptions whose message is one line: what is wrong, then how to mend it."""


class UserError(Exception):
    """Wrong input or a wrong request; the command line prints the message and exits with 1."""


class UsageError(UserError):
    """Options that do not fit together; the command line prints the message and exits with 2."""
