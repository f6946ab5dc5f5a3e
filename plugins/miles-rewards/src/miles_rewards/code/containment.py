"""What keeps a program from the rest of the machine. Runs in the program's process; standard library only.

Three walls, each put up by the process around itself, none of which needs privileges: resource limits; Landlock (Linux 5.13), which
leaves only some folders to be read and one to be written; and a seccomp filter, without which there are sockets, further processes
and signals to others.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import struct
import sys

_NO_NEW_PRIVILEGES = 38
_SET_SECCOMP = 22
_FILTER = 2
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_CLONE_THREAD = 0x00010000

_MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CALLS = {
    "bpf": (321, 280),
    "chroot": (161, 51),
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "io_uring_setup": (425, 425),
    "keyctl": (250, 219),
    "kill": (62, 129),
    "mount": (165, 40),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "reboot": (169, 142),
    "setns": (308, 268),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "tgkill": (234, 131),
    "tkill": (200, 130),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vfork": (58, None),
}
"""What the filter denies: numbers of x86-64 and aarch64."""
_CLONE, _CLONE3, _PRLIMIT = (56, 220), (435, 435), (302, 261)


def limit(memory: int, seconds: float, file_bytes: int = 16 << 20) -> None:
    """Resource limits: address space, processor time, size of a file, open files, and no core file."""
    limits = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, max(1, round(seconds + 0.5))),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_AS, memory),
    ]
    for name, value in limits:
        _lower(name, value)


def seal(writable: str, readable: list[str]) -> list[str]:
    """Put up Landlock and seccomp; returns what could not be had, in words."""
    if sys.platform != "linux":
        return ["files", "the network", "processes"]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    missing = [] if _landlock(libc, writable, readable) else ["files"]
    if _seccomp(libc):
        return missing
    # Of little use to root, whom this limit does not bind, and it takes threads away, too.
    _lower(resource.RLIMIT_NPROC, 0)
    return [*missing, "the network", "processes"]


def _lower(name: int, value: int) -> None:
    # A limit that is lower already stays; macOS knows no limit of the address space.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(name, (value, value))


def _landlock(libc: ctypes.CDLL, writable: str, readable: list[str]) -> bool:
    abi = libc.syscall(444, None, ctypes.c_size_t(0), 1)
    if abi < 1:
        return False
    handled = (1 << 13) - 1  # execute, write, read, list, remove and make of all kinds
    if abi >= 2:
        handled |= 1 << 13  # rename into another folder
    if abi >= 3:
        handled |= 1 << 14  # truncate
    attributes = ctypes.create_string_buffer(struct.pack("Q", handled))
    rules = libc.syscall(444, attributes, ctypes.c_size_t(8), 0)
    if rules < 0:
        return False
    try:
        given = [(writable, handled & ~1), *((path, 0b1100) for path in readable), ("/dev/null", 0b110), ("/dev/urandom", 0b100)]
        for path, access in given:
            if not os.path.exists(path):
                continue
            folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
            allowed = access if os.path.isdir(path) else access & 0b110
            rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, folder))
            if libc.syscall(445, rules, 1, rule, 0):
                return False
            os.close(folder)
        return bool(libc.syscall(446, rules, 0) == 0)
    finally:
        os.close(rules)


def _seccomp(libc: ctypes.CDLL) -> bool:
    machine = platform.machine()
    if machine not in _MACHINES:
        return False
    column = list(_MACHINES).index(machine)
    allow, deny = (0x06, 0, 0, _ALLOW), (0x06, 0, 0, _ERROR | _EPERM)
    # Classic BPF over (number, architecture, instruction pointer, arguments): load word, jump if equal, at least, or set, return.
    code = [(0x20, 0, 0, 4), (0x15, 1, 0, _MACHINES[machine]), deny, (0x20, 0, 0, 0)]
    if machine == "x86_64":
        # Numbers from 2**30 on are the calls of the x32 ABI, which the table does not know.
        code += [(0x35, 0, 1, 1 << 30), deny]
    # Without clone3 the C library takes clone, whose flags can be looked at: threads may be, processes not.
    code += [(0x15, 0, 1, _CLONE3[column]), (0x06, 0, 0, _ERROR | _ENOSYS)]
    code += [(0x15, 0, 4, _CLONE[column]), (0x20, 0, 0, 16), (0x45, 1, 0, _CLONE_THREAD), deny, allow]
    # The limits of this process may be lowered, those of others not.
    code += [(0x15, 0, 4, _PRLIMIT[column]), (0x20, 0, 0, 16), (0x15, 1, 0, 0), deny, allow]
    for numbers in _CALLS.values():
        if (number := numbers[column]) is not None:
            code += [(0x15, 0, 1, number), deny]
    code.append(allow)
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in code))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(program)))
    return bool(libc.prctl(_SET_SECCOMP, _FILTER, header, 0, 0) == 0)
