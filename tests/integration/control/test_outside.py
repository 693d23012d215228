#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What others on the host do beside `tidemark up`: mounts of their own, damaged files, crowds at the API. Needs root, /dev/fuse and
loop devices."""
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(__file__))
from stand import TIDEMARK, ApiError, Stand, content, told, until, write  # noqa: E402


class Base(unittest.TestCase):
    def setUp(self):
        self.s = Stand()
        self.addCleanup(self.s.destroy)

    def start_with_a_tag(self):
        """f was "one" at the tag, and is "two"."""
        s = self.s.start()
        s.apply(s.yaml(volumes=("data",)))
        s.write("mnt/shop/data/f", "one")
        s.call("POST", "/v1/applications/shop/tag", {"name": "one"})
        s.write("mnt/shop/data/f", "two")
        return s


class MountedElsewhere(Base):
    """A file system that is mounted a second time lives on when the first mount goes: its volume must not change below it."""

    def setUp(self):
        super().setUp()
        s = self.start_with_a_tag()
        self.elsewhere = s.path("elsewhere")
        os.mkdir(self.elsewhere)
        subprocess.run(["mount", "--bind", s.path("mnt/shop/data"), self.elsewhere], check=True)
        self.addCleanup(subprocess.run, ["umount", "-l", self.elsewhere], stderr=subprocess.DEVNULL, check=False)

    def refused(self, what):
        with self.assertRaises(ApiError) as caught:
            what()
        self.assertEqual(caught.exception.code, "EBUSY", caught.exception.message)
        self.assertIn("mounted by somebody else", caught.exception.message)
        self.assertIn(self.s.path("mnt/shop/data"), self.s.mounts(), "the application has its volume")
        self.assertEqual(self.s.status()["volumes"][0]["mount"], self.s.path("mnt/shop/data"))
        self.assertEqual(self.s.read("mnt/shop/data/f"), "two")

    def test_no_rewind_below_it(self):
        s = self.s
        self.refused(lambda: s.operate("/v1/applications/shop/rewind", {"to": "tag:one"}))
        subprocess.run(["umount", self.elsewhere], check=True)
        s.operate("/v1/applications/shop/rewind", {"to": "tag:one"})
        self.assertEqual(s.read("mnt/shop/data/f"), "one")

    def test_refused_delete_and_detach_leave_it_mounted(self):
        s = self.s
        self.refused(lambda: s.call("DELETE", "/v1/applications/shop"))
        self.refused(lambda: s.call("POST", "/v1/applications/shop/detach", {}))
        s.write("mnt/shop/data/f", "three")
        subprocess.run(["umount", self.elsewhere], check=True)
        s.call("DELETE", "/v1/applications/shop?purge=true")


class OpenElsewhere(Base):
    """A device that somebody reads keeps it from being detached, and is still the volume's afterwards."""

    def setUp(self):
        super().setUp()
        s = self.start_with_a_tag()
        self.device = s.status()["volumes"][0]["device"]

    def is_there(self):
        s = self.s
        self.assertEqual(s.status()["volumes"][0]["device"], self.device)
        self.assertEqual(s.read("mnt/shop/data/f"), "two")
        s.operate("/v1/applications/shop/rewind", {"to": "tag:one"})
        self.assertEqual(s.read("mnt/shop/data/f"), "one")
        self.assertEqual(s.status()["volumes"][0]["device"], self.device)

    def test_a_refused_delete_leaves_the_device(self):
        with open(self.device, "rb"):
            with self.assertRaises(ApiError) as caught:
                self.s.call("DELETE", "/v1/applications/shop")
            self.assertEqual(caught.exception.code, "EBUSY", caught.exception.message)
        self.is_there()

    def test_an_up_that_is_killed_while_it_waits_leaves_the_device(self):
        s = self.s
        with open(self.device, "rb"):
            s.up.terminate()
            until(lambda: self.marked(), "the detachment to begin")
            s.stop(signal.SIGKILL)
            s.start()
        self.is_there()

    def test_a_device_that_somebody_detaches_is_attached_again_by_a_rewind(self):
        subprocess.run(["losetup", "-d", self.device], check=True)
        self.s.operate("/v1/applications/shop/rewind", {"to": "tag:one"})
        self.assertEqual(self.s.read("mnt/shop/data/f"), "one")

    def marked(self):
        with open(f"/sys/block/{os.path.basename(self.device)}/loop/autoclear", encoding="ascii") as f:
            return f.read() == "1\n"


class OpenAfterItsEnd(Base):
    def test_what_nobody_is_seen_to_have_open_is_waited_for(self):
        """As of a process that was killed while it used io_uring: the kernel lets go of its files after its end. Here a file lies in a socket."""
        s = self.s.start()
        s.apply(s.yaml(volumes=("data",)))
        s.write("mnt/shop/data/f", "one")
        s.call("POST", "/v1/applications/shop/tag", {"name": "one"})
        s.write("mnt/shop/data/f", "two")
        held = socket.socketpair()
        with open(s.path("mnt/shop/data/f"), "rb") as f:
            socket.send_fds(held[0], [b"f"], [f.fileno()])
        release = threading.Timer(1, lambda: [end.close() for end in held])
        release.start()
        self.addCleanup(release.join)
        s.operate("/v1/applications/shop/rewind", {"to": "tag:one"})
        self.assertEqual(s.read("mnt/shop/data/f"), "one")


class MountedByItsUser(Base):
    """Volumes without a mount path: what is on them is their user's."""

    def setUp(self):
        super().setUp()
        self.s.start()
        self.s.apply("apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {name: shop}\nspec:\n  volumes:\n"
                     "  - {name: data, size: 64Mi}\n  - {name: log, size: 16Mi}\n")
        self.data, self.log = (v["device"] for v in self.s.status()["volumes"])
        self.place = self.s.path("place")
        os.mkdir(self.place)
        self.addCleanup(subprocess.run, ["umount", self.place], stderr=subprocess.DEVNULL, check=False)

    def test_a_tag_holds_what_was_written_before_it(self):
        s = self.s
        subprocess.run(["mkfs.ext4", "-q", "-E", "nodiscard", self.data], check=True)
        subprocess.run(["mount", self.data, self.place], check=True)
        with open(s.path("place/f"), "w", encoding="utf-8") as f:
            f.write("not flushed by anybody")
        with open(self.log, "r+b") as f:
            f.write(b"raw")
        s.call("POST", "/v1/applications/shop/tag", {"name": "one"})
        view = s.operate("/v1/applications/shop/open", {"point": "tag:one"})["view"]
        data, log = view["volumes"]
        with open(os.path.join(data["mount"], "f"), encoding="utf-8") as f:
            self.assertEqual(f.read(), "not flushed by anybody")
        with open(log["device"], "rb") as f:
            self.assertEqual(f.read(3), b"raw")

    def test_what_is_compared_with_now_has_what_linux_holds(self):
        s = self.s
        subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", self.data], check=True)
        subprocess.run(["mount", self.data, self.place], check=True)
        s.call("POST", "/v1/applications/shop/tag", {"name": "one"})
        for ask in (lambda: s.call("POST", "/v1/applications/shop/rewind", {"to": "tag:one", "dry_run": True})["plan"],
                    lambda: s.call("POST", "/v1/applications/shop/diff", {"from": "tag:one", "to": "latest"})):
            before = ask()["changed_bytes"]
            with open(s.path("place/f"), "ab") as f:
                f.write(os.urandom(1 << 20))
            answer = ask()
            self.assertGreaterEqual(answer["changed_bytes"], before + (1 << 20))
            self.assertIsNone(answer.get("note"))

    def test_a_view_of_a_file_system_with_a_journal_elsewhere_leaves_that_journal_alone(self):
        s = self.s
        subprocess.run(["mke2fs", "-q", "-F", "-O", "journal_dev", "-b", "4096", self.log], check=True)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "device=" + self.log, self.data], check=True)
        subprocess.run(["mount", self.data, self.place], check=True)
        s.write("place/f", "one")
        s.call("POST", "/v1/applications/shop/tag", {"name": "mounted"})
        subprocess.run(["umount", self.place], check=True)
        before = s.status()["volumes"][1]["written_bytes"]
        view = s.operate("/v1/applications/shop/open", {"point": "tag:mounted"})["view"]
        self.assertIsNone(view["volumes"][0]["mount"])
        self.assertIn("journal elsewhere", view["volumes"][0]["note"])
        self.assertEqual(s.status()["volumes"][1]["written_bytes"], before, "the view has written to the application's journal")

    def test_a_view_that_cannot_be_mounted_is_there_to_look_at(self):
        s = self.s
        subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "4096", self.data], check=True)
        with open(self.data, "r+b") as f:  # the inode of the root directory's group is gone: the signature is not
            f.seek(4096)
            f.write(bytes(4096))
        s.call("POST", "/v1/applications/shop/tag", {"name": "broken"})
        view = s.operate("/v1/applications/shop/open", {"point": "tag:broken"})["view"]
        self.assertIsNone(view["volumes"][0]["mount"])
        self.assertIn("not mounted: cannot mount", view["volumes"][0]["note"])
        with open(view["volumes"][0]["device"], "rb") as f:
            f.seek(1024 + 56)
            self.assertEqual(f.read(2), b"\x53\xef")


class Places(Base):
    def test_a_mount_path_through_a_symbolic_link(self):
        """mountinfo has the path without links."""
        s = self.s
        os.mkdir(s.path("real"))
        os.mkdir(s.path("last"))
        os.symlink(s.path("real"), s.path("link"))
        os.symlink(s.path("last"), s.path("mnt"))
        s.start()
        s.apply("apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {name: shop}\nspec:\n  volumes:\n"
                f"  - {{name: data, size: 64Mi, mountPath: {s.path('link/data')}}}\n"
                f"  - {{name: wal, size: 64Mi, mountPath: {s.path('mnt')}}}\n")
        self.assertTrue({s.path("real/data"), s.path("last")} <= set(s.mounts()), s.mounts())
        s.write("link/data/f", "one")
        s.write("mnt/f", "one")
        s.call("POST", "/v1/applications/shop/tag", {"name": "one"})
        s.write("link/data/f", "two")
        s.operate("/v1/applications/shop/rewind", {"to": "tag:one"})
        self.assertEqual((s.read("link/data/f"), s.read("mnt/f")), ("one", "one"))
        s.stop(signal.SIGKILL)
        s.start()  # takes over what is mounted
        self.assertEqual(s.status()["state"], "protected", s.status()["message"])
        self.assertEqual(s.stop(), 0)
        until(lambda: not any(s.remains().values()), "nothing is left", 15)
        s.start()
        self.assertEqual(s.read("link/data/f"), "one")
        s.call("DELETE", "/v1/applications/shop?purge=true")
        until(lambda: not any(s.remains().values()), "nothing is left", 15)

    def test_no_volume_inside_another_application(self):
        s = self.s.start()
        one = s.yaml("one", volumes=("data",))
        s.apply(one)
        inside = one.replace("name: one", "name: two").replace("mnt/one/data", "mnt/one/data/inside")
        around = one.replace("name: one", "name: three").replace("mnt/one/data", "mnt/one")
        for text in (inside, around):
            with self.assertRaises(ApiError) as caught:
                s.apply(text)
            self.assertEqual(caught.exception.code, "EBUSY")
            self.assertIn("volume data of one is mounted on", caught.exception.message)
        s.apply(one.replace("name: one", "name: four").replace("mnt/one/data", "mnt/one/data2"))

    def test_a_view_is_not_mounted_in_a_volume(self):
        """Neither could the volume be unmounted then, nor the application be rewound."""
        s = self.s.start()
        s.apply(s.yaml(volumes=("data", "wal")))
        s.call("POST", "/v1/applications/shop/tag", {"name": "one"})
        os.symlink(s.path("mnt/shop/data"), s.path("link"))
        for place in ("mnt/shop/data", "mnt/shop/data/below/it", "link/below"):
            with self.assertRaises(ApiError) as caught:
                s.operate("/v1/applications/shop/open", {"point": "tag:one", "mount": s.path(place)})
            self.assertEqual(caught.exception.code, "EBUSY", caught.exception.message)
            self.assertIn("it lies in volume data of shop", caught.exception.message)
        self.assertEqual(os.listdir(s.path("mnt/shop/data")), ["lost+found"])
        view = s.operate("/v1/applications/shop/open", {"point": "tag:one", "mount": s.path("mnt/shop/data-then")})["view"]
        self.assertEqual(view["volumes"][0]["mount"], s.path("mnt/shop/data-then/data"))
        s.operate("/v1/applications/shop/rewind", {"to": "tag:one"})
        self.assertEqual(s.call("GET", "/v1/views")["views"][0]["state"], "open")

    def test_what_is_mounted_below_is_named(self):
        s = self.s.start()
        s.apply(s.yaml(volumes=("data",)))
        below = s.path("mnt/shop/data/below")
        os.mkdir(below)
        subprocess.run(["mount", "-t", "tmpfs", "none", below], check=True)
        self.addCleanup(subprocess.run, ["umount", below], stderr=subprocess.DEVNULL, check=False)
        with self.assertRaises(ApiError) as caught:
            s.call("DELETE", "/v1/applications/shop")
        self.assertIn(below + " is mounted below it", caught.exception.message)


class Status(Base):
    def test_an_application_that_cannot_be_loaded_is_told(self):
        s = self.s.start()
        text = s.yaml(volumes=("data",))
        s.apply(text)
        s.write("mnt/shop/data/f", "one")
        before = s.call("GET", "/v1/status")["warnings"]
        self.assertEqual(s.stop(), 0)
        s.write("s/apps/shop/application.yaml", "{")
        s.start()
        told = [w for w in s.call("GET", "/v1/status")["warnings"] if w not in before]
        self.assertEqual(len(told), 1)
        self.assertIn("the application shop is left out and not protected", told[0])
        self.assertIn("application.yaml", told[0])
        s.apply(text)
        self.assertEqual(s.call("GET", "/v1/status")["warnings"], before)
        self.assertEqual(s.read("mnt/shop/data/f"), "one")

    def test_descriptions_with_other_values_than_were_applied_are_not_taken(self):
        """A bit that falls over can make another volume, or a larger one, of what still reads well."""
        s = self.s.start()
        text = s.yaml(volumes=("data",))
        s.apply(text)
        s.write("mnt/shop/data/f", "one")
        self.assertEqual(s.apply(text)[0]["result"], "unchanged")
        self.assertEqual(s.stop(), 0)
        self.change("apps/shop/application.yaml", "name: data", "name: dada")
        s.start()
        told = s.call("GET", "/v1/status")["left_out"][0]["message"]
        self.assertIn(s.path("s/apps/shop/application.yaml") + " is damaged, or was changed by hand", told)
        s.apply(text)
        until(lambda: s.status()["state"] == "protected", "the remedy works")
        self.assertEqual(s.read("mnt/shop/data/f"), "one")

    def test_manifests_whose_history_is_damaged_are_journaled_again(self):
        s = self.s.start()
        for name in ("kept.yaml", "spoiled-one.yaml"):
            s.write(f"manifests/{name}", "a: 1\n")
        s.apply(s.yaml(volumes=("data",), extra="  manifests: ./manifests\n"))

        def objects():
            answer = s.call("GET", "/v1/applications/shop/points?limit=1000")
            self.assertEqual(answer["damaged"], damaged)
            return [p["name"] for p in answer["points"] if p["kind"] == "object"]

        damaged = False
        until(lambda: len(objects()) == 2, "the manifests are journaled")
        for _ in range(2):  # the second time seals what the first wrote
            self.assertEqual(s.stop(), 0)
            s.start()
        self.assertEqual(s.stop(), 0)
        journal = s.path("s/apps/shop/journal")
        with open(os.path.join(journal, "segment-0000000001.tmj"), "r+b") as f:
            f.seek(f.read().index(b"spoiled-one"))
            f.write(b"S")
        damaged = True
        s.start()
        until(lambda: "journaled again" in s.log_text() and sorted(objects()[:2]) == ["kept.yaml", "spoiled-one.yaml"], "again")
        s.call("POST", "/v1/applications/shop/tag", {"name": "after"})
        s.write("manifests/kept.yaml", "a: bad\n")
        os.unlink(s.path("manifests/spoiled-one.yaml"))
        until(lambda: len(objects()) == 5, "the changes")
        s.operate("/v1/applications/shop/rewind", {"to": "tag:after"})
        self.assertEqual((s.read("manifests/kept.yaml"), s.read("manifests/spoiled-one.yaml")), ("a: 1\n", "a: 1\n"))

    def change(self, file, was, other):
        self.assertIn(was, self.s.read("s/" + file))
        self.s.write("s/" + file, self.s.read("s/" + file).replace(was, other))

    def test_an_application_goes_on_without_its_policy(self):
        """Damaged or lost: with the settings that it had, and an alarm that tells the remedy."""
        s = self.s.start()
        policy = ("apiVersion: tidemark.io/v1alpha1\nkind: ProtectionPolicy\nmetadata: {name: gold}\n"
                  "spec: {ackMode: flush, journal: {quota: 1Gi, history: 7d, compressAfter: 1h, thinning: [{after: 1h, keep: 5s}]}}\n")
        s.apply(policy + "---\n" + s.yaml(volumes=("data",)).replace("spec:\n", "spec:\n  policyRef: {name: gold}\n"))
        s.write("mnt/shop/data/f", "one")
        config = json.loads(s.read("s/apps/shop/engine.json"))
        path = s.path("s/policies/gold.yaml")
        for harm, says in ((lambda: self.change("policies/gold.yaml", "quota: 1Gi", "quota: 3Gi"), path + " is damaged, or was changed by hand"),
                           (lambda: s.write("s/policies/gold.yaml", "{"), path), (lambda: os.unlink(path), "there is no ProtectionPolicy 'gold'; apply one")):
            self.assertEqual(s.stop(), 0)
            harm()
            s.start()
            status = s.status()
            self.assertEqual((status["state"], s.read("mnt/shop/data/f"), len(status["alarms"])), ("protected", "one", 1))
            self.assertIn("its policy cannot be used, and it goes on with the settings that it had: ", status["alarms"][0])
            self.assertIn(says, status["alarms"][0])
            self.assertEqual(json.loads(s.read("s/apps/shop/engine.json")), config)
            s.apply(policy)
            self.assertEqual(s.status()["alarms"], [])

    def test_a_description_that_was_lost_is_told_and_one_that_was_deleted_is_not(self):
        s = self.s.start()
        text = s.yaml(volumes=("data",))
        path = s.path("s/apps/shop/application.yaml")
        s.apply(text)
        s.write("mnt/shop/data/f", "one")
        before = s.call("GET", "/v1/status")["warnings"]
        self.assertEqual(s.stop(), 0)
        os.unlink(path)
        s.start()
        told = [w for w in s.call("GET", "/v1/status")["warnings"] if w not in before]
        self.assertEqual(len(told), 1)
        self.assertIn("the application shop is left out and not protected: " + path + " is gone", told[0])
        s.apply(text)
        self.assertEqual((s.call("GET", "/v1/status")["warnings"], s.read("mnt/shop/data/f")), (before, "one"))
        s.call("DELETE", "/v1/applications/shop")
        for applied in (False, True):
            self.assertEqual(s.stop(), 0)
            s.start()
            self.assertEqual(s.call("GET", "/v1/status")["warnings"], before)
            self.assertEqual(os.path.exists(path + ".deleted"), not applied)
            s.apply(text)
        self.assertEqual(s.read("mnt/shop/data/f"), "one")

    def test_what_an_earlier_release_deleted_is_no_loss(self):
        """It left nothing of the description, and told it from one that was lost by nothing."""
        s = self.s.start()
        path, noted = s.path("s/apps/shop/application.yaml"), s.path("s/deletions-noted")
        s.apply(s.yaml(volumes=("data",)))
        s.write("mnt/shop/data/f", "one")
        before = s.call("GET", "/v1/status")["warnings"]
        s.call("DELETE", "/v1/applications/shop")
        self.assertEqual(s.stop(), 0)
        os.unlink(path + ".deleted")
        if os.path.exists(noted):
            os.unlink(noted)
        s.start()
        self.assertEqual(s.call("GET", "/v1/status")["warnings"], before)
        self.assertEqual(s.stop(), 0)
        os.unlink(path + ".deleted")
        s.start()
        told = [w for w in s.call("GET", "/v1/status")["warnings"] if w not in before]
        self.assertEqual(len(told), 1)
        remedy = re.search(r"if it was deleted on purpose, `(touch .*)`", told[0]).group(1)
        self.assertEqual(s.stop(), 0)
        subprocess.run(remedy.split(), check=True)
        s.start()
        self.assertEqual(s.call("GET", "/v1/status")["warnings"], before)
        s.apply(s.yaml(volumes=("data",)))
        self.assertEqual(s.read("mnt/shop/data/f"), "one")

    def deleted(self, name):
        """Of an application that is started again and again: None when that is under way."""
        try:
            self.s.call("DELETE", "/v1/applications/" + name)
        except ApiError as e:
            return None if "restart is under way" in str(e) else str(e)
        return "deleted"

    def test_what_a_deletion_keeps_is_whole(self):
        s = self.s.start()
        policy = "apiVersion: tidemark.io/v1alpha1\nkind: ProtectionPolicy\nmetadata: {name: gold}\nspec: {journal: {quota: 4Gi}}\n"
        size = 256 << 20
        with open(s.path("disk.img"), "wb") as f:
            f.truncate(size)
        text = policy + ("---\napiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {name: shop}\n"
                         f"spec: {{policyRef: {{name: gold}}, volumes: [{{name: data, source: {s.path('disk.img')}}}]}}\n")
        s.apply(text)
        until(lambda: s.status()["state"] == "protected", "seeded")
        write(s.status()["volumes"][0]["device"], 0, b"a" * size)
        lsn = s.status()["lsn"]
        write(s.status()["volumes"][0]["device"], 0, b"b" * size)
        s.operate("/v1/applications/shop/rewind", {"to": f"lsn:{lsn}"})
        s.stop(signal.SIGKILL)
        for pid in s.processes():
            os.kill(pid, signal.SIGKILL)
        until(lambda: not s.processes(), "holder and engine are gone")
        os.unlink(s.path("s/apps/shop/engine.json"))
        os.unlink(s.path("s/policies/gold.yaml"))  # it cannot be started: what is left stays left
        s.start()
        self.assertNotEqual(content(s.path("disk.img")), b"a" * size)
        for query in ("", "?purge=true"):
            told = until(lambda q=query: self.deleted("shop" + q), "it is not being started just then")
            self.assertIn("409 EBUSY: a rewind of shop is still being copied back", told)
        s.apply(policy)
        until(lambda: s.status()["state"] == "protected" and not s.status()["rewind"], "it is copied back")
        s.call("DELETE", "/v1/applications/shop")
        self.assertEqual(content(s.path("disk.img")), b"a" * size)

    def test_a_purge_leaves_nothing_in_shared_memory_that_a_killed_engine_left(self):
        s = self.s.start()
        policy = "apiVersion: tidemark.io/v1alpha1\nkind: ProtectionPolicy\nmetadata: {name: gold}\nspec: {journal: {quota: 1Gi}}\n"
        s.apply(policy + "---\n" + s.yaml(volumes=("data",)).replace("spec:\n", "spec:\n  policyRef: {name: gold}\n"))
        st = os.stat(s.path("s/apps/shop/journal"))
        part = f"-{st.st_dev:x}-{st.st_ino:x}.ring"
        s.write("mnt/shop/data/f", "one")
        s.stop(signal.SIGKILL)
        for pid in s.processes():
            os.kill(pid, signal.SIGKILL)
        until(lambda: not s.processes(), "holder and engine are gone")
        os.unlink(s.path("s/apps/shop/engine.json"))
        os.unlink(s.path("s/policies/gold.yaml"))  # it cannot be started
        s.start()
        self.assertNotEqual([name for name in os.listdir("/dev/shm") if part in name], [])
        self.assertEqual(until(lambda: self.deleted("shop?purge=true"), "it is not being started just then"), "deleted")
        self.assertEqual([name for name in os.listdir("/dev/shm") if part in name], [])
        self.assertFalse(os.path.exists(s.path("s/apps/shop")))

    def test_lsn_is_of_the_newest_write_in_mode_flush(self):
        s = self.s.start()
        s.apply("apiVersion: tidemark.io/v1alpha1\nkind: ProtectionPolicy\nmetadata: {name: lazy}\nspec: {ackMode: flush}\n---\n"
                "apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {name: shop}\n"
                "spec: {policyRef: {name: lazy}, volumes: [{name: data, size: 16Mi}]}\n")
        device = s.status()["volumes"][0]["device"]
        for i in range(20):
            before = s.status()["lsn"]
            subprocess.run(["dd", "if=/dev/zero", "of=" + device, "bs=4096", "count=1", f"seek={i}", "oflag=direct", "conv=notrunc",
                            "status=none"], check=True)
            self.assertGreater(s.status()["lsn"], before)


    def test_a_volume_that_somebody_unmounted_is_told(self):
        s = self.s.start()
        s.apply(s.yaml())
        s.write("mnt/shop/data/f", "one")
        self.assertEqual(s.status()["alarms"], [])
        device, mount = s.status()["volumes"][0]["device"], s.path("mnt/shop/data")
        subprocess.run(["umount", mount], check=True)
        alarms = s.status()["alarms"]
        self.assertEqual(len(alarms), 1, alarms)
        self.assertIn("volume data was unmounted from " + mount, alarms[0])
        subprocess.run(alarms[0].rsplit("; ", 1)[1].split(), check=True)  # the remedy, as it is told
        self.assertEqual((s.status()["alarms"], s.read("mnt/shop/data/f")), ([], "one"))
        self.assertEqual(s.status()["volumes"][0]["device"], device)


class Starts(Base):
    def test_what_is_not_brought_up_yet_is_neither_changed_nor_deleted(self):
        """The API answers while applications are brought up one after another: who changed or deleted one whose turn had not come kept it from being started, or ended its
        engine below what a former `up` had mounted."""
        s = self.s.start()
        texts = {name: s.yaml(name, volumes=("data",)) for name in ("one", "two")}
        for text in texts.values():
            s.apply(text)
        self.assertEqual(s.stop(), 0)
        go, hook = s.path("go"), s.path("libexec")
        os.mkdir(hook)
        build = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(TIDEMARK))))
        engine = os.path.join(build, "src", "engine", "tidemark-engine")
        with open(f"{hook}/tidemark-engine", "w", encoding="ascii") as f:
            f.write(f"#!/bin/sh\nwhile [ ! -e {go} ]; do sleep 0.05; done\nexec {engine} \"$@\"\n")
        os.chmod(f"{hook}/tidemark-engine", 0o755)
        shutil.copy(os.path.join(build, "src", "export", "tidemark-holder"), hook)
        starting = threading.Thread(target=s.start, kwargs={"environment": {"TIDEMARK_LIBEXEC": hook}})
        starting.start()
        try:
            until(lambda: os.path.exists(s.socket) and len(s.processes()) > 1, "the first is being brought up")
            for name, text in texts.items():
                for what, arguments in ((s.apply, (text,)), (s.call, ("DELETE", f"/v1/applications/{name}?purge=true"))):
                    with self.assertRaises(ApiError) as caught:
                        what(*arguments)
                    self.assertEqual(caught.exception.code, "EBUSY", caught.exception.message)
                    self.assertIn("start is under way", caught.exception.message)
        finally:
            s.write("go", "")
            starting.join()
        for name, text in texts.items():
            self.assertEqual(s.status(name)["state"], "protected")
            self.assertEqual(s.apply(text)[0]["result"], "unchanged")
            self.assertIn(s.path("mnt", name, "data"), s.mounts())

    def test_a_start_that_was_asked_for_is_not_followed_by_the_one_that_was_due(self):
        """Which would end the engine that runs, and take its volumes from the workload."""
        s = self.s.start()
        text = s.yaml(volumes=("data",))
        s.apply(text)
        self.assertEqual(s.stop(), 0)
        backing = s.path("s/apps/shop/backing/data.img")
        os.rename(backing, backing + ".lost")
        s.start()
        until(lambda: s.log_text().count("is gone") >= 3, "the next try is in four seconds")
        os.rename(backing + ".lost", backing)
        s.apply(text)
        status = s.status()
        self.assertEqual(status["state"], "protected")
        with open(s.path("mnt/shop/data/f"), "w", encoding="ascii") as f:
            time.sleep(5)
            f.write("a workload is in the middle of it")
            f.flush()
            os.fsync(f.fileno())
        after = s.status()
        self.assertEqual((after["state"], after["engine_pid"], after["restarts"]), ("protected", status["engine_pid"], status["restarts"]))

    def test_ready_is_told_before_the_workload_is_started(self):
        """`systemctl start shop` waits for what shop is ordered after: for `up` to be ready."""
        s = self.s.start()
        notify = s.path("notify")
        s.apply(s.yaml(volumes=("data",), extra=f"  lifecycle:\n    start: for i in $(seq 600); do test -e {s.root}/told && break; sleep 0.05; done; test -e {s.root}/told && echo start >> {s.root}/calls\n"))
        self.assertEqual(s.stop(), 0)
        s.write("s/apps/shop/workload-stopped", "")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(listener.close)
        listener.bind(notify)
        listener.settimeout(60)

        def told():
            self.assertEqual(listener.recv(100), b"READY=1")
            s.write("told", "")

        thread = threading.Thread(target=told)
        thread.start()
        self.addCleanup(thread.join)
        s.start(environment={"NOTIFY_SOCKET": notify})
        self.assertEqual(s.read("calls"), "start\n")


class Copies(Base):
    def test_a_copy_of_the_state_directory_is_a_history_of_its_own(self):
        """Beside the original, on the same host: an administrator tries something on the copy."""
        s = self.s.start()
        s.apply(s.yaml(export="nbd", volumes=("data",), size="16Mi"))
        client = NbdClient(s.status()["volumes"][0]["nbd_uri"]).choose()
        client.write(0, b"both" * 1024)
        client.socket.close()
        s.call("POST", "/v1/applications/shop/tag", {"name": "both"})
        self.assertEqual(s.stop(), 0)
        copy = Stand()
        self.addCleanup(copy.destroy)
        subprocess.run(["cp", "-a", s.state, copy.state], check=True)
        stands = (s, copy)
        for one in stands:
            one.start()
        clients = [NbdClient(one.status()["volumes"][0]["nbd_uri"]).choose() for one in stands]
        for c in clients:
            self.addCleanup(c.socket.close)
        for i in range(200):
            for word, c in zip((b"here", b"copy"), clients):
                c.write((1 + i) * 4096, word * 1024)
        rings = []
        for one in stands:
            with open(f"/proc/{one.status()['engine_pid']}/maps", encoding="utf-8") as f:
                rings.append({line.split()[-1] for line in f if line.rstrip().endswith(".ring")})
        self.assertTrue(all(rings) and not rings[0] & rings[1], rings)
        for one in stands:  # what they have in shared memory counts now
            os.kill(one.status()["engine_pid"], signal.SIGKILL)
        for word, one in zip((b"here", b"copy"), stands):
            until(lambda o=one: o.status()["state"] == "protected", "the engine is back")
            self.assertTrue(one.operate("/v1/applications/shop/verify", {})["ok"])
            view = one.operate("/v1/applications/shop/open", {"point": "latest"})["view"]
            for uri in (view["volumes"][0]["nbd_uri"], one.status()["volumes"][0]["nbd_uri"]):
                client = NbdClient(uri).choose()
                self.addCleanup(client.socket.close)
                self.assertEqual([i for i in range(200) if client.read((1 + i) * 4096) != word * 1024], [])
                self.assertEqual(client.read(0), b"both" * 1024)


class Removal(Base):
    def test_nothing_that_is_mounted_below_is_removed(self):
        s = self.s.start()
        s.apply(s.yaml(volumes=("data",)))
        s.write("mnt/shop/data/f", "one")
        os.mkdir(s.path("precious"))
        s.write("precious/f", "somebody else's")
        below = s.path("s/apps/shop/backup")
        os.mkdir(below)
        subprocess.run(["mount", "--bind", s.path("precious"), below], check=True)
        self.addCleanup(subprocess.run, ["umount", "-l", below], stderr=subprocess.DEVNULL, check=False)
        for remove in (lambda: s.call("DELETE", "/v1/applications/shop?purge=true"),
                       lambda: s.call("POST", "/v1/applications/shop/detach", {})):
            with self.assertRaises(ApiError) as caught:
                remove()
            self.assertEqual(caught.exception.code, "EBUSY")
            self.assertIn("mounted on " + below, caught.exception.message)
            self.assertEqual((s.status()["state"], s.read("mnt/shop/data/f")), ("protected", "one"), "it goes on")
        self.assertEqual(s.read("precious/f"), "somebody else's")
        subprocess.run(["umount", below], check=True)
        s.call("DELETE", "/v1/applications/shop?purge=true")
        self.assertEqual(os.listdir(s.path("s/apps")), [])
        self.assertEqual(s.read("precious/f"), "somebody else's")


class Names(Base):
    def test_a_manifest_with_an_odd_name_is_told(self):
        s = self.s.start()
        odd = os.path.join(os.fsencode(s.path("manifests")), b"caf\xe9.yaml")
        with open(odd, "wb") as f:
            f.write(b"a: 1\n")
        s.write("manifests/good \u00e9 'quoted'.yaml", "a: 1\n")
        s.apply("apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {name: shop}\n"
                "spec: {manifests: ./manifests, volumes: [{name: data, size: 16Mi}]}\n")
        until(lambda: any("is not UTF-8" in a and "caf?.yaml" in a for a in s.status()["alarms"]), "the alarm")
        points = s.call("GET", "/v1/applications/shop/points")["points"]
        self.assertEqual([p["name"] for p in points if p["kind"] == "object"], ["good \u00e9 'quoted'.yaml"])
        s.call("POST", "/v1/applications/shop/tag", {"name": "one"})
        s.operate("/v1/applications/shop/rewind", {"to": "tag:one"})
        self.assertTrue(os.path.exists(odd), "what is not journaled is left alone")


class Space(Base):
    def test_a_disk_that_fills_up_under_many_writes_fails_them_and_goes_on(self):
        """The volumes' disk, and not the journal's: each write is answered, and what the backing holds is what the history has."""
        s = self.s.start()
        disk, image = s.path("disk"), s.path("disk.img")
        with open(image, "wb") as f:
            f.truncate(96 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
        os.mkdir(disk)
        subprocess.run(["mount", "-o", "loop", image, disk], check=True)
        self.addCleanup(subprocess.run, ["umount", "-l", disk], check=False)
        with open(os.path.join(disk, "data.img"), "wb") as f:
            f.truncate(256 << 20)
        s.apply("apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {name: shop}\n"
                f"spec: {{export: nbd, volumes: [{{name: data, source: {disk}/data.img}}]}}\n")
        until(lambda: s.status()["state"] == "protected", "what it held is in the history")
        client = NbdClient(s.status()["volumes"][0]["nbd_uri"]).choose()
        self.addCleanup(client.socket.close)
        length, count = 128 << 10, 1600
        data = os.urandom(length)

        def send():
            for i in range(count):
                client.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 1, i, i * length, length) + data)

        sender = threading.Thread(target=send)
        sender.start()
        self.addCleanup(sender.join)
        errors = {}
        for _ in range(count):
            _, error, cookie = struct.unpack(">IIQ", client.take(16))
            errors[cookie] = error
        self.assertEqual(len(errors), count)
        self.assertEqual(set(errors.values()), {0, 28}, "written, or ENOSPC")
        self.assertEqual(s.status()["state"], "protected")
        s.call("POST", "/v1/applications/shop/tag", {"name": "full"})
        view = s.operate("/v1/applications/shop/open", {"point": "tag:full"})["view"]
        there = NbdClient(view["volumes"][0]["nbd_uri"]).choose()
        self.addCleanup(there.socket.close)
        for i in range(count):
            self.assertEqual(there.request(0, i * length, 4096), client.request(0, i * length, 4096), i)

    def test_a_volume_does_not_grow_beyond_the_disk(self):
        """As a new one would not be made: and it could not be made smaller again."""
        s = self.s.start()
        s.apply(s.yaml(export="nbd", volumes=("data",), size="16Mi"))
        fs = os.statvfs(s.state)
        mebibytes = (fs.f_bavail * fs.f_frsize >> 20) * 2 + 64
        with self.assertRaises(ApiError) as caught:
            s.apply(s.yaml(export="nbd", volumes=("data",), size=f"{mebibytes}Mi"))
        self.assertEqual(caught.exception.code, "ENOSPC")
        self.assertIn("does not fit on the disk", caught.exception.message)
        self.assertEqual(s.status()["volumes"][0]["size_bytes"], 16 << 20)
        s.apply(s.yaml(export="nbd", volumes=("data",), size="17Mi"))
        self.assertEqual(s.status()["volumes"][0]["size_bytes"], 17 << 20)


class Words(Base):
    def test_a_stop_that_leaves_something_running_says_so(self):
        s = self.s.start()
        s.apply(s.yaml(volumes=("data",)))
        s.write("mnt/shop/data/f", "one")
        with open(s.path("mnt/shop/data/f"), encoding="ascii"):
            engine = s.status()["engine_pid"]
            self.assertEqual(s.stop(), 4)
            self.assertIn("the next `tidemark up` takes it over", s.log_text())
            self.assertNotIn("another one takes --state", s.log_text())
        s.start()
        self.assertEqual((s.status()["state"], s.status()["engine_pid"]), ("protected", engine))
        other = subprocess.run([TIDEMARK, "--state", s.state, "up"], capture_output=True, text=True, timeout=120, check=False)
        self.assertEqual(other.returncode, 4)
        self.assertIn("another one takes --state", other.stderr)

    def test_points_since_before_the_beginning_are_all(self):
        s = self.s.start()
        s.apply(s.yaml(volumes=("data",), size="16Mi"))
        s.call("POST", "/v1/applications/shop/tag", {"name": "one"})
        whole = s.call("GET", "/v1/applications/shop/points")["points"]
        for since in ("-2d", "2026-01-01T00:00:00Z", "lsn:0"):
            points = s.call("GET", f"/v1/applications/shop/points?since={since}")["points"]
            self.assertEqual([p["kind"] for p in points][-1:], [p["kind"] for p in whole][-1:], since)
            self.assertIn("one", [p.get("name") for p in points], since)
        for since in ("lsn:1000000", "2126-01-01T00:00:00Z"):
            with self.assertRaises(ApiError) as caught:
                s.call("GET", f"/v1/applications/shop/points?since={since}")
            self.assertEqual(caught.exception.code, "ERANGE", since)


class Files(Base):
    def test_an_application_may_refer_to_the_policy_of_another_file(self):
        """As `tidemark help apply` shows it, in either order; and nothing is changed when one of them is wrong."""
        s = self.s.start()
        policy, shop = s.path("policies.yaml"), s.path("shop.yaml")
        with open(policy, "w", encoding="utf-8") as f:
            f.write("# kept\napiVersion: tidemark.io/v1alpha1\nkind: ProtectionPolicy\nmetadata: {name: gold}\n"
                    "spec: {journal: {quota: 1Gi}}\n")
        with open(shop, "w", encoding="utf-8") as f:
            f.write("apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {name: shop}\n"
                    "spec: {policyRef: {name: gold}, volumes: [{name: data, size: 16Mi}]}\n")

        def apply(*files, status=0):
            words = [w for f in files for w in (("-f", f) if f.startswith("/") else (f,))]
            done = subprocess.run([TIDEMARK, "--state", s.state, "apply", *words], capture_output=True, text=True, timeout=120,
                                  check=False)
            self.assertEqual(done.returncode, status, done.stdout + done.stderr)
            return done.stdout + told(done.stderr)

        self.assertIn("there is no ProtectionPolicy 'gold'", apply(shop, status=1))
        for order in ((policy, shop), (shop, policy), (shop, policy, policy)):
            said = apply(*order, "--dry-run")
            self.assertIn("ProtectionPolicy/gold created (dry run)", said)
            self.assertIn("ProtectedApplication/shop created (dry run)", said)
        self.assertEqual(apply(shop, policy), "ProtectionPolicy/gold created\nProtectedApplication/shop created\n")
        self.assertEqual(s.status()["policy"], "gold")


class Tags(Base):
    def test_what_was_written_before_is_in_it(self):
        """Though nobody flushed it: that is what somebody means who tags, tries something and goes back."""
        s = self.s.start()
        s.apply(s.yaml())
        for volume in ("data", "wal"):
            with open(s.path("mnt/shop", volume, "f"), "w", encoding="ascii") as f:
                f.write("before")
        s.call("POST", "/v1/applications/shop/tag", {"name": "one"})
        for volume in ("data", "wal"):
            with open(s.path("mnt/shop", volume, "f"), "w", encoding="ascii") as f:
                f.write("after")
        s.operate("/v1/applications/shop/rewind", {"to": "tag:one"})
        self.assertEqual((s.read("mnt/shop/data/f"), s.read("mnt/shop/wal/f")), ("before", "before"))


class Damage(Base):
    def test_a_cut_segment_is_told_and_the_rest_can_be_salvaged(self):
        s = self.s.start()
        s.apply("apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {name: shop}\n"
                "spec: {volumes: [{name: data, size: 16Mi}]}\n")
        subprocess.run(["dd", "if=/dev/urandom", "of=" + s.status()["volumes"][0]["device"], "bs=64k", "count=64", "oflag=direct",
                        "status=none"], check=True)
        s.call("POST", "/v1/applications/shop/tag", {"name": "one"})
        self.assertEqual(s.stop(), 0)
        journal = s.path("s/apps/shop/journal")
        segment = sorted(f for f in os.listdir(journal) if f.startswith("segment-"))[-1]
        os.truncate(os.path.join(journal, segment), os.path.getsize(os.path.join(journal, segment)) // 2 // 4096 * 4096)
        s.start()
        with self.assertRaises(ApiError) as caught:
            s.operate("/v1/applications/shop/open", {"point": "latest"})
        self.assertEqual(caught.exception.code, "EBADMSG", caught.exception.message)
        self.assertIn("--salvage", caught.exception.message)
        self.assertIn(segment, caught.exception.message)
        result = s.operate("/v1/applications/shop/verify", {})
        self.assertFalse(result["ok"])
        self.assertIn(segment, [d["file"] for d in result["damage"]])
        view = s.operate("/v1/applications/shop/open", {"point": "latest", "salvage": True})["view"]
        self.assertGreater(view["salvage"]["damaged_bytes"], 0)
        s.call("DELETE", "/v1/views/" + view["id"])

    def test_what_cannot_be_read_at_all_is_told_by_verify(self):
        """Manifest and key, both copies of them: the engine that runs has them in memory."""
        s = self.s.start()
        key = s.path("shop.key")
        subprocess.run([TIDEMARK, "key", "generate", key], check=True, stdout=subprocess.DEVNULL)
        s.apply("apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {name: shop}\n"
                f"spec: {{export: nbd, volumes: [{{name: data, size: 16Mi}}], journal: {{encryption: {{keyFile: {key}}}}}}}\n")
        self.assertTrue(s.operate("/v1/applications/shop/verify", {})["ok"])  # and nothing is left to be sealed
        journal = s.path("s/apps/shop/journal")
        for file in ("manifest", "key"):
            paths = [os.path.join(journal, name) for name in (file, file + ".copy")]
            whole = []
            for path in paths:
                with open(path, "rb") as f:
                    whole.append(f.read())
                with open(path, "wb") as f:
                    f.write(bytes([whole[-1][0] ^ 1]) + whole[-1][1:])
            result = s.operate("/v1/applications/shop/verify", {})
            self.assertFalse(result["ok"])
            self.assertEqual([d["file"] for d in result["damage"]], [file])
            self.assertEqual(result["damages"], 1)
            for path in paths:
                os.unlink(path)
            if file == "manifest":
                with self.assertRaises(ApiError) as caught:
                    s.operate("/v1/applications/shop/verify", {})
                self.assertIn("cannot verify shop: the verification has failed: ", caught.exception.message)
                self.assertIn(journal, caught.exception.message)
            else:
                self.assertIn("put one back", s.operate("/v1/applications/shop/verify", {})["damage"][0]["what"])
            for path, data in zip(paths, whole):
                with open(path, "wb") as f:
                    f.write(data)
            self.assertTrue(s.operate("/v1/applications/shop/verify", {})["ok"])

    def test_an_index_of_another_journal_or_segment_is_damage(self):
        """It is whole, and would answer with what the other one holds: nothing of that is ever taken for this one's."""
        s = self.s.start()
        for name in ("shop", "other"):
            s.apply(f"apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {{name: {name}}}\n"
                    "spec: {export: nbd, volumes: [{name: data, size: 16Mi}]}\n")
            for phase in range(2):
                client = NbdClient(s.status(name)["volumes"][0]["nbd_uri"]).choose()
                client.write(4096 * phase, name.encode().ljust(4) * 1024)
                client.socket.close()
                s.operate(f"/v1/applications/{name}/verify", {})  # seals a segment
        self.assertEqual(s.stop(), 0)
        shop, other = s.path("s/apps/shop/journal"), s.path("s/apps/other/journal")
        first, second = (os.path.join(shop, f) for f in sorted(f for f in os.listdir(shop) if f.startswith("l0-"))[:2])
        for source, words in ((os.path.join(other, os.path.basename(second)), "another journal"), (first, "another segment")):
            shutil.copyfile(source, second)
            s.start()
            with self.assertRaises(ApiError) as caught:
                s.operate("/v1/applications/shop/open", {"point": "latest"})
            self.assertEqual(caught.exception.code, "EBADMSG", caught.exception.message)
            self.assertIn(words, caught.exception.message)
            self.assertIn(os.path.basename(second), caught.exception.message)
            result = s.operate("/v1/applications/shop/verify", {})
            self.assertIn(os.path.basename(second), [d["file"] for d in result["damage"]])
            view = s.operate("/v1/applications/shop/open", {"point": "latest", "salvage": True})["view"]
            client = NbdClient(view["volumes"][0]["nbd_uri"]).choose()
            for phase in range(2):
                self.assertEqual(client.read(4096 * phase), b"shop" * 1024, "the segment has it all")
            client.socket.close()
            self.assertEqual(s.stop(), 0)

    def test_a_missing_or_cut_file_of_the_base_or_of_a_rewind_is_told_when_a_point_is_opened(self):
        """Not at the first read of what it had; and a volume that was added after a rewind is no damage to that."""
        s = self.s.start()
        text = ("apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {name: shop}\n"
                "spec: {export: nbd, volumes: [{name: data, size: 16Mi}]}\n")
        s.apply(text)
        for content in (b"good", b"bad!"):
            client = NbdClient(s.status()["volumes"][0]["nbd_uri"]).choose()
            client.write(4096, content * 1024)
            client.socket.close()
            s.call("POST", "/v1/applications/shop/tag", {"name": content.decode().rstrip("!")})
        s.operate("/v1/applications/shop/rewind", {"to": "tag:good"})
        s.apply(text.replace("}]}", "}, {name: more, size: 16Mi}]}"))
        result = s.operate("/v1/applications/shop/verify", {})
        self.assertTrue(result["ok"], result)
        journal = s.path("s/apps/shop/journal")
        rescue, = (f for f in os.listdir(journal) if f.startswith("rescue-"))
        for file, before in (("base/1.img", True), ("base/1.crc", True), (rescue + "/1.img", False)):
            self.assertEqual(s.stop(), 0)
            path = os.path.join(journal, file)
            if file.endswith("img"):
                os.rename(path, path + ".away")
            else:
                shutil.copyfile(path, path + ".away")
                os.truncate(path, 4096)
            s.start()
            for point, refused in (("tag:good", before), ("latest", True)):
                if refused:
                    with self.assertRaises(ApiError) as caught:
                        s.operate("/v1/applications/shop/open", {"point": point})
                    self.assertEqual(caught.exception.code, "EBADMSG", caught.exception.message)
                    self.assertIn(path, caught.exception.message)
                view = s.operate("/v1/applications/shop/open", {"point": point, "salvage": refused})["view"]
                if refused and not before:  # what the rewind put there may have been in the store that is gone
                    self.assertEqual(view["salvage"]["damaged_bytes"], 4096)
                else:
                    client = NbdClient(view["volumes"][0]["nbd_uri"]).choose()
                    self.assertEqual(client.read(4096), b"good" * 1024)
                    client.socket.close()
                s.call("DELETE", "/v1/views/" + view["id"])
            view = s.operate("/v1/applications/shop/open", {"point": "latest", "volume": "more"})["view"]  # which has nothing there
            client = NbdClient(view["volumes"][0]["nbd_uri"]).choose()
            self.assertEqual(client.read(0), bytes(4096))
            client.socket.close()
            s.call("DELETE", "/v1/views/" + view["id"])
            self.assertIn(path, " ".join(d["what"] for d in s.operate("/v1/applications/shop/verify", {})["damage"]))
            self.assertEqual(s.stop(), 0)
            os.rename(path + ".away", path)
            s.start()
        s.call("DELETE", "/v1/views/" + s.operate("/v1/applications/shop/open", {"point": "latest"})["view"]["id"])

    def test_a_history_of_which_no_point_can_be_opened_yet_is_verified(self):
        s = self.s.start()
        image = s.path("old.img")
        with open(image, "wb") as f:
            f.write(os.urandom(96 << 20))  # a minute and a half of it
        s.apply("apiVersion: tidemark.io/v1alpha1\nkind: ProtectionPolicy\nmetadata: {name: slow}\nspec: {journal: {seedRate: 1Mi}}\n---\n"
                "apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {name: shop}\n"
                f"spec: {{policyRef: {{name: slow}}, export: nbd, volumes: [{{name: data, source: {image}}}]}}\n")
        with self.assertRaises(ApiError) as caught:
            s.operate("/v1/applications/shop/open", {"point": "latest"})
        self.assertIn("still being copied", caught.exception.message)
        self.assertTrue(s.operate("/v1/applications/shop/verify", {})["ok"])
        self.assertEqual(s.status()["state"], "seeding")

    def test_a_backing_that_was_cut_is_not_filled_with_zeroes(self):
        """The remedy that is told works."""
        s = self.s.start()
        s.apply("apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {name: shop}\n"
                "spec: {export: nbd, volumes: [{name: data, size: 16Mi}]}\n")
        client = NbdClient(s.status()["volumes"][0]["nbd_uri"]).choose()
        client.write(15 << 20, b"last" * 1024)
        client.socket.close()
        s.call("POST", "/v1/applications/shop/tag", {"name": "one"})
        backing = s.path("s/apps/shop/backing/data.img")
        for size in (8 << 20, 0):
            self.assertEqual(s.stop(), 0)
            os.truncate(backing, size)
            s.start()
            status = until(lambda: s.status()["state"] == "failed" and s.status(), "it is refused")
            self.assertIn(f"backing {backing} was cut: it has {size} bytes, not 16777216", status["message"])
            self.assertIn("Put the whole file back", status["message"])
            self.assertEqual(os.path.getsize(backing), size)
        os.unlink(backing)
        with open(backing, "wb") as f:
            f.truncate(16 << 20)
        until(lambda: s.status()["state"] == "protected", "an empty one is what the user wants")
        s.operate("/v1/applications/shop/rewind", {"to": "tag:one"})
        client = NbdClient(s.status()["volumes"][0]["nbd_uri"]).choose()
        self.assertEqual(client.read(15 << 20), b"last" * 1024)
        client.socket.close()

    def test_a_backing_that_is_gone_is_not_replaced_by_nothing(self):
        """The remedy that is told works."""
        s = self.s.start()
        s.apply(s.yaml(volumes=("data",)))
        s.write("mnt/shop/data/f", "one")
        s.call("POST", "/v1/applications/shop/tag", {"name": "one"})
        self.assertEqual(s.stop(), 0)
        backing = s.path("s/apps/shop/backing/data.img")
        os.rename(backing, backing + ".lost")
        s.start()
        status = s.status()
        self.assertEqual(status["state"], "failed")
        self.assertIn(f"backing {backing} is gone", status["message"])
        self.assertFalse(os.path.exists(backing))
        with open(backing, "wb") as f:
            f.truncate(64 << 20)
        until(lambda: s.status()["state"] == "protected", "an empty one is what the user wants")
        view = s.operate("/v1/applications/shop/open", {"point": "tag:one"})["view"]
        with open(view["volumes"][0]["mount"] + "/f", encoding="ascii") as f:
            self.assertEqual(f.read(), "one")


class Engine(Base):
    def kill_over_the_next(self, carried_out, asked):
        """Takes one request, which the engine of `shop` gets or not, and kills it without an answer: a thread that ends then."""
        path = self.s.path("s/apps/shop/engine.sock")
        engine = self.s.status()["engine_pid"]
        os.rename(path, path + ".real")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()

        def die():
            one, _ = listener.accept()
            request = one.recv(65536)
            asked.append(request.split()[1])
            if carried_out:
                with socket.socket(socket.AF_UNIX) as real:
                    real.connect(path + ".real")
                    real.sendall(request)
                    real.recv(65536)
            os.unlink(path)
            os.kill(engine, signal.SIGKILL)
            until(lambda: os.path.exists(path), "the next engine listens")
            one.close()
            listener.close()

        thread = threading.Thread(target=die)
        thread.start()
        return thread

    def protect_shop(self):
        s = self.s.start()
        s.apply("apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {name: shop}\n"
                "spec: {volumes: [{name: data, size: 16Mi}]}\n")
        return s

    def test_an_opening_whose_engine_is_killed_is_asked_for_again(self):
        """Whether the pin was made before or not; and so are other questions that are no GET."""
        s, asked = self.protect_shop(), []
        s.call("POST", "/v1/applications/shop/tag", {"name": "one"})
        for carried_out in (False, True):
            dying = self.kill_over_the_next(carried_out, asked)
            view = s.operate("/v1/applications/shop/open", {"point": "tag:one"})["view"]
            dying.join()
            s.call("DELETE", "/v1/views/" + view["id"])
            until(lambda: os.listdir(s.path("s/apps/shop/journal/pins")) == [], "no pin is left")
        for question in (lambda: s.call("POST", "/v1/applications/shop/diff", {"from": "tag:one", "to": "latest"}),
                         lambda: s.call("POST", "/v1/applications/shop/rewind", {"to": "tag:one", "dry_run": True})):
            dying = self.kill_over_the_next(False, asked)
            question()
            dying.join()
        self.assertEqual(asked, [b"/v1/pin", b"/v1/pin", b"/v1/diff", b"/v1/resolve"])

    def test_a_tag_whose_engine_is_killed_is_given_once(self):
        """Whether it was written before or not; but a name that was given earlier stays refused."""
        s, asked = self.protect_shop(), []
        for carried_out in (False, True):
            name = f"tag-{carried_out}"
            dying = self.kill_over_the_next(carried_out, asked)
            answer = s.call("POST", "/v1/applications/shop/tag", {"name": name, "labels": {"k": "v"}})
            dying.join()
            tags = [p for p in s.call("GET", "/v1/applications/shop/points")["points"] if p["kind"] == "tag" and p["name"] == name]
            self.assertEqual([(p["lsn"], p["time"], p["labels"]) for p in tags], [(answer["lsn"], answer["time"], {"k": "v"})])
            dying = self.kill_over_the_next(carried_out, asked)
            with self.assertRaisesRegex(ApiError, "is there already"):
                s.call("POST", "/v1/applications/shop/tag", {"name": name})
            dying.join()
        self.assertEqual(asked, 4 * [b"/v1/tag"])

    def test_a_question_that_a_dying_engine_leaves_is_asked_again(self):
        """A killed process takes connections until all of it is gone, and resets them."""
        s = self.s.start()
        s.apply("apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {name: shop}\n"
                "spec: {volumes: [{name: data, size: 16Mi}]}\n")
        path = s.path("s/apps/shop/engine.sock")
        os.rename(path, path + ".real")
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(path)
        listener.listen()

        def reset():
            one, _ = listener.accept()
            one.recv(65536)
            os.rename(path + ".real", path)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()

        dying = threading.Thread(target=reset)
        dying.start()
        self.addCleanup(dying.join)
        self.assertEqual(s.call("GET", "/v1/applications/shop/points")["application"], "shop")


class NbdClient:
    """As little of a client as shows what a connection sees."""

    def __init__(self, uri):
        name, path = uri.removeprefix("nbd+unix:///").split("?socket=")
        self.name = name.encode()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(180)
        self.socket.connect(path)
        self.take(18)
        self.socket.sendall(struct.pack(">I", 3))

    def take(self, length):
        data = b""
        while len(data) < length:
            more = self.socket.recv(length - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def choose(self):
        self.socket.sendall(b"IHAVEOPT" + struct.pack(">II", 1, len(self.name)) + self.name)
        self.take(10)
        return self

    def request(self, command, offset, length, data=b""):
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, command, 7, offset, length) + data)
        magic, error, cookie = struct.unpack(">IIQ", self.take(16))
        assert (magic, error, cookie) == (0x67446698, 0, 7), (magic, error, cookie)
        return self.take(length) if command == 0 else b""

    def read(self, offset):
        return self.request(0, offset, 4096)

    def write(self, offset, data):
        self.request(1, offset, len(data), data)


class Nbd(Base):
    def test_who_asks_for_a_killed_engine_waits_for_the_next_one_and_does_not_keep_it_away(self):
        s = self.s.start()
        s.apply(s.yaml(export="nbd", volumes=("data",), size="16Mi"))
        s.call("POST", "/v1/applications/shop/tag", {"name": "one"})
        for _ in range(5):
            os.kill(s.status()["engine_pid"], signal.SIGKILL)
            began = time.monotonic()
            s.call("POST", "/v1/applications/shop/diff", {"from": "tag:one", "to": "latest"})
            until(lambda: s.status()["state"] == "protected", "it is back")
            os.kill(s.status()["engine_pid"], signal.SIGKILL)
            try:  # it has the application for itself, and nobody starts the engine before it has ended
                view = s.operate("/v1/applications/shop/open", {"point": "tag:one"})["view"]
                s.call("DELETE", "/v1/views/" + view["id"])
            except ApiError as told:
                self.assertIn("the engine of shop does not answer", told.message)
            until(lambda: s.status()["state"] == "protected", "it is back")
            self.assertLess(time.monotonic() - began, 9, "nobody waits for what cannot come")

    def test_a_rewind_disconnects_the_clients(self):
        """What a client remembers of the volume is not true any more: its connection ends, and with a new one it goes on."""
        s = self.s.start()
        s.apply(s.yaml(export="nbd", size="16Mi"))
        uris = [v["nbd_uri"] for v in s.status()["volumes"]]
        clients = [NbdClient(uri).choose() for uri in uris]
        for c in clients:
            self.addCleanup(c.socket.close)
            c.write(4096, b"good" * 1024)
        s.call("POST", "/v1/applications/shop/tag", {"name": "good"})
        for c in clients:
            c.write(4096, b"bad!" * 1024)
        greeted = NbdClient(uris[0])  # and has not chosen a volume yet
        self.addCleanup(greeted.socket.close)
        s.call("POST", "/v1/applications/shop/rewind", {"to": "tag:good", "dry_run": True})
        self.assertEqual(clients[0].read(4096), b"bad!" * 1024, "a plan disturbs nobody")
        s.operate("/v1/applications/shop/rewind", {"to": "tag:good"})
        for c in clients:
            with self.assertRaises((EOFError, ConnectionError)):
                c.write(8192, b"late" * 1024)
        for c in (greeted.choose(), *(NbdClient(uri).choose() for uri in uris)):
            self.addCleanup(c.socket.close)
            self.assertEqual((c.read(4096), c.read(8192)), (b"good" * 1024, bytes(4096)))

    def test_a_rewind_under_load_is_exact(self):
        """Writers on connections of their own that come back: nothing of what they wrote before is there after."""
        s = self.s.start()
        s.apply(s.yaml(export="nbd", volumes=("data",), size="16Mi"))
        uri, stop, ended = s.status()["volumes"][0]["nbd_uri"], threading.Event(), []
        client = NbdClient(uri).choose()
        self.addCleanup(client.socket.close)
        client.write(0, b"good" * 1024)
        s.call("POST", "/v1/applications/shop/tag", {"name": "good"})

        def load(number):
            """Each connection writes blocks of its own: what it wrote before it was disconnected is what the rewind takes away."""
            c, count = NbdClient(uri).choose(), 0
            try:
                while not stop.is_set():
                    count += 1
                    c.write((1 + number * 64 + count % 64) * 4096, b"bad!" * 1024)
                ended.append("never disconnected")
            except (EOFError, ConnectionError):
                ended.append(count)
            finally:
                c.socket.close()

        threads = [threading.Thread(target=load, args=(i,)) for i in range(4)]
        for t in threads:
            t.start()
        self.addCleanup(lambda: (stop.set(), [t.join() for t in threads]))
        until(lambda: s.status()["volumes"][0]["written_bytes"] > 400 * 4096, "they write")
        s.operate("/v1/applications/shop/rewind", {"to": "tag:good"})
        until(lambda: len(ended) == 4, "all were disconnected")
        self.assertNotIn("never disconnected", ended)
        client = NbdClient(uri).choose()
        self.addCleanup(client.socket.close)
        self.assertEqual(client.read(0), b"good" * 1024)
        for block in range(1, 257):
            self.assertEqual(client.read(block * 4096), bytes(4096), block)


class Crowd(Base):
    def test_who_sends_nothing_shuts_nobody_out(self):
        s = self.s.start()
        crowd = []
        self.addCleanup(lambda: [one.close() for one in crowd])
        for i in range(300):
            one = socket.socket(socket.AF_UNIX)
            crowd.append(one)
            one.settimeout(60)
            one.connect(s.socket)
            try:
                one.sendall((b"", b"G", b"POST /v1/apply HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")[i % 3])
            except (BrokenPipeError, ConnectionResetError):
                pass
        done = subprocess.run([TIDEMARK, "--state", s.state, "status"], capture_output=True, text=True, timeout=25, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_who_comes_while_all_are_busy_waits(self):
        with open("/proc/sys/net/core/somaxconn", encoding="ascii") as f:
            if int(f.read()) < 400:
                self.skipTest("the kernel allows no such queue (net.core.somaxconn)")
        s = self.s.start()
        s.up.send_signal(signal.SIGSTOP)
        crowd = []
        try:
            for _ in range(300):
                one = socket.socket(socket.AF_UNIX)
                crowd.append(one)
                one.setblocking(False)
                one.connect(s.socket)  # BlockingIOError: the queue is full
        finally:
            s.up.send_signal(signal.SIGCONT)
            for one in crowd:
                one.close()
        until(lambda: s.call("GET", "/v1/version")["pid"] == s.up.pid, "the API answers")


if __name__ == "__main__":
    unittest.main(verbosity=2)
