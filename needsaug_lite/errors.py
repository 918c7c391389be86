"""The one error that a user's mistake raises."""


class UserError(ValueError):
    """A mistake that the user can mend: what was given, what is allowed, what to do.

    The command line prints the message without a traceback; a notebook shows it
    as any other exception.
    """
