"""The one exception that is meant for people."""


class UserError(Exception):
    """Something the user can mend: the message names the thing and the mend, and `main` prints it and exits with 1."""
