#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""btrfs, which knows its devices by their UUID: what is on a volume and on its views beside it is told apart. Needs root, /dev/fuse, loop
devices, mkfs.btrfs, and a kernel with btrfs that can mount a copy beside the original (6.7)."""
import os
import shutil
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(__file__))
from stand import ApiError, Stand  # noqa: E402

FEATURES = "/sys/fs/btrfs/features"


class Base(unittest.TestCase):
    def setUp(self):
        self.s = Stand()
        self.addCleanup(self.s.destroy)
        self.s.start()

    def view_text(self, view, volume=0):
        with open(view["volumes"][volume]["mount"] + "/f", encoding="ascii") as f:
            return f.read()


class Mounted(Base):
    def test_views_beside_the_volume_rewind_and_growing(self):
        s = self.s
        s.apply(s.yaml(fs_type="btrfs", volumes=("data", "wal"), size="128Mi"))
        self.assertEqual([v["fs_type"] for v in s.status()["volumes"]], ["btrfs", "btrfs"])
        subprocess.run(["btrfs", "subvolume", "create", s.path("mnt/shop/data/sub")], check=True, stdout=subprocess.DEVNULL)
        for text in ("one", "two", "three"):
            s.write("mnt/shop/data/f", text)
            s.write("mnt/shop/data/sub/f", text)
            s.call("POST", "/v1/applications/shop/tag", {"name": text})
        views = {text: s.operate("/v1/applications/shop/open", {"point": "tag:" + text})["view"] for text in ("one", "two")}
        for text, view in views.items():
            self.assertEqual(self.view_text(view), text)
            with open(view["volumes"][0]["mount"] + "/sub/f", encoding="ascii") as f:
                self.assertEqual(f.read(), text)
            with open(view["volumes"][0]["mount"] + "/f", "w", encoding="ascii") as f:
                f.write("written in the view of " + text)
                os.fsync(f.fileno())
        self.assertEqual((s.read("mnt/shop/data/f"), s.read("mnt/shop/data/sub/f")), ("three", "three"))
        s.operate("/v1/applications/shop/rewind", {"to": "tag:two"})
        self.assertEqual((s.read("mnt/shop/data/f"), s.read("mnt/shop/data/sub/f")), ("two", "two"))
        self.assertEqual(self.view_text(views["one"]), "written in the view of one")
        s.operate("/v1/applications/shop/undo", {})
        self.assertEqual((s.read("mnt/shop/data/f"), s.read("mnt/shop/data/sub/f")), ("three", "three"))
        s.apply(s.yaml(fs_type="btrfs", volumes=("data", "wal"), size="256Mi"))
        fs = os.statvfs(s.path("mnt/shop/data"))
        self.assertEqual(fs.f_blocks * fs.f_frsize, 256 << 20)
        for view in views.values():
            s.call("DELETE", "/v1/views/" + view["id"])
        self.assertEqual(s.stop(), 0)
        s.start()
        self.assertEqual(s.read("mnt/shop/data/f"), "three")
        salvaged = s.operate("/v1/applications/shop/open", {"point": "tag:two", "salvage": True})["view"]
        self.assertEqual(self.view_text(salvaged), "two")
        for volume in ("data", "wal"):
            subprocess.run(["btrfs", "scrub", "start", "-B", s.path("mnt/shop", volume)], check=True, stdout=subprocess.DEVNULL)

    def test_small_ones_are_refused_before_anything_is_made(self):
        with self.assertRaises(ApiError) as caught:
            self.s.apply(self.s.yaml(fs_type="btrfs", size="64Mi"))
        self.assertIn("at least 128Mi, which btrfs needs", caught.exception.message)

    def test_an_adopted_one_and_its_views(self):
        s = self.s
        image, place = s.path("old.img"), s.path("place")
        with open(image, "wb") as f:
            f.truncate(128 << 20)
        os.mkdir(place)
        subprocess.run(["mkfs.btrfs", "-q", image], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        subprocess.run(["mount", "-o", "loop", image, place], check=True)
        s.write("place/f", "one")
        subprocess.run(["umount", place], check=True)
        s.apply("apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {name: shop}\n"
                f"spec: {{volumes: [{{name: data, source: {image}, mountPath: {s.path('mnt')}}}]}}\n")
        self.assertEqual((s.status()["volumes"][0]["fs_type"], s.read("mnt/f")), ("btrfs", "one"))


class SeveralDevices(Base):
    def test_views_of_one_of_several_devices_are_not_mounted(self):
        """They would be taken for devices of the file system that is in use."""
        s = self.s
        s.apply("apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {name: shop}\n"
                "spec: {volumes: [{name: data, size: 128Mi}, {name: more, size: 128Mi}]}\n")
        devices, place = [v["device"] for v in s.status()["volumes"]], s.path("place")
        os.mkdir(place)
        subprocess.run(["mkfs.btrfs", "-q", "-d", "raid0", *devices], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        subprocess.run(["btrfs", "device", "scan", *devices], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["mount", devices[0], place], check=True)
        self.addCleanup(subprocess.run, ["btrfs", "device", "scan", "--forget"], check=False)
        self.addCleanup(subprocess.run, ["umount", place], check=False)
        s.write("place/f", "one")
        s.call("POST", "/v1/applications/shop/tag", {"name": "one"})
        view = s.operate("/v1/applications/shop/open", {"point": "tag:one"})["view"]
        for volume in view["volumes"]:
            self.assertIsNone(volume["mount"])
            self.assertIn("btrfs of several devices", volume["note"])
        s.write("place/f", "two")
        self.assertEqual(s.read("place/f"), "two")


if __name__ == "__main__":
    if os.getuid() != 0 or not os.path.exists("/dev/fuse") or not shutil.which("mkfs.btrfs"):
        print("SKIP: needs root, /dev/fuse and mkfs.btrfs (btrfs-progs)")
        sys.exit(77)
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "-q", "btrfs"], check=False)
    if not os.path.exists(FEATURES + "/temp_fsid"):
        print("SKIP: this kernel has no btrfs, or cannot mount a copy beside the original (temp_fsid, Linux 6.7)")
        sys.exit(77)
    unittest.main(verbosity=2)
