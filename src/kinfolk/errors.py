"""The one error that users see: what was wrong, where, and what would be right."""

import textwrap


class KinfolkError(Exception):
    """A fault that the user can mend; the command line prints it without a traceback.

    >>> print(KinfolkError("6 query heads do not divide by 4 KV heads", where="family.yaml: members[1].shape",
    ...                    fix="use 4 or 8 query heads"))
    family.yaml: members[1].shape: 6 query heads do not divide by 4 KV heads
      fix: use 4 or 8 query heads
    """

    def __init__(self, problem: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(problem)
        self.problem = _within(problem)
        self.where = None if where is None else _within(where)
        self.fix = None if fix is None else _within(fix)

    def __str__(self) -> str:
        head = f"{self.where}: {self.problem}" if self.where else self.problem
        return f"{head}\n  fix: {self.fix}" if self.fix else head


def _within(text: str, most: int = 900) -> str:
    """A text without its middle where it is longer than people read: what is wrong may be a value of megabytes."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def in_short(error: Exception) -> str:
    """An exception's message on one line, or its type if it has none.

    >>> in_short(ValueError("no\\n  luck")), in_short(ValueError())
    ('no luck', 'ValueError')
    """
    return textwrap.shorten(str(error), 200, placeholder=" ...") or type(error).__name__
