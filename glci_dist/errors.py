"""The ways a command ends early."""


class UserError(Exception):
    """What was asked cannot be done: exit code 2.

    The message is one line that names the value, the rule it breaks and the way out. With
    ``one_rank`` only this rank met it (its node's disk, say), so this rank has to say it.
    """

    def __init__(self, message: str, *, one_rank: bool = False) -> None:
        super().__init__(message)
        self.one_rank = one_rank


class Interrupted(Exception):
    """A signal stopped the run in good order; the same command resumes it: exit code 3."""


class Fault(Exception):
    """The run cannot go on, by no mistake in what was asked: exit code 1."""
