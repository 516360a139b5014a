"""A disk that is full or cannot be written, and memory that has run out: in words, whichever library noticed it."""

import errno
import os
import re
from collections.abc import Iterator

from kinfolk.errors import KinfolkError

_AGAIN = "and give the same command again: a build goes on where it was"
_DISK = {
    errno.ENOSPC: ("the disk is full", "free some space"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or have it raised"),
    errno.EFBIG: ("the file would be larger than is allowed here", "raise the limit (ulimit -f), or use another disk"),
    errno.EROFS: ("the disk is read-only", "make it writable, or choose another place"),
    errno.EACCES: ("this user has no permission", "change the permissions, or choose another place"),
    errno.EPERM: ("this is not permitted", "change the permissions, or choose another place"),
    errno.EIO: ("the disk fails to read or write", "look into the system's log, and move to another disk"),
    errno.EMFILE: ("too many files are open", "raise the limit (ulimit -n)"),
}
_RUST = re.compile(r"os error (\d+)")
_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "cannot allocate memory")


def machine_fault(error: BaseException) -> KinfolkError | None:
    """What the disk or the memory has to do with an exception; None if nothing.

    Libraries wrap the system's errors in exceptions of their own: causes, contexts and texts are looked through.
    """
    for each in _chain(error):
        number = _errno(each)
        if number in _DISK:
            problem, fix = _DISK[number]
            name = getattr(each, "filename", None)
            return KinfolkError(problem, where=str(name) if name else None, fix=f"{fix}, {_AGAIN}")
        if is_out_of_memory(each):
            return KinfolkError(
                "the memory is used up", fix=f"give the machine more, or the command less to hold at once, {_AGAIN}"
            )
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory has run out, on a CPU or a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(said in str(error).lower() for said in _OUT_OF_MEMORY)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and all that led to it."""
    todo, seen = [error], set[int]()
    while todo:
        each = todo.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        todo += [cause for cause in (each.__cause__, each.__context__) if cause is not None]


def _errno(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    found = _RUST.search(text)
    if found:
        return int(found[1])
    return next((number for number in _DISK if os.strerror(number) in text), None)
