#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The state directory's file system is full: what runs goes on, also when `up` or the engine is started again, and what does not is told with
the reason. Needs root, /dev/fuse, loop devices and tmpfs."""
import os
import signal
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(__file__))
from stand import Stand, content, until, write  # noqa: E402


class FullDisk(unittest.TestCase):
    def setUp(self):
        self.s = s = Stand()
        os.mkdir(s.state)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m,mode=700", "none", s.state], check=True)
        self.addCleanup(subprocess.run, ["umount", "-l", s.state], stderr=subprocess.DEVNULL, check=False)
        self.addCleanup(s.destroy)
        s.start()
        source = s.path("data.img")  # elsewhere: its writes need no room on the full disk
        with open(source, "wb") as f:
            f.truncate(16 << 20)
        s.apply("apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {name: shop}\nspec:\n  volumes:\n"
                f"  - {{name: data, source: {source}}}\n")
        until(lambda: s.status()["state"] == "protected", "what the source holds to be in the history")
        self.device = s.status()["volumes"][0]["device"]
        self.filler = os.path.join(s.state, "filler")

    def fill(self):
        with open(self.filler, "wb", buffering=0) as f:
            try:
                while True:
                    f.write(bytes(1 << 16))
            except OSError:
                pass

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

    def test_an_engine_that_cannot_start_says_why_in_the_status(self):
        s = self.s
        self.fill()

        def suspended():
            write(self.device, 0, os.urandom(8 << 20))
            return s.status()["state"] == "suspended"

        until(suspended, "what was reserved for the journal to be used up")
        self.fill()
        os.kill(s.status()["engine_pid"], signal.SIGKILL)
        status = until(lambda: s.status()["state"] == "crash-looping" and s.status(), "the engine to be told as one that does not stay")
        self.assertIn("No space left on device", status["message"])
        self.assertIn("No space left on device", " ".join(status["alarms"]))
        os.unlink(self.filler)
        until(lambda: s.status()["state"] == "protected", "the engine to be back")
        write(self.device, 0, b"one" + bytes(4093))
        self.assertEqual(content(self.device, 0, 3), b"one")


if __name__ == "__main__":
    unittest.main(verbosity=2)
