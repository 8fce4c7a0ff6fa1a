"""The ways a command ends early."""


class UserError(Exception):
    """What was asked cannot be done: exit code 2.

    The message is one line that names the value, the rule it breaks and the way out.
    """


class Interrupted(Exception):
    """A signal stopped the run in good order; the same command resumes it: exit code 3."""


class Fault(Exception):
    """The run cannot go on, by no mistake in what was asked: exit code 1."""
