#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The state directory's file system is full: what runs goes on, also when `up` or the engine is started again, and what does not is told with
the reason; the same where a quota of the file system is used up. Needs root, /dev/fuse, loop devices, tmpfs and btrfs."""
import os
import shutil
import signal
import subprocess
import sys
import threading
import unittest

sys.path.insert(0, os.path.dirname(__file__))
from stand import ApiError, Stand, content, until, write  # noqa: E402


class Stage(unittest.TestCase):
    export = "fuse"
    REASON = "No space left on device"

    def mount(self):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m,mode=700", "none", self.s.state], check=True)

    def setUp(self):
        self.s = s = Stand()
        os.mkdir(s.state)
        self.mount()
        self.addCleanup(subprocess.run, ["umount", "-l", s.state], stderr=subprocess.DEVNULL, check=False)
        self.addCleanup(s.destroy)
        s.start()
        with open(s.path("data.img"), "wb") as f:  # elsewhere: its writes need no room on the full disk
            f.truncate(16 << 20)
        s.apply(self.description())
        until(lambda: s.status()["state"] == "protected", "what the source holds to be in the history")
        self.device = s.status()["volumes"][0]["device"]
        self.filler = os.path.join(s.state, "filler")
        self.reserve = os.path.join(s.state, "apps/shop/journal/reserve")
        until(lambda: os.path.exists(self.reserve) and os.path.getsize(self.reserve) == 8 << 20, "the reserve")
        timer = threading.Timer(60, self.make_room)  # what waits for room would wait for ever, and whoever calls sync(2) with it
        timer.start()
        self.addCleanup(timer.join)
        self.addCleanup(timer.cancel)

    def description(self, size=""):
        return ("apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {name: shop}\nspec:\n"
                f"  export: {self.export}\n  volumes:\n  - {{name: data, {size}source: {self.s.path('data.img')}}}\n")

    def make_room(self):
        if os.path.exists(self.filler):
            os.truncate(self.filler, 0)

    def fill(self):
        with open(self.filler, "ab", buffering=0) as f:  # what it has stays: the journal would take that
            try:
                while True:
                    f.write(bytes(1 << 16))
            except OSError:
                pass

    def suspend(self):
        """Until nothing that is reserved for the running journal is left."""
        self.fill()

        def suspended():
            write(self.device, 0, os.urandom(8 << 20))
            return self.s.status()["state"] == "suspended"

        until(suspended, "what was reserved for the journal to be used up")
        self.fill()

    def kill_engine(self):
        killed = self.s.status()["engine_pid"]
        os.kill(killed, signal.SIGKILL)
        return killed

    def is_whole_again(self):
        s = self.s
        until(lambda: s.status()["state"] == "protected", "journaling to go on, and all to be compared")
        s.call("POST", "/v1/applications/shop/tag", {"name": "there-is-room"})
        view = s.operate("/v1/applications/shop/open", {"point": "tag:there-is-room"})["view"]
        subprocess.run(["blockdev", "--flushbufs", self.device], check=True)
        self.assertEqual(content(view["volumes"][0]["device"]), content(self.device))


class FullDisk(Stage):
    def test_fills_while_a_clone_is_copied(self):
        """Nor can the copying process write its log then: its reason is told all the same, and nothing of the clone stays."""
        s = self.s
        write(self.device, 0, os.urandom(8 << 20))
        s.call("POST", "/v1/applications/shop/tag", {"name": "then"})
        build = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(f"/proc/{s.up.pid}/exe"))))
        engine = os.path.join(build, "src", "engine", "tidemark-engine")
        hook = s.path("libexec")
        os.mkdir(hook)
        shutil.copy(os.path.join(build, "src", "export", "tidemark-holder"), hook)
        with open(f"{hook}/tidemark-engine", "w", encoding="ascii") as f:
            f.write(f"#!/bin/sh\n[ \"$1\" != copy ] || ! grep -q '\"target\"' \"$3\" || [ ! -e {hook}/fill ] || cat /dev/zero >>{self.filler} 2>/dev/null\n"
                    f"exec {engine} \"$@\"\n")
        os.chmod(f"{hook}/tidemark-engine", 0o755)
        s.write("libexec/fill", "")
        self.assertEqual(s.stop(), 0)
        s.start(environment={"TIDEMARK_LIBEXEC": hook})
        with self.assertRaises(ApiError) as caught:
            s.operate("/v1/applications/shop/clone", {"name": "copy", "point": "tag:then"})
        self.assertEqual(caught.exception.code, "ENOSPC", caught.exception.message)
        self.assertIn(self.REASON, caught.exception.message)
        self.assertFalse(os.path.exists(os.path.join(s.state, "apps/copy")))
        os.unlink(s.path("libexec/fill"))
        self.make_room()
        s.operate("/v1/applications/shop/clone", {"name": "copy", "point": "tag:then"})
        copied, original = (content(s.status(name)["volumes"][0]["device"]) for name in ("copy", "shop"))  # since the stop a device may be another's
        self.assertEqual(copied, original)

    def test_an_up_that_is_started_again_takes_over_what_runs(self):
        s = self.s
        write(self.device, 0, b"one" + bytes(4093))
        self.fill()
        engine = s.status()["engine_pid"]
        s.stop(signal.SIGKILL)
        s.start()
        status = s.status()
        self.assertIn(status["state"], ("protected", "suspended"), status["message"])
        self.assertEqual(status["engine_pid"], engine)
        self.assertIsNone(status["message"])
        write(self.device, 4096, b"two" + bytes(4093))
        self.assertEqual(content(self.device, 4096, 3), b"two")

    def test_an_engine_that_is_killed_is_back_without_room(self):
        """Somebody else takes all that becomes free, all the time."""
        s = self.s
        self.suspend()
        data, over = {}, threading.Event()

        def take():
            with open(self.filler, "ab", buffering=0) as f:
                while not over.wait(0.0005):
                    try:
                        f.write(bytes(4096))
                    except OSError:
                        pass

        taker = threading.Thread(target=take)
        taker.start()
        self.addCleanup(taker.join)
        self.addCleanup(over.set)
        for n in range(int(os.environ.get("TIDEMARK_KILLS", "5"))):
            killed = self.kill_engine()
            data[n] = os.urandom(4096)
            write(self.device, n << 16, data[n])  # waits for the next engine
            subprocess.run(["blockdev", "--flushbufs", self.device], check=True)
            for at in data:
                self.assertEqual(content(self.device, at << 16, 4096), data[at])
            status = until(lambda: (status := s.status())["engine_pid"] not in (None, killed) and status["state"] == "suspended" and status, "the next engine")
            self.assertIn(self.REASON, " ".join(status["alarms"]))
        over.set()
        taker.join()
        self.make_room()
        self.is_whole_again()
        for at in data:
            self.assertEqual(content(self.device, at << 16, 4096), data[at])

    def test_a_policy_is_taken_while_journaling_is_suspended(self):
        s = self.s
        self.suspend()
        os.truncate(self.filler, os.path.getsize(self.filler) - (1 << 20))  # for the policy, not for a segment
        result = s.apply("apiVersion: tidemark.io/v1alpha1\nkind: ProtectionPolicy\nmetadata: {name: default}\nspec: {journal: {quota: 256Mi}}\n")[0]
        self.assertEqual((result["result"], result["message"]), ("created", None))
        status = s.status()
        self.assertEqual((status["state"], status["quota_bytes"]), ("suspended", 256 << 20))
        with self.assertRaises(ApiError) as caught:  # a larger volume is for the history, too
            s.apply(self.description("size: 32Mi, "))
        self.assertEqual(caught.exception.status, 409, caught.exception.message)
        self.assertIn("cannot grow while journaling is suspended", caught.exception.message)

    def test_an_engine_that_cannot_start_says_why_in_the_status(self):
        s = self.s
        self.suspend()

        def taken():
            if os.path.exists(self.reserve):
                os.unlink(self.reserve)
            self.fill()
            return not os.path.exists(self.reserve)

        until(taken, "the reserve to be used up")
        self.kill_engine()
        status = until(lambda: s.status()["state"] == "crash-looping" and s.status(), "the engine to be told as one that does not stay")
        self.assertIn(self.REASON, status["message"])
        self.assertIn(self.REASON, " ".join(status["alarms"]))
        self.make_room()
        until(lambda: s.status()["state"] == "protected", "the engine to be back")
        write(self.device, 0, b"one" + bytes(4093))
        self.assertEqual(content(self.device, 0, 3), b"one")


class UsedUpQuota(Stage):
    """The file system has room, but not for who writes here: EDQUOT, also for root."""
    REASON = "Disk quota exceeded (of the file system, not of the journal)"

    def mount(self):
        image, state = self.s.path("disk.img"), self.s.state
        with open(image, "wb") as f:
            f.truncate(2 << 30)
        for command in (["mkfs.btrfs", "-q", image], ["mount", "-o", "loop", image, state], ["btrfs", "quota", "enable", state], ["chmod", "700", state]):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def fill(self):
        used = [line.split()[1] for line in subprocess.check_output(["btrfs", "qgroup", "show", "--raw", "--sync", self.s.state], text=True).splitlines()
                if line.startswith("0/5 ")]
        subprocess.run(["btrfs", "qgroup", "limit", used[0], "0/5", self.s.state], stderr=subprocess.DEVNULL, check=False)  # the second time it has no room for that

    def make_room(self):
        if os.path.ismount(self.s.state):
            subprocess.run(["btrfs", "quota", "disable", self.s.state], check=False)

    def test_journaling_is_suspended_until_there_is_room(self):
        """As on a full disk: what runs goes on, and it is told why. (This file system can make and write over nothing then, so that no engine and no `up` can
        be started; tests/unit/journal/test_writer.c has an opening where that is possible.)"""
        s = self.s
        self.suspend()
        self.assertIn(self.REASON, " ".join(s.status()["alarms"]))
        write(self.device, 1 << 20, b"one" + bytes(4093))
        self.assertEqual(s.status()["state"], "suspended")
        self.refuses()
        write(self.device, 2 << 20, b"two" + bytes(4093))
        inside = f"lsn:{s.status()['durable_lsn'] + 1}"
        self.make_room()
        self.is_whole_again()
        for operation, field in (("open", "point"), ("rewind", "to")):
            with self.assertRaises(ApiError) as caught:
                s.operate("/v1/applications/shop/" + operation, {field: inside})
            self.assertEqual(caught.exception.code, "ERANGE", caught.exception)
        self.assertEqual(content(self.device, 1 << 20, 3), b"one")
        self.assertEqual(content(self.device, 2 << 20, 3), b"two")

    def refuses(self):
        """What needs the journal is refused with the application, the reason and what to do, before anything is stopped for it."""
        for call in (lambda: self.s.call("POST", "/v1/applications/shop/tag", {"name": "now"}),
                     lambda: self.s.call("POST", "/v1/applications/shop/rewind", {"to": "lsn:1", "dry_run": True}),
                     lambda: self.s.operate("/v1/applications/shop/rewind", {"to": "lsn:1"})):
            with self.assertRaises(ApiError) as caught:
                call()
            self.assertIn(caught.exception.status, (0, 409))  # 0: of an operation
            self.assertEqual(caught.exception.code, "EBUSY")
            for words in ("journaling of shop is suspended", self.REASON, "tidemark status shop"):
                self.assertIn(words, caught.exception.message)

    def test_writes_wait_for_room_where_the_policy_says_so(self):
        s = self.s
        s.apply("apiVersion: tidemark.io/v1alpha1\nkind: ProtectionPolicy\nmetadata: {name: default}\nspec: {failureMode: protection}\n")
        written = threading.Event()
        self.fill()

        def write_more():
            for _ in range(12):  # more than what is reserved for the running journal
                write(self.device, 0, os.urandom(12 << 20))
            written.set()

        writer = threading.Thread(target=write_more)
        writer.start()
        self.addCleanup(writer.join)
        self.addCleanup(self.make_room)
        status = until(lambda: (status := s.status())["state"] == "suspended" and status, "the quota to be used up")
        self.assertIn(self.REASON, " ".join(status["alarms"]))
        self.assertFalse(written.is_set())
        self.make_room()
        self.assertTrue(written.wait(60), "the writes did not go on")
        until(lambda: s.status()["state"] == "protected", "journaling to go on")
        self.assertEqual([p for p in s.call("GET", "/v1/applications/shop/points")["points"] if p["kind"] == "gap" and p["name"] == "gap"], [])


class Nbd(Stage):
    export = "nbd"

    def test_an_engine_that_is_killed_is_back_without_room(self):
        s = self.s
        for _ in range(3):
            self.fill()
            killed = self.kill_engine()
            status = until(lambda: (status := s.status())["engine_pid"] not in (None, killed) and status["state"] == "suspended" and status, "the next engine", 5)
            self.assertIn("No space left on device", " ".join(status["alarms"]))
        self.make_room()
        until(lambda: s.status()["state"] == "protected", "journaling to go on")


if __name__ == "__main__":
    unittest.main(verbosity=2)
