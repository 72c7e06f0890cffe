"""Shuts the process that calls it in, for good: no network, no other process, few files, bounded memory.

Linux alone can do this to an ordinary process: Landlock (kernel 5.13, ABI 1) bounds the files, seccomp
filters the system calls, rlimits bound memory, file sizes and open files. None needs privileges, none can be
taken back. ``abilities`` tells what the machine at hand can do; a caller that needs more must not run foreign
code.

What Landlock does not see, the filter forbids: changing modes, owners and times, truncating through a file
opened for reading, signals to others, System V memory. Call ``confine`` first, while there is one thread:
libraries for numbers start more as they are imported. Sources: landlock(7) and seccomp(2) of Linux man-pages
6.9; call numbers from arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

import ctypes
import os
import platform
import resource
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.errors import Unchecked

NEEDED = ("files", "network", "processes")  # what foreign code must not have, unless a site says otherwise

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_RULESET_VERSION, _RULE_PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_READ = _READ_FILE | _READ_DIR | _EXECUTE
# Handled rights by ABI: 13 at first, then to link across folders, to truncate, to control devices.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | (1 << 14) | (1 << 15)  # rights that a file may be given
_TCP = 3  # ABI 4: bind and connect
_SCOPED = 3  # ABI 6: abstract sockets and signals

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _PR_GET_SECCOMP = 38, 22, 21
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _ENOSYS = 1, 38
_LOAD, _EQUAL, _AT_LEAST, _BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_CLONE_THREAD, _O_ACCMODE, _O_TRUNC = 0x10000, 0o3, 0o1000

# name -> number on x86_64, on aarch64; None where it does not exist.
_FORBIDDEN: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "openat2": (437, 437),
    "truncate": (76, 45),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "setrlimit": (160, 164),
    "setpriority": (141, 140),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "syslog": (103, 116),
    "iopl": (172, None),
    "ioperm": (173, None),
}
_NETWORK = frozenset({"socket", "connect", "bind", "listen"})
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_CLONE, _CLONE3, _OPEN, _OPENAT = (56, 220), (435, 435), (2, None), (257, 56)
_KILL_CALL, _TGKILL, _PRLIMIT = (62, 129), (234, 131), (302, 261)
_X32 = 0x40000000


@dataclass(frozen=True)
class Bounds:
    """What the confined process may use.

    Attributes:
        read, write: files and folders; everything else is closed to it.
        memory: bytes of its own. file_size: bytes of the largest file it can write.
        open_files: descriptors.
        network: whether it may open connections.
    """

    read: tuple[Path, ...]
    write: tuple[Path, ...]
    memory: int
    file_size: int
    open_files: int = 256
    network: bool = False


class _Attributes(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def abilities() -> tuple[str, ...]:
    """Which of ``NEEDED`` this machine can enforce, in that order; none where it is no Linux that we know."""
    if not sys.platform.startswith("linux") or platform.machine() not in _ARCHITECTURES:
        return ()
    if sys.maxsize < 1 << 32 or _libc().prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) < 0:
        return ()
    return NEEDED if _landlock_abi() >= 1 else NEEDED[1:]


def confine(bounds: Bounds) -> None:
    """Shut this process in, as far as ``abilities`` goes. It must have one thread.

    Raises:
        Unchecked: ``E_APP_PROTECTION``: the system refuses what it said it could do.
    """
    able = abilities()
    _set_limits(bounds)
    if not able:
        return
    libc = _libc()
    _drop_capabilities(libc)
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    if "files" in able:
        _close_files(libc, bounds)
    _filter_calls(libc, _NETWORK if bounds.network else frozenset())


def _set_limits(bounds: Bounds) -> None:
    limits = {
        resource.RLIMIT_DATA: bounds.memory,
        resource.RLIMIT_FSIZE: bounds.file_size,
        resource.RLIMIT_NOFILE: bounds.open_files,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        try:
            allowed = resource.getrlimit(kind)[1]
            least = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
            resource.setrlimit(kind, (least, least))
        except (ValueError, OSError) as error:
            raise Unchecked("E_APP_PROTECTION", f"a limit of {most} cannot be set: {error}") from error


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Give up root's powers, where the agent runs as root; an ordinary user has none to give."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _check(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


# --- files ------------------------------------------------------------------------------------------------


def _landlock_abi() -> int:
    return int(_libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _RULESET_VERSION))


def _close_files(libc: ctypes.CDLL, bounds: Bounds) -> None:
    abi = _landlock_abi()
    handled = _FILE_RIGHTS[min(abi, max(_FILE_RIGHTS))]
    tcp = _TCP if abi >= 4 and not bounds.network else 0
    attributes = _Attributes(handled, tcp, _SCOPED if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0)
    _check(ruleset, "landlock_create_ruleset")
    try:
        for path in bounds.read:
            _open_path(libc, ruleset, path, _READ & handled)
        for path in bounds.write:
            _open_path(libc, ruleset, path, handled & ~_EXECUTE)
        _check(libc.syscall(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def _open_path(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # what is not there need not be open
    try:
        if not path.is_dir():
            rights &= _OF_FILES
        rule = _Beneath(rights, opened)
        added = libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
        _check(added, f"landlock_add_rule for {path}")
    finally:
        os.close(opened)


# --- system calls -----------------------------------------------------------------------------------------


def _filter_calls(libc: ctypes.CDLL, but: frozenset[str]) -> None:
    column, architecture = _ARCHITECTURES[platform.machine()]
    forbidden = [numbers[column] for name, numbers in _FORBIDDEN.items() if name not in but]
    words = b"".join(_program(column, architecture, os.getpid(), forbidden))
    buffer = ctypes.create_string_buffer(words, len(words))
    program = _Program(len(words) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    _check(libc.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0), "seccomp")


def _program(column: int, architecture: int, own: int, forbidden: Sequence[int | None]) -> Iterable[bytes]:
    """The filter, instruction by instruction. A call's number is at 0, its architecture at 4, the low halves
    of its arguments at 16, 24, ...; a block that loads one of them ends with an answer.
    """
    yield _word(_LOAD, 4)
    yield from _unless(_EQUAL, architecture, _KILL)
    yield _word(_LOAD, 0)
    if column == 0:
        yield _word(_AT_LEAST, _X32, 0, 1)
        yield _word(_RETURN, _ERRNO | _EPERM)
    yield from _when_number(_CLONE3[column], [_word(_RETURN, _ERRNO | _ENOSYS)])
    yield from _when_number(_CLONE[column], list(_argument(0, _BITS, _CLONE_THREAD)))
    for call in (_KILL_CALL, _TGKILL):  # its own end is its own affair
        yield from _when_number(call[column], list(_argument(0, _EQUAL, own)))
    yield from _when_number(_PRLIMIT[column], list(_no_new_limit()))
    for number, place in ((_OPEN[column], 1), (_OPENAT[column], 2)):
        if number is not None:
            yield from _when_number(number, list(_no_silent_truncation(place)))
    for number in forbidden:
        if number is not None:
            yield _word(_EQUAL, number, 0, 1)
            yield _word(_RETURN, _ERRNO | _EPERM)
    yield _word(_RETURN, _ALLOW)


def _word(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


def _unless(test: int, value: int, answer: int) -> Iterable[bytes]:
    yield _word(test, value, 1, 0)
    yield _word(_RETURN, answer)


def _when_number(number: int, block: Sequence[bytes]) -> Iterable[bytes]:
    yield _word(_EQUAL, number, 0, len(block))
    yield from block


def _argument(place: int, test: int, value: int) -> Iterable[bytes]:
    """Allow when an argument's low half passes a test, else forbid."""
    yield _word(_LOAD, 16 + 8 * place)
    yield _word(test, value, 0, 1)
    yield _word(_RETURN, _ALLOW)
    yield _word(_RETURN, _ERRNO | _EPERM)


def _no_new_limit() -> Iterable[bytes]:
    """``prlimit64`` may read limits: its third argument, the new one, must be null in both halves."""
    for offset in (16 + 8 * 2, 16 + 8 * 2 + 4):
        yield _word(_LOAD, offset)
        yield _word(_EQUAL, 0, 1, 0)
        yield _word(_RETURN, _ERRNO | _EPERM)
    yield _word(_RETURN, _ALLOW)


def _no_silent_truncation(place: int) -> Iterable[bytes]:
    """Opening for reading must not truncate: early Landlock would not notice."""
    yield _word(_LOAD, 16 + 8 * place)
    yield _word(_BITS, _O_TRUNC, 1, 0)
    yield _word(_RETURN, _ALLOW)
    yield _word(_BITS, _O_ACCMODE, 0, 1)
    yield _word(_RETURN, _ALLOW)
    yield _word(_RETURN, _ERRNO | _EPERM)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def _check(answer: int, what: str) -> None:
    if answer < 0:
        reason = os.strerror(ctypes.get_errno())
        raise Unchecked("E_APP_PROTECTION", f"this process cannot be shut in: {what}: {reason}")


def system_paths() -> tuple[Path, ...]:
    """What any Python program reads: interpreter, packages, this project's code, the machine's shape.

    Nothing of an institution may lie below them.
    """
    own = Path(__file__).resolve().parents[1]
    installed = [Path(path) for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    named = [
        *(sys.prefix, sys.base_prefix, "/usr/lib", "/usr/local/lib", "/usr/share/zoneinfo", "/lib", "/lib64"),
        *("/etc/ld.so.cache", "/etc/localtime", "/proc/self", "/proc/cpuinfo", "/proc/meminfo"),
        *("/sys/devices/system/cpu", "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"),
    ]
    return (*map(Path, named), *installed, own / "federation", own / "storage")
