"""The body of an answer goes from its socket into a file inside the kernel, and is hashed where it then lies.

Read into memory of ours and written from there, each byte is copied twice. Here it is once: ``splice`` hands
the socket's pages through a pipe to the file, and SHA-256 looks at the file's own. On Linux only, where
nothing encrypts the line. Used by ``federation.fetching``.
"""

import fcntl
import mmap
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from federation.origins import SILENCE_S, Answer, Broken
from federation.partials import write_at

WINDOW_BYTES = 4 << 20  # hashed at a time: to map costs some, and what is mapped counts as our memory
PIPE_BYTES = 1 << 20
LOT_BYTES = 128 << 10  # waited for together, since to move a packet alone takes as long as many
LOOK_S = 1.0  # so often at least the caller has its turn, be the line ever so slow


def can_splice(file: int) -> bool:
    """Whether bytes can be spliced into this file, and its pages be looked at: tried with its own first byte.

    Some file systems take nothing from a pipe, some map nothing, and some sandboxes know no such calls.
    An empty file cannot be tried.
    """
    if sys.platform != "linux" or not (first := os.pread(file, 1, 0)):
        return False
    try:
        with _pipe() as (out, into):
            os.write(into, first)
            os.splice(out, file, 1, offset_dst=0)
            mmap.mmap(file, 1, prot=mmap.PROT_READ).close()
    except OSError:
        return False
    return True


def splice_body(
    answer: Answer, file: int, offset: int, size: int, update: Callable[[memoryview], object]
) -> Iterator[int]:
    """Bring a body into ``file`` from ``offset`` on; yield how many bytes came since the last time.

    Ends when all of it is there and hashed, or earlier where the answer ends earlier. Its connection can be
    used again after a whole body only.

    Args:
        answer: over a plain line; announces ``size`` bytes.
        file: open for reading and writing, as long as it will be: see ``can_splice``.
        update: hashes what it is given.
    Yields:
        Bytes that are in the file; 0 where none came for a while.
    Raises:
        Broken: the line failed, or was silent for ``SILENCE_S``.
        OSError: of the file.
    """
    hashed = told = there = offset
    looked = time.monotonic()
    for count in _arrivals(answer, file, offset, size):
        there += count
        full = there - hashed >= WINDOW_BYTES
        if full:
            _hash(file, hashed, there, update)
            hashed = there
        if full or time.monotonic() - looked >= LOOK_S:
            yield there - told
            told, looked = there, time.monotonic()
    if there > hashed:
        _hash(file, hashed, there, update)
    yield there - told


def _arrivals(answer: Answer, file: int, offset: int, size: int) -> Iterator[int]:
    """Move what comes into the file as it comes; yield how much, and 0 for each ``LOOK_S`` without any."""
    assert answer.plain is not None
    sock, end, quiet = answer.plain, offset + size, 0.0
    coming = select.poll()
    coming.register(sock, select.POLLIN)
    with _pipe() as (out, into):
        head = _read_ahead(answer, sock, size)
        write_at(file, memoryview(head), offset)
        offset += len(head)
        yield len(head)
        while offset < end:
            try:
                count = os.splice(sock.fileno(), into, min(end - offset, PIPE_BYTES))
            except BlockingIOError:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, min(end - offset, LOT_BYTES))
                if not coming.poll(LOOK_S * 1000):
                    quiet += LOOK_S
                    if quiet >= SILENCE_S:
                        raise Broken(answer.url, "TimeoutError") from None
                    yield 0
                continue
            except OSError as error:
                raise Broken(answer.url, type(error).__name__) from error
            if not count:
                return
            quiet = 0.0
            _empty(out, file, offset, count)
            offset += count
            yield count
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    answer.response.close()  # of whose bytes http.client knows nothing


def _read_ahead(answer: Answer, sock: socket.socket, size: int) -> bytes:
    """Those of the ``size`` bytes of a body that came with the headers, with no waiting for more."""
    sock.settimeout(0)
    try:
        here = len(answer.response.peek())
    except OSError as error:
        raise Broken(answer.url, type(error).__name__) from error
    finally:
        sock.settimeout(SILENCE_S)
    return answer.response.read(min(here, size))


def _empty(pipe: int, file: int, offset: int, count: int) -> None:
    """Move these bytes, which the pipe holds, to their place."""
    while count:
        moved = os.splice(pipe, file, count, offset_dst=offset)
        offset, count = offset + moved, count - moved


def _hash(file: int, start: int, end: int, update: Callable[[memoryview], object]) -> None:
    """Hash a range of the file in its own pages.

    Whoever made the file shorter meanwhile would end this process (``SIGBUS``). It is hidden, and locked
    against our like, so that would be somebody who could spoil it anyhow; and nothing stays mapped for long.
    """
    before = start % mmap.ALLOCATIONGRANULARITY
    length, page = end - start + before, start - before
    with (
        mmap.mmap(file, length, prot=mmap.PROT_READ, offset=page) as pages,
        memoryview(pages) as window,
        window[before:] as ours,
    ):
        update(ours)


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """Its end to read from, and its end to write to."""
    out, into = os.pipe()
    try:
        with suppress(OSError):  # a user may have so many large ones: it is slower then
            fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        yield out, into
    finally:
        os.close(out)
        os.close(into)
