#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A workload that takes long to stop, and writes meanwhile more than the quota holds: the point that it is stopped for stays (U6), and nothing keeps
it afterwards, however the rewind ends. Needs root, /dev/fuse and loop devices."""
import os
import signal
import sys
import threading
import unittest

sys.path.insert(0, os.path.dirname(__file__))
from stand import ApiError, Stand, until  # noqa: E402

POLICY = "apiVersion: tidemark.io/v1alpha1\nkind: ProtectionPolicy\nmetadata: {name: default}\nspec: {journal: {quota: 256Mi, thinning: []}}\n"
LIFECYCLE = """  lifecycle:
    stop: [/bin/sh, -c, "touch ROOT/stopping; until [ -e ROOT/stopped ]; do sleep 0.02; done; exit $(cat ROOT/stopped)"]
    start: [touch, ROOT/started]
"""


class SlowStop(unittest.TestCase):
    def setUp(self):
        self.s = s = Stand()
        self.addCleanup(s.destroy)
        s.start()
        s.apply(POLICY)
        s.apply(s.yaml(volumes=("data",), size="128Mi", extra=LIFECYCLE.replace("ROOT", s.root)))
        s.write("mnt/shop/data/f", "good")
        self.point = s.call("POST", "/v1/applications/shop/tag", {"name": "good"})["lsn"]
        self.ended = None

    def begin(self):
        """A rewind, until its stop command runs."""
        def run():
            try:
                self.ended = self.s.operate("/v1/applications/shop/rewind", {"to": "tag:good"})
            except (ApiError, OSError) as error:
                self.ended = error

        self.rewind = threading.Thread(target=run)
        self.rewind.start()
        until(lambda: os.path.exists(self.s.path("stopping")), "the stop command")

    def let_stop(self, status):
        with open(self.s.path("stopped.new"), "w", encoding="ascii") as f:
            f.write(str(status))
        os.rename(self.s.path("stopped.new"), self.s.path("stopped"))
        self.rewind.join(120)

    def write_much(self):
        """More than the quota of 256 MiB holds, less than that and its reserve."""
        with open(self.s.path("mnt/shop/data/much"), "wb") as f:
            for _ in range(4):
                f.seek(0)
                for _ in range(70):
                    f.write(os.urandom(1 << 20))
                    f.flush()
                    os.fdatasync(f.fileno())

    def nothing_is_kept(self):
        self.assertEqual([n for n in os.listdir(self.s.path("s/apps/shop/journal/pins")) if "rewind" in n], [])
        self.write_much()
        until(lambda: self.s.status()["oldest_lsn"] > self.point, "the point to be dropped by the quota")

    def test_the_point_stays_until_it_is_rewound_to(self):
        s = self.s
        self.begin()
        killed = s.status()["engine_pid"]
        os.kill(killed, signal.SIGKILL)
        until(lambda: s.status()["engine_pid"] not in (None, killed), "the next engine")
        self.write_much()
        self.let_stop(0)
        self.assertIsInstance(self.ended, dict, self.ended)
        self.assertEqual(s.read("mnt/shop/data/f"), "good")
        self.assertFalse(os.path.exists(s.path("mnt/shop/data/much")))
        self.nothing_is_kept()

    def test_a_stop_that_fails_keeps_nothing(self):
        self.begin()
        self.let_stop(1)
        self.assertIsInstance(self.ended, ApiError, self.ended)
        self.nothing_is_kept()

    def test_an_up_that_is_killed_keeps_nothing(self):
        """The next one carries the rewind on, which ends there: it holds the point for itself."""
        s = self.s
        self.begin()
        s.stop(signal.SIGKILL)
        self.rewind.join(120)
        os.unlink(s.path("stopping"))
        s.start()
        until(lambda: os.path.exists(s.path("stopping")), "the next stop command")
        self.write_much()
        self.let_stop(0)
        until(lambda: os.path.exists(s.path("started")) and not s.status()["operation"], "the rewind to be carried on to its end")
        self.assertFalse(os.path.exists(s.path("mnt/shop/data/much")))
        self.nothing_is_kept()


if __name__ == "__main__":
    if os.geteuid() or not os.path.exists("/dev/fuse"):
        print("skipped: needs root and /dev/fuse")
        sys.exit(77)
    unittest.main(verbosity=2)
