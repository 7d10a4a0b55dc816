"""What the operating system or a store says about a file, as what is wrong and what to do."""

import errno
import os

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REMEDIES = {  # by error number: what is wrong with a path, and what to do
    errno.EACCES: "permission denied: check its owner and mode, or give another path",
    errno.EPERM: "permission denied: check its owner and mode, or give another path",
    errno.EROFS: "the file system is read-only: give a path that can be written",
    errno.ENOENT: "does not exist: check the path",
    errno.ENOTDIR: "a folder on the way to it is a file: check the path",
    errno.EISDIR: "is a folder, and a file is needed: check the path",
    errno.EEXIST: "exists already: remove it or give another path",
    errno.ENOTEMPTY: "is a folder that is not empty: give another path",
    errno.ENAMETOOLONG: "the name is too long for the file system: give a shorter path",
    errno.ELOOP: "its links lead in a circle: check the path",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine: close some programs",
    errno.EBUSY: "is in use by another program: wait for it, or give another path",
    errno.ETXTBSY: "is in use by another program: wait for it, or give another path",
    errno.EIO: "the disk reports an error: check it, or give a path on another one",
    errno.ESTALE: "its network file system has lost it: mount that again",
    errno.ENOTCONN: "its network file system does not answer: mount that again",
    errno.EINVAL: "the file system does not take it: check the path",
    errno.ENODEV: "the file system does not take it: give a path on another one",
    errno.EOPNOTSUPP: "the file system does not take it: give a path on another one",
    errno.ENOLCK: "the file system keeps no locks: give a path on another one",
    errno.EXDEV: "is on another file system: give a path on the same one",
}


class StoreError(OSError):
    """A store does not give what is in it; the text is one line. Another try may succeed."""


def is_full(error: OSError) -> bool:
    """Whether a disk, a quota or a file has no room for what was written."""
    return error.errno in _FULL


def explain(error: OSError) -> str | None:
    """What is wrong with a file and what to do, in one line; None where that is not known."""
    if isinstance(error, StoreError):
        return str(error)
    if is_full(error):
        what = "this" if error.filename is None else os.fsdecode(error.filename)
        return f"no space left to write {what}: free some, or give a path on another disk"
    remedy = REMEDIES.get(error.errno or 0)
    if remedy is None:
        return None
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return remedy
    if error.filename is None:  # Python names a file where it is opened, not where it is read
        return f"a file: {remedy}" if error.errno in (errno.EIO, errno.ESTALE) else None
    return f"{os.fsdecode(error.filename)}: {remedy}"
