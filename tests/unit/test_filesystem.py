"""Where a folder lies."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segnode.config import Config, NodeConfig
from segnode.errors import ConfigError
from segnode.node import open_store
from segnode.store import filesystem
from segnode.store.filesystem import filesystem_here, filesystem_of, require_local

DEBIAN = """\
22 28 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
23 28 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
24 28 0:5 / /dev rw,nosuid,relatime shared:2 - devtmpfs udev rw,size=8131480k,nr_inodes=2032870,mode=755,inode64
26 28 0:23 / /run rw,nosuid,nodev,noexec,relatime shared:5 - tmpfs tmpfs rw,size=1631120k,mode=755,inode64
28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/mapper/vg-root rw,errors=remount-ro
30 24 0:25 / /dev/shm rw,nosuid,nodev shared:4 - tmpfs tmpfs rw,inode64
33 23 0:28 / /proc/sys/fs/binfmt_misc rw,relatime shared:13 - autofs systemd-1 rw,fd=29,pgrp=1,timeout=0,direct
88 28 8:2 / /boot rw,relatime shared:44 - ext2 /dev/sda2 rw
91 28 254:2 / /srv rw,noatime shared:46 master:3 propagate_from:2 - xfs /dev/mapper/vg-srv rw,attr2,inode64,noquota
97 91 0:51 / /srv/archive rw,relatime shared:50 - nfs4 nas:/export/archive rw,vers=4.2,addr=10.0.0.9
99 97 254:3 / /srv/archive/scratch rw,relatime - ext4 /dev/mapper/vg-scratch rw
101 28 0:52 /segnode /var/lib/segnode rw,relatime shared:55 - nfs nas:/export rw,vers=3
103 28 0:53 / /mnt/pacs\\040share\\134x\\012y rw,relatime - cifs //nas/pacs\\040share rw,vers=3.1.1
105 28 254:2 /kept /home/kept rw,noatime shared:46 - xfs /dev/mapper/vg-srv rw
107 28 0:60 / /mnt/ssh rw,nosuid,nodev,relatime - fuse.sshfs host:/ rw,user_id=0,group_id=0
109 28 0:61 / /mnt/twice rw - ext4 /dev/sdb1 rw
110 109 0:62 / /mnt/twice rw - nfs4 nas:/twice rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/opt/segnode/data", "ext4"),
        ("/srv/segnode-data", "xfs"),
        ("/srv", "xfs"),
        ("/srvs", "ext4"),
        ("/srv/archive/segnode", "nfs4"),
        ("/srv/archive/scratch/data", "ext4"),
        ("/srv/archives", "xfs"),
        ("/var/lib/segnode/data", "nfs"),
        ("/var/lib", "ext4"),
        ("/mnt/pacs share\\x\ny/data", "cifs"),
        ("/home/kept/data", "xfs"),
        ("/mnt/twice/data", "nfs4"),
    ],
)
def test_longest_mount_point_above_counts(path: str, kind: str) -> None:
    """A path lies on the mount whose point is the longest above it; of two on one point on the later."""
    assert filesystem_of(Path(path), DEBIAN) == kind


def test_no_mount_point_above_is_no_file_system() -> None:
    """In a chroot without a mount of its own nothing is above a path."""
    assert filesystem_of(Path("/data"), "91 28 254:2 / /srv rw - xfs /dev/x rw\n") == ""
    assert filesystem_of(Path("/data"), "") == ""


def escaped(text: str) -> str:
    """A name as the kernel writes it in mountinfo."""
    return "".join(f"\\{ord(c):03o}" if c in " \t\n\\" else c for c in text)


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..")
)
PATHS = st.lists(NAMES, max_size=4).map(lambda names: Path("/", *names))
OPTIONAL = st.lists(st.sampled_from(["shared:1", "master:2", "unbindable"]), max_size=3)


@given(st.lists(st.tuples(PATHS, OPTIONAL), max_size=6), PATHS)
def test_any_names_of_mount_points_are_read(mounts: list[tuple[Path, list[str]]], path: Path) -> None:
    """Whatever mount points are called, the last of the deepest above a path is found."""
    text = "".join(
        " ".join(["1 2 0:3 /", escaped(str(point)), "rw", *optional, f"- type{index} source rw\n"])
        for index, (point, optional) in enumerate(mounts)
    )
    above = [(len(point.parts), index) for index, (point, _) in enumerate(mounts) if point in (path, *path.parents)]
    assert filesystem_of(path, text) == (f"type{max(above)[1]}" if above else "")


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that is read in place of the kernel's; nothing is in it."""
    file = tmp_path / "mountinfo"
    file.touch()
    monkeypatch.setattr(filesystem, "_MOUNTS", file)
    return file


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "ceph", "fuse.glusterfs", "fuse.sshfs"])
def test_network_file_system_is_refused(tmp_path: Path, mounts: Path, kind: str) -> None:
    """A data folder on a network file system stops the node before anything is made there, and the error names both."""
    mounts.write_text(f"1 2 0:3 / / rw - ext4 /dev/x rw\n2 1 0:4 / {tmp_path} rw - {kind} nas:/x rw\n")
    with pytest.raises(ConfigError, match=f"^node.data: {tmp_path}/data is on {kind}, a network file system"):
        open_store(Config(node=NodeConfig(data="data"), folder=tmp_path), "test")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("kind", ["ext4", "xfs", "zfs", "btrfs", "tmpfs", "overlay", "9p", "virtiofs", "fuse.mergerfs"])
def test_file_system_of_this_machine_is_used(tmp_path: Path, mounts: Path, kind: str) -> None:
    """Everything else holds a data folder."""
    mounts.write_text(f"1 2 0:3 / / rw - {kind} x rw\n")
    require_local(tmp_path)


def test_links_are_followed(tmp_path: Path, mounts: Path) -> None:
    """A data folder that is a link lies where the link leads."""
    (tmp_path / "far").mkdir()
    (tmp_path / "data").symlink_to("far")
    mounts.write_text(f"1 2 0:3 / / rw - ext4 x rw\n2 1 0:4 / {tmp_path}/far rw - nfs nas:/x rw\n")
    with pytest.raises(ConfigError):
        require_local(tmp_path / "data")


def test_system_that_does_not_tell_is_trusted(tmp_path: Path, mounts: Path) -> None:
    """Without /proc/self/mountinfo nothing is refused."""
    mounts.unlink()
    require_local(tmp_path)
    assert filesystem_here(tmp_path) == ""


def test_names_that_are_not_text_are_read(tmp_path: Path, mounts: Path) -> None:
    """A mount point whose name is not UTF-8 hides no other."""
    mounts.write_bytes(b"1 2 0:3 / / rw - ext4 x rw\n2 1 0:4 / /mnt/caf\xe9 rw - nfs nas:/x rw\n")
    assert filesystem_here(tmp_path) == "ext4"
    assert filesystem_here(Path("/mnt/caf\udce9/data")) == "nfs"
