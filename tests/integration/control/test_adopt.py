#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Volumes over images and devices that hold something: adopted, killed in the middle, given back; and volumes that grow, and what
fstrim frees. Needs root, /dev/fuse, loop devices and fio (skipped without)."""
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(__file__))
from stand import ApiError, Load, Stand, until  # noqa: E402

MIB = 1 << 20
POLICY = "apiVersion: tidemark.io/v1alpha1\nkind: ProtectionPolicy\nmetadata: {{name: default}}\nspec: {{{0}}}\n"


def run(*words, **named):
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **named).stdout


def may_resize():
    with open("/proc/self/status", encoding="ascii") as f:
        effective = int(next(line for line in f if line.startswith("CapEff")).split()[1], 16)
    return effective >> 24 & 1  # CAP_SYS_RESOURCE


def digest(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def allocated(path):
    return os.stat(path).st_blocks * 512


class Base(unittest.TestCase):
    def setUp(self):
        self.s = Stand()
        self.addCleanup(self.s.destroy)
        self.images = []

    def fails(self, code, words, call, *arguments, **named):
        with self.assertRaises(ApiError) as caught:
            call(*arguments, **named)
        self.assertEqual(caught.exception.code, code, caught.exception.message)
        self.assertNotEqual(caught.exception.status, 500, caught.exception.message)
        for word in words:
            self.assertIn(word, caught.exception.message)

    def image(self, name, fs_type="ext4", mebibytes=64, files=8):
        """An image with a file system and files of a MiB, as somebody has used it before."""
        path = self.s.path(name)
        with open(path, "wb") as f:
            f.truncate(mebibytes * MIB)
        if fs_type:
            run(*({"ext2": ["mkfs.ext2", "-q", "-F"], "ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q"]}[fs_type]), path)
            where = self.s.path("before")
            os.makedirs(where, exist_ok=True)
            run("mount", "-t", "xfs" if fs_type == "xfs" else "ext4", "-o", "loop", path, where)
            for i in range(files):
                with open(os.path.join(where, f"old{i}"), "wb") as f:
                    f.write(bytes([i + 1]) * MIB)
            run("umount", where)
            os.rmdir(where)
        return path

    def yaml(self, source, extra="", mount=True, name="shop"):
        mount = f", mountPath: {self.s.path('mnt', name, 'data')}" if mount else ""
        return (f"apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {{name: {name}}}\nspec:\n"
                f"  volumes:\n  - {{name: data, source: {source}{mount}{extra}}}\n")

    def rate(self, rate):
        return self.s.apply(POLICY.format(f"journal: {{seedRate: {rate}}}" if rate else ""))

    def seeded(self):
        until(lambda: self.s.status()["state"] == "protected", "the volume is seeded")

    def check_old(self, where, files=8, without=()):
        for i in range(files):
            path = os.path.join(where, f"old{i}")
            if i in without:
                self.assertFalse(os.path.exists(path), path)
                continue
            with open(path, "rb") as f:
                self.assertEqual(f.read(), bytes([i + 1]) * MIB, path)

    def open(self, point, name="shop"):
        where = self.s.path(f"view-{len(self.images)}")
        self.images.append(where)
        view = self.s.operate(f"/v1/applications/{name}/open", {"point": point, "mount": where})["view"]
        return where, view["id"]

    def close(self, view):
        self.s.call("DELETE", f"/v1/views/{view}")


class Adopting(Base):
    def life(self, source, fs_type):
        """Adopted, used, looked back to, rewound and detached: the plain image is whole."""
        s = self.s.start()
        self.rate("1Mi")
        self.assertEqual(s.apply(self.yaml(source))[0]["result"], "created")
        first = s.call("POST", "/v1/applications/shop/tag", {"name": "first"})["lsn"]
        status = s.status()
        self.assertEqual(status["state"], "seeding")
        self.assertLess(status["seeding"]["done_bytes"], status["seeding"]["total_bytes"])
        self.assertEqual(status["volumes"][0]["source"], source)
        self.assertIn("tidemark_volume_seed_bytes", s.call("GET", "/metrics", raw=True)[1])
        self.check_old(s.path("mnt/shop/data"))
        os.unlink(s.path("mnt/shop/data/old3"))
        with open(s.path("mnt/shop/data/old1"), "r+b") as f:
            f.write(b"new" * 1000)
        os.sync()
        self.fails("EBUSY", ["cannot be opened yet", "volume data", "%"], self.open, f"lsn:{first}")
        self.fails("EBUSY", ["no point can be rewound to yet", "still being copied"], s.operate, "/v1/applications/shop/rewind", {"to": "tag:first"})
        self.assertEqual(self.rate(None)[0]["result"], "configured")  # faster, at once
        self.seeded()
        self.assertIsNone(s.status()["seeding"])
        # Before anything was written through Tidemark: exactly what was adopted.
        where, view = self.open(f"lsn:{first}")
        self.check_old(where)
        self.close(view)
        where, view = self.open("latest")
        self.assertFalse(os.path.exists(os.path.join(where, "old3")))
        self.close(view)
        s.operate("/v1/applications/shop/rewind", {"to": "tag:first"})
        self.check_old(s.path("mnt/shop/data"))
        s.write("mnt/shop/data/after", "after")
        until(lambda: s.status()["rewind"] is None, "copied back")
        answer = s.call("POST", "/v1/applications/shop/detach", {})
        self.assertEqual(answer["volumes"], [{"name": "data", "image": source}])
        until(lambda: not any(s.remains().values()), "nothing is left", 15)
        self.assertEqual(os.listdir(s.path("s/apps")), [])
        self.plain(source, fs_type)

    def plain(self, source, fs_type):
        run(*({"ext4": ["e2fsck", "-fn"], "xfs": ["xfs_repair", "-n"]}[fs_type]), source)
        where = self.s.path("plain")
        os.mkdir(where)
        run("mount", "-o", "ro" + (",loop" if os.path.isfile(source) else "") + (",nouuid" if fs_type == "xfs" else ""), source, where)
        try:
            self.check_old(where)
            self.assertEqual(self.s.read("plain/after"), "after")
        finally:
            run("umount", where)

    def test_ext4_image(self):
        self.life(self.image("old.img"), "ext4")

    def test_xfs_image(self):
        self.life(self.image("old.img", "xfs", 320), "xfs")

    def test_ext2_image(self):
        """A file system without a journal, mounted by its user: a view of it is mounted all the same."""
        self.s.start()
        self.s.apply(self.yaml(self.image("old.img", "ext2"), mount=False))
        self.seeded()
        where, view = self.open("latest")
        self.check_old(where)
        self.close(view)

    def test_block_device(self):
        device = run("losetup", "--find", "--show", self.image("disk.img")).strip()
        self.addCleanup(subprocess.run, ["losetup", "-d", device], check=False)
        self.s.start()
        where = self.s.path("elsewhere")
        os.mkdir(where)
        run("mount", device, where)
        self.fails("EBUSY", ["it is mounted on " + where, "umount"], self.s.apply, self.yaml(device))
        run("umount", where)
        self.s.stop()
        # losetup -l of the stand would count it: its own loop device is not a remain.
        self.s.loops = lambda original=self.s.loops: [name for name in original() if f"/dev/{name}" != device]
        self.life(device, "ext4")

    def test_refused(self):
        s = self.s.start()
        image = self.image("old.img")
        before = digest(image)
        self.fails("EINVAL", ["there is no such file"], s.apply, self.yaml(s.path("none.img")))
        self.fails("EISDIR", ["it is a directory"], s.apply, self.yaml(s.root))
        self.fails("EINVAL", ["neither a file nor a block device"], s.apply, self.yaml("/dev/null"))
        with open(s.path("small.img"), "wb") as f:
            f.truncate(MIB)
        self.fails("EINVAL", ["at least 16 MiB"], s.apply, self.yaml(s.path("small.img")))
        with open(s.path("odd.img"), "wb") as f:
            f.truncate(20 * MIB + 512)
        self.fails("EINVAL", ["multiple of 4096", f"truncate -s {20 * MIB + 4096}"], s.apply, self.yaml(s.path("odd.img")))
        self.fails("EINVAL", ["leave size out"], s.apply, self.yaml(image, ", size: 32Mi"))
        self.fails("EINVAL", ["holds ext4, but fsType is xfs"], s.apply, self.yaml(image, ", fsType: xfs"))
        self.fails("EINVAL", ["never formatted"], s.apply, self.yaml(self.image("raw.img", None)))
        with open(s.path("parted.img"), "wb") as f:
            f.truncate(32 * MIB)
            f.seek(446)  # one Linux partition from 1 MiB on
            f.write(struct.pack("<B3sB3sII", 0, b"\0\0\0", 0x83, b"\0\0\0", 2048, 63488) + bytes(48) + b"\x55\xaa")
        self.fails("EINVAL", ["partition table (dos)"], s.apply, self.yaml(s.path("parted.img")))
        device = run("losetup", "--find", "--show", image).strip()
        self.addCleanup(subprocess.run, ["losetup", "-d", device], check=False)
        self.fails("EBUSY", [f"attached to {device}", "losetup -d"], s.apply, self.yaml(image))
        run("losetup", "-d", device)
        run("losetup", "--read-only", device, image)
        self.fails("EACCES", ["read-only"], s.apply, self.yaml(device))
        run("losetup", "-d", device)
        self.sources_that_cannot_be_opened(image)
        self.assertEqual(os.listdir(s.path("s/apps")), [])
        self.assertEqual(digest(image), before)
        # In use by another application; not formatted, whatever is asked for.
        s.apply(self.yaml(image))
        self.fails("EBUSY", ["locked"], s.apply, self.yaml(image, name="other"))
        s.apply("apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {name: raw}\nspec: {volumes: [{name: data, size: 16Mi}]}\n")
        own = s.status("raw")["volumes"][0]["device"]
        self.fails("EINVAL", ["device of a volume", "apps/raw"], s.apply, self.yaml(own, mount=False, name="other"))
        self.check_old(s.path("mnt/shop/data"))
        # A partition table is told, not refused, without a mount.
        self.assertIn("partition table", s.apply(self.yaml(s.path("parted.img"), mount=False, name="disk"))[0]["message"])

    def sources_that_cannot_be_opened(self, image):
        where = self.s.path("ro")
        os.mkdir(where)
        run("mount", "-t", "tmpfs", "-o", "size=64M", "tmpfs", where)
        self.addCleanup(subprocess.run, ["umount", where], check=False, stderr=subprocess.DEVNULL)
        with open(os.path.join(where, "old.img"), "wb") as f:
            f.truncate(32 * MIB)
        with open(os.path.join(where, "program"), "wb") as f:
            with open("/bin/sleep", "rb") as sleep:
                f.write(sleep.read())
        run("chmod", "+x", f.name)
        running = subprocess.Popen([f.name, "600"])
        self.addCleanup(running.kill)
        self.fails("EBUSY", ["it is a program that runs"], self.s.apply, self.yaml(f.name))
        running.kill()
        running.wait()
        run("mount", "-o", "remount,ro", where)
        self.fails("EACCES", ["file system is read-only; ", "findmnt -T " + where, "mount -o remount,rw"], self.s.apply, self.yaml(os.path.join(where, "old.img")))
        run("umount", where)
        self.fails("ENOTDIR", ["Not a directory"], self.s.apply, self.yaml(os.path.join(image, "x")))
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(self.s.path("socket"))
        self.fails("EINVAL", ["neither a file nor a block device"], self.s.apply, self.yaml(self.s.path("socket")))

    def test_killed_in_the_middle(self):
        """kill -9 again and again while fio writes and checks and the volume is being seeded: no error, and every point is right."""
        s = self.s.start()
        image = self.image("old.img", mebibytes=192, files=64)
        self.rate("4Mi")
        s.apply(self.yaml(image))
        first = s.call("POST", "/v1/applications/shop/tag", {"name": "first"})["lsn"]
        for i in range(0, 64, 2):
            os.unlink(s.path(f"mnt/shop/data/old{i}"))
        os.sync()
        removed = s.call("POST", "/v1/applications/shop/tag", {"name": "removed"})["lsn"]
        fio = Load(s.root, s.path("mnt/shop/data/load"), "--size=16m", "--rate=6m")
        self.addCleanup(fio.kill)
        for _ in range(4):
            done = until(lambda: (s.status()["seeding"] or {}).get("done_bytes") if s.status()["state"] != "starting" else None, "seeding")
            pid = until(lambda: s.status()["engine_pid"], "the engine")
            os.kill(pid, signal.SIGKILL)
            until(lambda: s.status()["engine_pid"] not in (None, pid), "the engine is back")
            again = until(lambda: s.status()["seeding"], "seeding goes on")
            self.assertGreaterEqual(again["done_bytes"], done)  # continued, not begun anew
            until(lambda: (s.status()["seeding"] or {"done_bytes": 1 << 60})["done_bytes"] > again["done_bytes"], "some more is seeded")
        fio.is_right()
        self.rate(None)
        self.seeded()
        where, view = self.open(f"lsn:{first}")
        self.check_old(where, 64)
        self.close(view)
        where, view = self.open(f"lsn:{removed}")
        self.check_old(where, 64, without=range(0, 64, 2))
        self.close(view)
        self.assertEqual(s.operate("/v1/applications/shop/verify", {})["damage"], [])

    def test_changed_while_nobody_looked(self):
        """After `delete` the image is its owner's; applied again, what was changed meanwhile is found and journaled."""
        s = self.s.start()
        image = self.image("old.img")
        s.apply(self.yaml(image))
        self.seeded()
        os.sync()
        before = s.call("POST", "/v1/applications/shop/tag", {"name": "before"})["lsn"]
        self.assertEqual(s.call("DELETE", "/v1/applications/shop")["volumes"], [{"name": "data", "backing": image}])
        where = s.path("outside")
        os.mkdir(where)
        run("mount", "-o", "loop", image, where)
        s.write("outside/f", "outside")
        run("umount", where)
        s.apply(self.yaml(image))
        self.assertEqual(s.read("mnt/shop/data/f"), "outside")
        self.seeded()
        os.sync()
        for point, there in (("latest", True), (f"lsn:{before}", False)):
            view, name = self.open(point)
            self.assertEqual(os.path.exists(os.path.join(view, "f")), there, point)
            self.check_old(view)
            self.close(name)
        # Destroying the history does not destroy what was adopted.
        self.assertEqual(s.call("DELETE", "/v1/applications/shop?purge=true")["volumes"], [{"name": "data", "backing": image}])
        self.assertTrue(os.path.exists(image))

    def test_a_backing_that_was_used_after_a_delete(self):
        """It is told where it is: what somebody wrote there meanwhile is found when the application is applied again. One that nobody used is not compared."""
        s = self.s.start()
        text = s.yaml(volumes=("data",))
        s.apply(text)
        s.write("mnt/shop/data/f", "one")
        os.sync()
        before = s.call("POST", "/v1/applications/shop/tag", {"name": "before"})["lsn"]
        s.call("DELETE", "/v1/applications/shop")
        s.apply(text)
        self.assertEqual([p["kind"] for p in s.call("GET", "/v1/applications/shop/points")["points"] if p["kind"] == "gap"], [])
        backing = s.call("DELETE", "/v1/applications/shop")["volumes"][0]["backing"]
        where = s.path("outside")
        os.mkdir(where)
        run("mount", "-o", "loop", backing, where)
        s.write("outside/g", "outside")
        run("umount", where)
        s.apply(text)
        self.assertEqual(s.read("mnt/shop/data/g"), "outside")
        self.seeded()
        for point, there in (("latest", True), (f"lsn:{before}", False)):
            view, name = self.open(point)
            self.assertEqual(os.path.exists(os.path.join(view, "g")), there, point)
            self.close(name)

    def changed_before_it_was_seeded(self, change):
        """`change(image)` while others may have written to it: what it held at the adoption may be gone, and no point of before is served with what is there now."""
        s = self.s.start()
        self.rate("1Mi")
        image = self.image("old.img", None, 0)
        with open(image, "wb") as f:
            f.write(b"old!" * (8 * MIB))
        text = self.yaml(image, mount=False)
        s.apply(text)
        before = s.call("POST", "/v1/applications/shop/tag", {"name": "before"})["lsn"]
        self.assertEqual(s.status()["state"], "seeding")
        change(image, text)
        self.rate(None)
        self.seeded()
        for point in (f"lsn:{before}", "tag:before"):
            self.fails("ERANGE", ["inside a gap"], s.operate, "/v1/applications/shop/open", {"point": point})
        s.call("POST", "/v1/applications/shop/tag", {"name": "after"})
        with open(s.status()["volumes"][0]["device"], "r+b", buffering=0) as f:
            f.write(b"late" * 1024)
        s.operate("/v1/applications/shop/rewind", {"to": "tag:after"})
        with open(s.status()["volumes"][0]["device"], "rb") as f:
            self.assertEqual(f.read(), b"old!" * (6 * MIB) + b"new!" * MIB + b"old!" * MIB)

    def test_changed_after_a_delete_before_it_was_seeded(self):
        def change(image, text):
            self.s.call("DELETE", "/v1/applications/shop")
            with open(image, "r+b") as f:
                f.seek(24 * MIB)
                f.write(b"new!" * MIB)
            self.s.apply(text)
        self.changed_before_it_was_seeded(change)

    def test_another_file_before_it_was_seeded(self):
        def change(image, _):
            self.assertEqual(self.s.stop(), 0)
            with open(image + ".new", "wb") as f:
                f.write(b"old!" * (6 * MIB) + b"new!" * MIB + b"old!" * MIB)
            os.rename(image + ".new", image)
            self.s.start()
        self.changed_before_it_was_seeded(change)

    def test_new_volume_is_kept(self):
        """Detaching a volume without a source leaves an image too, which can be adopted again."""
        s = self.s.start()
        s.apply(s.yaml(volumes=("data",)))
        s.write("mnt/shop/data/f", "kept")
        image = s.call("POST", "/v1/applications/shop/detach", {})["volumes"][0]["image"]
        self.assertTrue(image.startswith(s.path("s/detached/shop/")), image)
        s.apply(self.yaml(image))
        self.assertEqual(s.read("mnt/shop/data/f"), "kept")


class Growing(Base):
    def grow(self, fs_type, small, large):
        s = self.s.start()
        s.apply(s.yaml(volumes=("data",), fs_type=fs_type, size=f"{small}Mi"))
        s.write("mnt/shop/data/f", "one")
        before = s.call("POST", "/v1/applications/shop/tag", {"name": "before"})["lsn"]
        keeper = open(s.path("mnt/shop/data/f"), "a", encoding="utf-8")  # online: it stays open
        self.addCleanup(keeper.close)
        pid = s.status()["engine_pid"]
        answer = s.apply(s.yaml(volumes=("data",), fs_type=fs_type, size=f"{large}Mi"))[0]
        self.assertEqual(answer["result"], "configured")
        volume = s.status()["volumes"][0]
        self.assertEqual(volume["size_bytes"], large * MIB)
        self.assertEqual(int(run("blockdev", "--getsize64", volume["device"])), large * MIB)
        self.assertEqual(s.status()["engine_pid"], pid)
        if fs_type == "ext4" and not may_resize():
            self.assertIn("could not follow", answer["message"])  # and the volume is used on
            s.write("mnt/shop/data/f", "two")
            self.skipTest("ext4 grows online only with CAP_SYS_RESOURCE, which is missing here")
        self.assertIsNone(answer["message"])
        fs = os.statvfs(s.path("mnt/shop/data"))
        self.assertGreater(fs.f_blocks * fs.f_frsize, small * MIB)
        with open(s.path("mnt/shop/data/big"), "wb") as f:
            for _ in range(small + 4):
                f.write(os.urandom(MIB))
            f.flush()
            os.fsync(f.fileno())
        keeper.write(" two")
        keeper.close()
        big = digest(s.path("mnt/shop/data/big"))
        after = s.call("POST", "/v1/applications/shop/tag", {"name": "after"})["lsn"]
        # A view has the size of its time.
        for point, size, there in ((before, small, False), (after, large, True)):
            where = s.path(f"grow-{point}")
            view = s.operate("/v1/applications/shop/open", {"point": f"lsn:{point}", "mount": where})["view"]
            self.assertEqual(view["volumes"][0]["size_bytes"], size * MIB)
            self.assertEqual(os.path.exists(os.path.join(where, "big")), there)
            if there:
                self.assertEqual(digest(os.path.join(where, "big")), big)
            self.close(view["id"])
        # Rewound to before: the device keeps its size, the file system is the small one; undo brings the large one back.
        s.operate("/v1/applications/shop/rewind", {"to": "tag:before"})
        self.assertEqual(int(run("blockdev", "--getsize64", s.status()["volumes"][0]["device"])), large * MIB)
        self.assertEqual(s.read("mnt/shop/data/f"), "one")
        s.operate("/v1/applications/shop/undo", {})
        self.assertEqual(digest(s.path("mnt/shop/data/big")), big)
        self.assertEqual(s.stop(), 0)
        s.start()
        self.assertEqual(digest(s.path("mnt/shop/data/big")), big)
        self.fails("EINVAL", ["cannot shrink"], s.apply, s.yaml(volumes=("data",), fs_type=fs_type, size=f"{small}Mi"))

    def test_ext4(self):
        self.grow("ext4", 64, 160)

    def test_xfs(self):
        self.grow("xfs", 320, 448)

    def test_a_file_system_that_cannot_follow_does_not_keep_others_from_it(self):
        s = self.s.start()
        s.apply(s.yaml(fs_type="xfs", size="320Mi"))
        run("mount", "-o", "remount,ro", s.path("mnt/shop/data"))
        before = os.statvfs(s.path("mnt/shop/wal")).f_blocks
        larger = s.yaml(fs_type="xfs", size="448Mi")
        self.assertIn("could not follow", s.apply(larger)[0]["message"])
        self.assertEqual([int(run("blockdev", "--getsize64", v["device"])) for v in s.status()["volumes"]], [448 * MIB] * 2)
        self.assertGreater(os.statvfs(s.path("mnt/shop/wal")).f_blocks, before)
        run("mount", "-o", "remount,rw", s.path("mnt/shop/data"))
        self.assertIsNone(s.apply(larger)[0]["message"])
        self.assertEqual(os.statvfs(s.path("mnt/shop/data")).f_blocks, os.statvfs(s.path("mnt/shop/wal")).f_blocks)

    def test_later_starts_have_nothing_to_tell(self):
        s = self.s.start()
        for size in ("64Mi", "96Mi"):
            s.apply(s.yaml(export="nbd", volumes=("data",), size=size))
        for _ in range(2):
            self.assertEqual(s.stop(), 0)
            s.start()
        self.assertNotIn(" warning ", s.read("s/apps/shop/engine.log"))

    def test_asked_for_while_it_does_not_run(self):
        """A larger size that is applied while the source is somebody else's, and cannot be given when the engine starts: the volume keeps its size, and grows when
        that is applied again once it can."""
        s = self.s.start()
        image = self.image("old.img", None, 0)
        with open(image, "wb") as f:
            f.write(b"old!" * (16 * MIB))
        self.rate("1Mi")
        s.apply(self.yaml(image, mount=False))
        larger = self.yaml(image, ", size: 96Mi", mount=False)
        self.fails("EBUSY", ["cannot grow", "seeded"], s.apply, larger)
        self.fails("EBUSY", ["cannot grow", "seeded"], s.apply, larger, "&dry_run=true")
        self.fails("EBUSY", ["1 of 2 documents could be applied"], s.apply, POLICY.format("journal: {seedRate: 1Mi}") + "---\n" + larger, "&dry_run=true")
        self.assertEqual(s.stop(), 0)
        with open(image, "r+b") as holder:
            fcntl.flock(holder, fcntl.LOCK_EX)
            s.start()
            self.assertEqual(s.status()["state"], "failed")
            self.assertEqual(s.apply(larger)[0]["result"], "configured")
        self.assertIn("applying again", s.apply(larger)[0]["message"])
        status = s.status()
        self.assertEqual(status["state"], "seeding", status["message"])
        self.assertEqual(len(status["alarms"]), 1, status["alarms"])
        self.assertIn(f"volume data has {64 * MIB} bytes, and could not be given the {96 * MIB}", status["alarms"][0])
        self.rate(None)
        self.seeded()
        self.assertIsNone(s.apply(larger)[0]["message"])
        status = s.status()
        self.assertEqual(status["alarms"], [])
        self.assertEqual(int(run("blockdev", "--getsize64", status["volumes"][0]["device"])), 96 * MIB)

    def test_asked_for_with_another_volume(self):
        """A volume that is not seeded is to be larger, and another one is added, for which the engine is started again: the answer says that the first has not grown."""
        s = self.s.start()
        image = self.image("old.img", None, 0)
        with open(image, "wb") as f:
            f.write(b"old!" * (8 * MIB))
        self.rate("1Mi")
        text = "apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {{name: shop}}\nspec:\n  export: nbd\n  volumes:\n  - {{name: data, source: {0}{1}}}\n{2}"
        s.apply(text.format(image, "", ""))
        larger = text.format(image, ", size: 48Mi", "  - {name: more, size: 16Mi}\n")
        self.assertIn("applying again", s.apply(larger)[0]["message"])
        self.rate(None)
        self.seeded()
        self.assertIsNone(s.apply(larger)[0]["message"])
        self.assertEqual((s.status()["alarms"], os.path.getsize(image)), ([], 48 * MIB))

    @unittest.skipUnless(shutil.which("nbdkit") and shutil.which("nbdinfo"), "no nbdkit or nbdinfo")
    def test_nbd(self):
        """An adopted image by NBD, and one that grows: clients see the size when they connect again."""
        s = self.s.start()
        image = self.image("old.img", None, 32)
        with open(image, "r+b") as f:
            f.seek(5 * MIB)
            f.write(b"there" * 1000)
        text = ("apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {name: shop}\nspec:\n  export: nbd\n"
                f"  volumes:\n  - {{name: old, source: {image}}}\n  - {{name: new, size: NEW}}\n")
        s.apply(text.replace("NEW", "32Mi"))
        self.seeded()
        uris = [v["nbd_uri"] for v in s.status()["volumes"]]
        self.assertEqual([run("nbdinfo", "--size", uri).strip() for uri in uris], [str(32 * MIB)] * 2)
        s.apply(text.replace("NEW", "48Mi").replace(f"source: {image}", f"source: {image}, size: 40Mi"))
        self.assertEqual([run("nbdinfo", "--size", uri).strip() for uri in uris], [str(40 * MIB), str(48 * MIB)])
        run("nbdcopy", uris[0], s.path("copy.img"))
        with open(s.path("copy.img"), "rb") as f:
            data = f.read()
        self.assertEqual(data, bytes(5 * MIB) + b"there" * 1000 + bytes(35 * MIB - 5000))
        answer = s.call("POST", "/v1/applications/shop/detach", {})
        self.assertEqual(digest(answer["volumes"][0]["image"]), hashlib.sha256(data).hexdigest())


class Trimming(Base):
    def trim(self, fs_type, size):
        s = self.s.start()
        s.apply(s.yaml(volumes=("data",), fs_type=fs_type, size=f"{size}Mi"))
        backing = s.path("s/apps/shop/backing/data.img")
        with open(s.path("mnt/shop/data/big"), "wb") as f:
            for _ in range(24):
                f.write(os.urandom(MIB))
            f.flush()
            os.fsync(f.fileno())
        big = digest(s.path("mnt/shop/data/big"))
        point = s.call("POST", "/v1/applications/shop/tag", {"name": "full"})["lsn"]
        full = allocated(backing)
        os.unlink(s.path("mnt/shop/data/big"))
        os.sync()

        def trimmed():  # xfs frees what was removed in the background
            run("fstrim", s.path("mnt/shop/data"))
            return allocated(backing) <= full - 20 * MIB
        until(trimmed, "the backing is smaller")
        where, view = self.open(f"lsn:{point}")
        self.assertEqual(digest(os.path.join(where, "big")), big)
        self.close(view)
        s.operate("/v1/applications/shop/rewind", {"to": f"lsn:{point}"})
        self.assertEqual(digest(s.path("mnt/shop/data/big")), big)

    def test_ext4(self):
        self.trim("ext4", 64)

    def test_xfs(self):
        self.trim("xfs", 320)


class Policies(Base):
    def test_taken_by_the_running_engine(self):
        s = self.s.start()
        s.apply(s.yaml(volumes=("data",)))
        pid = s.status()["engine_pid"]
        self.assertEqual(s.status()["ack"], "write")
        result = s.apply(POLICY.format("journal: {quota: 300Mi, history: 40d}, ackMode: flush"))[0]
        self.assertIsNone(result["message"])
        status = s.status()
        self.assertEqual((status["quota_bytes"], status["ack"], status["history"]["limit_seconds"]), (300 * MIB, "flush", 40 * 86400))
        self.assertEqual(status["engine_pid"], pid)
        s.write("mnt/shop/data/f", "one")
        s.apply(POLICY.format("journal: {quota: 400Mi}").replace("name: default", "name: gold"))
        self.assertEqual(s.apply(s.yaml(volumes=("data",), extra="  policyRef: {name: gold}\n"))[0]["result"], "configured")
        status = s.status()
        self.assertEqual((status["quota_bytes"], status["ack"], status["history"]["limit_seconds"]), (400 * MIB, "write", None))
        self.assertEqual(status["engine_pid"], pid)


def lacking():
    if os.geteuid() != 0:
        return "not root"
    for path in ("/dev/fuse", "/dev/loop-control"):
        if not os.path.exists(path):
            return f"no {path}"
    for program in ("fio", "mkfs.xfs", "mkfs.ext4", "fstrim", "losetup", "resize2fs", "xfs_growfs"):
        if not shutil.which(program):
            return f"no {program}"
    return None


if __name__ == "__main__":
    WHY = lacking()
    if WHY:
        print(f"SKIP: {WHY}")
        sys.exit(77)
    unittest.main(verbosity=2)
