"""One file as a partition of a source: where to read on, and whether the file is still the one that was read.

A followed file is followed as `tail -F` does: when it was renamed, copied and cut, or deleted, what was written to it
before is read to its end first, also where the rotation happened while nobody read, and then the file that has its name
now from its beginning. Without `follow` another file than the one that was read is an error and not a bill.
"""

import logging
import os
import stat
from collections.abc import Callable, Collection
from typing import NamedTuple

from tidegate.connectors.files import rotation
from tidegate.connectors.files.fingerprint import Fingerprint, Found, Marks
from tidegate.connectors.files.lines import Limits, LinesRead
from tidegate.connectors.files.own_files import OwnFiles
from tidegate.operators.model.errors import TidegateError

LINE_SPAN = 64 << 10
# How long a file that was rotated has to be quiet: its writer may not know yet.
GRACE_US = 1_000_000
# As many bytes before the position are compared at each read of a followed file.
SEAM = 64

_LOG = logging.getLogger("tidegate.flow")


class FileError(TidegateError):
    """A file is not as it was left, or cannot be read or written as promised; says what to do."""


class FilePosition(NamedTuple):
    """Where to read on: `offset` of the next unread line in a file seen with `size` bytes.

    `digest` is over the first and the last 4 KiB before `offset`, `whole` over all from `begin` on; `inode` is the
    file's number, and `written` when it was last written, in ns.
    """

    offset: int
    size: int
    digest: str
    inode: int = 0
    begin: int = 0
    whole: str = ""
    written: int = 0


class Following(NamedTuple):
    """How a file is read: `rotates` says that another file may take its name; `others` are read by themselves."""

    follow: bool
    rotates: bool
    own: OwnFiles
    others: Collection[str] = ()


class FilePartition(LinesRead):
    def __init__(
        self,
        path: str,
        following: Following,
        limits: Limits,
        clock: Callable[[], int],
        resume: FilePosition | None,
    ) -> None:
        super().__init__(path, limits, clock, resume.offset if resume else 0)
        self._follow = following.follow
        self._rotates = following.follow and following.rotates
        self._own, self._others = following.own, following.others
        self._fd: int | None = None
        self._path = path
        self._inode = 0
        self._size = self._written = 0
        self._seen = Fingerprint()
        self._midline = False
        self._quiet_since: int | None = None
        self._said = ""
        self._resume = resume
        self._begin()

    def snapshot(self) -> FilePosition:
        if self._resume is not None:
            return self._resume
        ends, begin, whole = self._seen.marks()
        return FilePosition(self._offset, self._size, ends, self._inode, begin, whole, self._written)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def behind(self) -> int:
        """Bytes of the file that were not handed out yet. From any thread."""
        try:
            return 0 if self._fd is None else max(0, os.fstat(self._fd).st_size - self._offset)
        except OSError:
            return 0

    # Reading

    def _read(self, size: int) -> bytes | None:
        if self._fd is None and not self._appeared():
            return None
        assert self._fd is not None
        # Asked before reading, so that all of the old file has been read when it is answered.
        replaced = self._rotates and self._is_replaced(self._fd)
        try:
            chunk = self._next(self._fd, size)
        except OSError as error:
            raise FileError(f"file {self._path!r}: cannot be read ({error}); see the system's log") from None
        if chunk or not replaced:
            self._quiet_since = None
            return chunk if chunk or not self._follow else None
        return self._turn()

    def _next(self, fd: int, size: int) -> bytes:
        """Return the next bytes of the file; b"" at its end, or if it has to be read from its beginning."""
        status = os.fstat(fd)
        found, self._written = status.st_size, status.st_mtime_ns
        if self._rotates and (found < self._offset or not self._is_seamless(fd)):
            self._begin_again()
            return b""
        if not self._rotates and found < self._size:
            raise self._changed(f"has {found} bytes where {self._size} were seen")
        if found < self._offset + self._rest_bytes:
            self._take_rest()
        at = self._offset + self._rest_bytes
        chunk = os.pread(fd, self._whole_lines(fd, size, at), at)
        self._size = max(found, at + len(chunk))
        if chunk and self._midline and not self._is_ended_by(chunk):
            return self._next(fd, size)
        return chunk

    def _whole_lines(self, fd: int, size: int, at: int) -> int:
        """How much of the next `size` bytes ends with a line: cutting megabytes later would copy them."""
        size = min(size, os.fstat(fd).st_size - at)
        if size <= LINE_SPAN:
            return max(size, 1)
        last = os.pread(fd, LINE_SPAN, at + size - LINE_SPAN).rfind(b"\n") + 1
        return size - LINE_SPAN + last if last else size

    def _put_back(self, chunk: bytes, cut: int) -> None:
        pass  # It is read again from where the block ended, which saves copying the next block together.

    def _finish(self) -> bytes:
        # A followed file that was rotated has ended, and its source has not.
        return self._take_rest() if self._follow else super()._finish()

    def _advance(self, block: bytes) -> None:
        super()._advance(block)
        self._seen.add(block)

    # Beginning

    def _begin(self) -> None:
        """Open the file, at the position to resume from if there is one."""
        self._fd = self._open(self._name)
        resume = self._resume
        if resume is None or not (resume.offset or (self._rotates and resume.inode)):
            self._started(resume)
        elif self._rotates:
            self._find(resume)
        elif self._fd is None:
            raise self._changed("is gone")
        else:
            self._recall(resume)

    def _started(self, resume: FilePosition | None) -> None:
        self._resume = None
        self._size = resume.size if resume else 0
        self._note()

    def _note(self) -> None:
        """Note which file it is that is open."""
        if self._fd is not None:
            status = os.fstat(self._fd)
            self._inode, self._written = status.st_ino, status.st_mtime_ns

    def _recall(self, resume: FilePosition) -> None:
        """Take up reading of the open file where it was left, if it is that file; else it is an error."""
        assert self._fd is not None
        found = os.fstat(self._fd).st_size
        if found < resume.size and not self._rotates:
            raise self._changed(f"has {found} bytes where {resume.size} were seen")
        seen = Fingerprint.of(self._fd, resume.offset, resume.begin)
        same = seen.compare(Marks(resume.digest, resume.begin, resume.whole))
        if same is Found.OTHER:
            raise self._changed("holds other bytes than those that were read")
        if same is Found.CHANGED:
            _LOG.warning(
                "file %r: was changed before byte %d, up to which it was read; what was changed is not counted",
                self._path,
                resume.offset,
            )
        self._resume = None
        self._size, self._seen, self._offset = resume.size, seen, resume.offset
        self._note()
        if seen.tail and not seen.tail.endswith(b"\n"):
            self._skipping = self._line_start() is None
            self._midline = not self._skipping

    def _find(self, resume: FilePosition) -> None:
        """Take up reading where it was left, in the file or in the one that it was renamed or copied to."""
        if self._fd is not None and self._is_of(self._fd, resume):
            # Of a file of which nothing was read, nothing shows whether it was copied and cut.
            if resume.offset or not self._go_on(resume.written, rotated=True):
                self._recall(resume)
        elif not self._take_up_renamed(resume) and self._fd is not None:
            _LOG.warning(
                "file %r: is another file than the one that was read up to byte %d, which is not found beside it under"
                " another name; what was added to that one since is not read, this one is from its beginning",
                self._name,
                resume.offset,
            )
            self._go_on(resume.written)

    def _take_up_renamed(self, resume: FilePosition) -> bool:
        """Go on in the file that has the bytes of a position, under another name; False where there is none."""
        for path, _ in rotation.renamed(self._name):
            fd = self._try(path)
            if fd is None:
                continue
            if self._is_of(fd, resume):
                self.close()
                self._fd, self._path = fd, path
                self._take_rest()
                self._recall(resume)
                return True
            os.close(fd)
        return False

    def _is_of(self, fd: int, resume: FilePosition) -> bool:
        """Whether the file is the one of a position: by its bytes, or where none were read by its number."""
        found = os.fstat(fd)
        if not resume.offset:
            return resume.inode == found.st_ino
        if found.st_size < resume.offset:
            return False
        seen = Fingerprint.of(fd, resume.offset, resume.offset)
        return seen.marks().ends == resume.digest

    # Rotation

    def _appeared(self) -> bool:
        """Open the file that was not there, if it is there now."""
        if os.path.lexists(self._name):
            try:
                self._begin()
            except FileError as error:
                self._say(str(error))
        return self._fd is not None

    def _is_replaced(self, fd: int) -> bool:
        """Whether there is another file to go on with after this one."""
        try:
            found = os.stat(self._name)
        except OSError:
            return False  # Moved away: its writer may still be writing.
        return not os.path.samestat(found, os.fstat(fd))

    def _turn(self) -> bytes | None:
        """Go on with the next file once this one has been quiet for long enough; b"" ends its last line."""
        now = self._clock()
        self._quiet_since = now if self._quiet_since is None else self._quiet_since
        if now - self._quiet_since < GRACE_US:
            return None
        if self._rest:
            return b""
        assert self._fd is not None
        _LOG.info("file %r: was rotated, and %r is read to byte %d", self._name, self._path, self._offset)
        self._go_on(os.fstat(self._fd).st_mtime_ns)
        self._quiet_since = None
        return None

    def _go_on(self, since: int, rotated: bool = False) -> bool:
        """Begin the next file: the oldest that was rotated `since`, or, if not only `rotated` ones, the one named."""
        read = os.fstat(self._fd) if self._fd is not None else None
        paths, packed = rotation.newer(self._name, since, self._others, read) if since else ([], [])
        if packed:
            self._say(
                f"file {self._name!r}: rotated files that are compressed are not read: {', '.join(packed)}"
            )
        for path in [*paths] if rotated else [*paths, self._name]:
            if (fd := self._try(path)) is not None:
                self.close()
                self._fd, self._path = fd, path
                self._restart()
                return True
        return False

    def _restart(self) -> None:
        """Read the open file from its beginning."""
        self._take_rest()
        self._offset, self._seen, self._midline, self._skipping = 0, Fingerprint(), False, False
        self._started(None)

    def _is_seamless(self, fd: int) -> bool:
        """Whether what was read last still stands before the position: the file may have been cut and grown again."""
        tail = self._seen.tail[-SEAM:]
        return os.pread(fd, len(tail), self._offset - len(tail)) == tail

    def _begin_again(self) -> None:
        """Handle a truncated file: read the rest of its copy, if there is one, then the file from its beginning."""
        if self._take_up_renamed(self.snapshot()):
            return
        _LOG.warning(
            "file %r: was cut after it was read up to byte %d, and no copy of it is beside it; it is read from its"
            " beginning, and what was added before it was cut is not read (%d bytes were seen)",
            self._path,
            self._offset,
            max(0, self._size - self._offset),
        )
        self._path = self._name
        self._restart()

    # A last line without its newline

    def _is_ended_by(self, chunk: bytes) -> bool:
        """Whether a last line that was read without newline was only ended; else it is read again, whole."""
        self._midline = False
        if chunk[:1] in (b"\n", b"\r"):
            return True
        start = self._line_start()
        assert start is not None and self._fd is not None
        _LOG.warning(
            "file %r: its last line was read without a newline and has grown since; it is read again, whole, from"
            " byte %d on",
            self._path,
            start,
        )
        self._offset, self._seen = start, Fingerprint.of(self._fd, start, 0)
        return False

    def _line_start(self) -> int | None:
        """Where the unfinished line before the position begins; None where it is too long to be a line."""
        assert self._fd is not None
        span = min(self._offset, self._limits.line_bytes_max + 1)
        found = os.pread(self._fd, span, self._offset - span).rfind(b"\n") + 1
        if not found and span < self._offset:
            return None
        start = self._offset - span + found
        return None if self._offset - start > self._limits.line_bytes_max else start

    # Files

    def _open(self, path: str) -> int | None:
        """Open a file to read; None if it is missing and waited for."""
        if self._own.has(path):
            raise FileError(f"file {path!r}: is written by the flow itself; name another file as its source")
        try:
            # Without O_NONBLOCK a named pipe would wait here for its writer.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            if self._follow and (self._rotates or not self._offset):
                return None
            if self._offset:
                raise self._changed("is gone") from None
            raise FileError(
                f"file {path!r}: not found in {os.getcwd()!r}; check the path, or wait for it with follow=true"
            ) from None
        except OSError as error:
            raise FileError(
                f"file {path!r}: cannot be opened ({error.strerror}); check its permissions"
            ) from None
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            os.close(fd)
            advice = (
                f"is a folder; name its files, as in file:{path}/*.ndjson"
                if stat.S_ISDIR(mode)
                else "not a regular file; pipe it into standard input, `file:-`"
            )
            raise FileError(f"file {path!r}: {advice}")
        return fd

    def _try(self, path: str) -> int | None:
        """Open a file to read; None if that fails, which is logged."""
        try:
            return self._open(path)
        except FileError as error:
            self._say(str(error))
            return None

    def _say(self, what: str) -> None:
        """Log it, once for as long as it is the same."""
        if what != self._said:
            self._said = what
            _LOG.warning("%s; the flow goes on", what)

    def _changed(self, what: str) -> FileError:
        return FileError(
            f"file {self._path!r}: read up to byte {self._offset}, but the file {what}; bring the old file"
            " back, or start with a new recovery store to read this one from its beginning"
        )
