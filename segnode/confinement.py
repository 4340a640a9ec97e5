"""Confinement: what a model's process gives up before anything of the model is loaded."""

import ctypes
import fcntl
import os
import pwd
import socket
import struct
from pathlib import Path
from typing import Final

from segnode.errors import ConfigError

_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_PR_SET_DUMPABLE: Final = 4


def leave_network() -> None:
    """Have this process go on without network but for a loopback of its own (network_namespaces(7)).

    Where that is not allowed it is done within a user namespace of its own, for which it must have but one thread: numpy, once
    imported, has started others. Raises ConfigError.
    """
    uid, gid = os.getuid(), os.getgid()
    try:
        try:
            _unshare(_CLONE_NEWNET)
        except PermissionError:
            _unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
            Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
        _raise_loopback()
    except OSError as error:
        raise ConfigError(
            f"network = false: this machine does not let a process leave the network ({error.strerror or error}): allow user"
            " namespaces (user.max_user_namespaces, kernel.unprivileged_userns_clone,"
            " kernel.apparmor_restrict_unprivileged_userns; in a container its seccomp profile), run the node as root with"
            " CAP_SYS_ADMIN, or leave the key out"
        ) from error


def become(user: str) -> None:
    """Have this process, all its threads, go on with the rights of a user alone. Raises ConfigError."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError as error:
        raise ConfigError(f"user: this machine has no user {user!r}") from error
    if entry.pw_uid == os.getuid():
        return
    try:
        os.initgroups(user, entry.pw_gid)  # devices are a group's
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    except PermissionError as error:
        needed = "only a node that runs as root can run a model as another user: start it so, or leave the key out"
        raise ConfigError(f"user: {needed}") from error
    os.environ.update(USER=user, LOGNAME=user, HOME=entry.pw_dir)
    # A process that changes its user cannot look at itself in /proc any more, nor at its children, unless it says so.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def _unshare(flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _raise_loopback() -> None:
    """Processes of one model may talk to each other (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        name = struct.pack("16sh22x", b"lo", 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, name), 16)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | _IFF_UP))
