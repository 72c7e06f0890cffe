"""Whether a file's bytes are pickle instructions, whatever its name and whatever stands in front of them.

A loader does as it reads: what it calls has run before it finds that the rest is no pickle. So the
instructions are followed as a loader would, over as much of the file as it takes, up to the first that acts
on something the file named. Arguments are measured, not decoded, so that whatever some loader accepts is
followed here too. Text and numbers break off after a few bytes, because their letters are no instructions or
take from an empty stack.

Read ``is_pickle``. Source: the instruction table of ``pickletools``; ``pickle._Unpickler`` and its C twin,
where they accept more than that table says.
"""

import pickletools
import re

from hub.services.ranged import Reader

STEP_BYTES = 1 << 20
SCANNED_BYTES = 16 << 20  # looked at in one file; counted arguments are passed over unread
INSTRUCTIONS = 100_000
HIGHEST_PROTOCOL = 15  # of loaders to come: today's know 5

_NAMES = {"GLOBAL", "STACK_GLOBAL", "INST"}  # EXT and PERSID give out only what the program itself has set up
_ACTS = {
    "REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD",
    "APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS",
}  # fmt: skip
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
# The C reader ends a number at a zero byte, whatever stands behind it.
_INTEGER = re.compile(rb"\s*[+-]?(0[xob])?[0-9a-f_]+l?\s*(\0.*)?", re.IGNORECASE | re.DOTALL)
_LINES = {
    "INT": _INTEGER,
    "LONG": _INTEGER,
    "FLOAT": re.compile(
        rb"\s*[+-]?(inf(inity)?|nan|[0-9_]*\.?[0-9_]*(e[+-]?[0-9_]+)?)\s*(\0.*)?", re.IGNORECASE | re.DOTALL
    ),
    "STRING": re.compile(rb"""\s*(["']).*\1\s*""", re.DOTALL),
}
_MODULE, _ATTRIBUTE = re.compile(r"[\w.-]+"), re.compile(r"[\w.]+")
_WIDTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


class TooLong(Exception):
    """It begins as a pickle does, and there is more of it than is looked at."""


class _NoPickle(Exception):
    """A loader would stop here, having done nothing. Never leaves this module."""


def is_pickle(head: bytes, size: int | None, read: Reader) -> bool:
    """Whether a loader that is given this file acts on what the file names, or finds a whole pickle in it.

    A list of words can be one: ``c`` names something, ``R`` calls it.

    Args:
        head: the first bytes of it.
        size: its length in bytes, where it is known.
        read: ranged reads of it; they go forward only.
    Raises:
        TooLong: it may be.
    """
    source, walk = _Source(head, size, read), _Walk()
    try:
        for _ in range(INSTRUCTIONS):
            if walk.step(source):
                return True
            if walk.ended:
                if walk.marked or (source.position > 2 and source.at_end()):
                    return True
                walk.begin()  # the next of several that stand one after another
    except (EOFError, _NoPickle):
        return False
    raise TooLong


class _Source:
    """A file's bytes one after another."""

    def __init__(self, head: bytes, size: int | None, read: Reader) -> None:
        self.position = 0
        self._window, self._start, self._read = head, 0, read
        self._size = 1 << 40 if size is None else size
        self._scanned = len(head)

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes, few."""
        if self.position + count > self._start + len(self._window):
            self._load()
        at = self.position - self._start
        self.position += count
        if at + count > len(self._window):
            raise EOFError
        return self._window[at : at + count]

    def line(self) -> bytes:
        """The bytes up to the next end of a line, without it, or to the end of the file."""
        pieces = []
        while not self.at_end():
            at = self.position - self._start
            end = self._window.find(b"\n", at)
            if end >= 0:
                pieces.append(self._window[at:end])
                self.position = self._start + end + 1
                break
            pieces.append(self._window[at:])
            self.position = self._start + len(self._window)
        return b"".join(pieces)

    def skip(self, count: int) -> None:
        """Pass over ``count`` bytes."""
        self.position = self.end_of(count)

    def end_of(self, count: int) -> int:
        """Where the next ``count`` bytes end."""
        if self.position + count > self._size:
            raise EOFError
        return self.position + count

    def at_end(self) -> bool:
        """Whether no byte follows."""
        if self.position >= self._start + len(self._window):
            try:
                self._load()
            except EOFError:
                return True
        return False

    def _load(self) -> None:
        """Have more bytes from the position on."""
        if self.position >= self._size:
            raise EOFError
        if self._scanned >= SCANNED_BYTES:
            raise TooLong
        kept = self._window[self.position - self._start :]
        self._window = kept + self._read(self.position + len(kept), STEP_BYTES)
        self._start, self._scanned = self.position, self._scanned + STEP_BYTES
        if not self._window:
            raise EOFError


class _Walk:
    """What a loader has by now, as far as it decides whether it can go on."""

    def __init__(self) -> None:
        self.marked = self._named = False
        self._memo: set[int] = set()
        self.begin()

    def begin(self) -> None:
        """A pickle begins: loaders keep their memo, not their stack."""
        self.ended = False
        self._frame_end = 0
        self._stack: list[bool] = []  # True for a mark

    def step(self, source: _Source) -> bool:
        """Follow one instruction; true when it acts on something that was named."""
        framed = source.position < self._frame_end
        opcode = _OPCODES.get(source.take(1))
        if opcode is None:
            raise _NoPickle
        argument = _argument(opcode, source, named_strictly=not self.marked)
        if framed and (source.position > self._frame_end or opcode.name == "FRAME"):
            return True  # here the loaders disagree: the one in C drops what is left of the frame
        if opcode.name == "FRAME":
            self._frame_end = source.end_of(int.from_bytes(argument, "little"))
        self._remember(opcode.name, argument)
        self._take(opcode)
        if opcode.name == "PROTO":
            self._check_protocol(argument[0])
        self._named = self._named or opcode.name in _NAMES
        self.ended = opcode.name == "STOP"
        return self._named and opcode.name in _ACTS

    def _check_protocol(self, protocol: int) -> None:
        if protocol > HIGHEST_PROTOCOL:
            raise _NoPickle
        self.marked = True

    def _remember(self, name: str, argument: bytes) -> None:
        if name == "MEMOIZE":
            self._memo.add(len(self._memo))
        elif name.endswith("PUT"):
            self._memo.add(_key(name, argument))
        elif name.endswith("GET") and _key(name, argument) not in self._memo:
            raise _NoPickle

    def _take(self, opcode: pickletools.OpcodeInfo) -> None:
        stack, taken = self._stack, opcode.stack_before
        if pickletools.markobject in taken:
            while stack and not stack[-1]:
                stack.pop()
            if not stack:
                raise _NoPickle
            stack.pop()
            taken = taken[: taken.index(pickletools.markobject)]
        if len(stack) < len(taken):
            raise _NoPickle
        del stack[len(stack) - len(taken) :]
        stack.extend(item is pickletools.markobject for item in opcode.stack_after)


def _argument(opcode: pickletools.OpcodeInfo, source: _Source, *, named_strictly: bool) -> bytes:
    """What stands behind an instruction; nothing for what has its length before it."""
    kind = opcode.arg
    if kind is None:
        return b""
    if kind.n > 0:
        return source.take(kind.n)
    if kind.n == pickletools.UP_TO_NEWLINE:
        return _line(opcode.name, source, named_strictly)
    signed = kind.n == pickletools.TAKEN_FROM_ARGUMENT4
    length = int.from_bytes(source.take(_WIDTHS[kind.n]), "little", signed=signed)
    if length < 0:
        raise _NoPickle
    source.skip(length)
    return b""


def _line(name: str, source: _Source, named_strictly: bool) -> bytes:
    line = source.line()
    if name in ("GLOBAL", "INST"):
        _check_names(line, source.line(), named_strictly)
    elif name in _LINES and not _LINES[name].fullmatch(line):
        raise _NoPickle
    return line


def _check_names(module: bytes, attribute: bytes, strictly: bool) -> None:
    """Nothing is found under other names; behind a mark there are objects that answer to any attribute."""
    try:
        names = module.decode(), attribute.decode()
    except ValueError as error:
        raise _NoPickle from error
    if strictly and not (_MODULE.fullmatch(names[0]) and _ATTRIBUTE.fullmatch(names[1])):
        raise _NoPickle


def _key(name: str, argument: bytes) -> int:
    """The place in the memo that an instruction names: in digits, or in 1 or 4 bytes."""
    if name not in ("GET", "PUT"):
        return int.from_bytes(argument, "little")
    try:
        return int(argument.partition(b"\0")[0])
    except ValueError as error:
        raise _NoPickle from error
