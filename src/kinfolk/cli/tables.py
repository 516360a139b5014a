"""Tables for people that keep every figure whole, however narrow the terminal is."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

FRAME = 3
"""Characters that a column takes beside its text."""


def print_table(
    title: str | None, headings: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)
) -> None:
    """Print rows of cells under headings; the columns in `left` are aligned left.

    Where the terminal is too narrow, further columns follow in another table that begins with the first column again.
    Where there is no terminal, nothing is too wide.
    """
    console = Console()
    room = console.width if console.is_terminal else None
    widths = [max(len(cell) for cell in column) for column in zip(headings, *rows, strict=True)]
    for number, part in enumerate(_parts(widths, room)):
        table = Table(title=None if number else title, title_justify="left")
        for index in part:
            table.add_column(
                headings[index], justify="left" if index in left else "right", no_wrap=room is None or index == 0
            )
        for row in rows:
            table.add_row(*(row[index] for index in part))
        Console(width=room or max(sum(widths[index] + FRAME for index in part) + 1, len(title or ""))).print(table)


def _parts(widths: Sequence[int], room: int | None) -> list[list[int]]:
    """The columns of each table: the first one, and as many others as there is room for.

    >>> _parts([4, 6, 6, 6], 30), _parts([4, 6, 6, 6], 27), _parts([4, 60], 20)
    ([[0, 1, 2], [0, 3]], [[0, 1, 2], [0, 3]], [[0, 1]])
    """
    found = [[0]]
    for index in range(1, len(widths)):
        wide = 1 + sum(widths[other] + FRAME for other in (*found[-1], index))
        if room is not None and wide > room and len(found[-1]) > 1:
            found.append([0])
        found[-1].append(index)
    return found
