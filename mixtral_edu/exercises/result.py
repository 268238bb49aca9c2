"""The results that checks report."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """One check and whether it passed. `question` names the mistake that the check looks for."""

    question: str
    passed: bool


@dataclass(frozen=True, repr=False)
class Result:
    """The result of `check.NAME(function)`. A notebook shows its message; `if result:` asks whether all checks passed.

    Attributes:
        name: the name of the exercise.
        message: how many checks passed, and what is known about the first one that failed.
        outcomes: one per check, in order; empty if no check could run.
        attempted: False for a stub that still raises NotImplementedError.
    """

    name: str
    message: str
    outcomes: tuple[Outcome, ...] = ()
    attempted: bool = True

    @property
    def score(self) -> float:
        """The share of checks that passed, 0 to 1."""
        return sum(outcome.passed for outcome in self.outcomes) / max(1, len(self.outcomes))

    @property
    def passed(self) -> bool:
        """Whether all checks passed."""
        return self.score == 1

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        # A student's text may hold half of a surrogate pair, which neither a notebook nor a terminal can show.
        return self.message.encode("utf-8", "backslashreplace").decode("utf-8")
