"""What can go wrong, by who can mend it."""


class DevclusterError(Exception):
    """A fault with its value and remedy; `exit_code` is the command's."""

    exit_code = 1


class UsageError(DevclusterError):
    """The caller can mend it: wrong arguments, no root, a missing package."""

    exit_code = 2


class StartError(DevclusterError):
    """A daemon did not come up; the message holds the last lines of its log."""
