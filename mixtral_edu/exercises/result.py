"""What a check reports."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """One check and whether it passed; `question` names the mistake that it looks for."""

    question: str
    passed: bool


@dataclass(frozen=True, repr=False)
class Result:
    """What `check.NAME(function)` returns; a notebook shows its message, and `if result:` means "all checks passed".

    Attributes:
        name: the exercise.
        message: how many checks passed, and what is known of the first one that failed.
        outcomes: one for each check, in order; none where no check could run.
        attempted: False for a stub that still raises NotImplementedError.
    """

    name: str
    message: str
    outcomes: tuple[Outcome, ...] = ()
    attempted: bool = True

    @property
    def score(self) -> float:
        """Share of the checks that passed, 0 to 1."""
        return sum(outcome.passed for outcome in self.outcomes) / max(1, len(self.outcomes))

    @property
    def passed(self) -> bool:
        """Whether all checks passed."""
        return self.score == 1

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        # A student's text may hold half of a surrogate pair, which neither a notebook nor a terminal can be sent.
        return self.message.encode("utf-8", "backslashreplace").decode("utf-8")
