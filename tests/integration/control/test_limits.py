#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""An engine that ends again and again is told as such, with how it ended and what to do, and is forgotten once it stays; what was
written before is there. Needs root, /dev/fuse and loop devices."""
import json
import mmap
import os
import signal
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(__file__))
from stand import Stand, until  # noqa: E402

ENGINE = os.path.join(os.environ["TIDEMARK_BUILD"], "src/engine/tidemark-engine")


def is_attached(device):
    return os.path.exists(f"/sys/block/{os.path.basename(device)}/loop/backing_file")


class Limits(unittest.TestCase):
    def setUp(self):
        self.s = Stand()
        self.addCleanup(self.s.destroy)

    def start(self, export):
        """With an engine that kills itself while there is a file `die`."""
        s, self.die = self.s, self.s.path("die")
        os.makedirs(s.path("programs"), exist_ok=True)
        with open(s.path("programs/tidemark-engine"), "w") as f:
            f.write('#!/bin/sh\nif [ "$1" = serve ] && [ -e "%s" ]; then kill -9 $$; fi\nexec "%s" "$@"\n' % (self.die, ENGINE))
        os.chmod(s.path("programs/tidemark-engine"), 0o755)
        s.start(environment={"TIDEMARK_LIBEXEC": s.path("programs")})
        s.apply(s.yaml(volumes=("data",), export=export))

    def metric(self, name):
        text = self.s.call("GET", "/metrics", raw=True)[1]
        return next(line for line in text.splitlines() if line.startswith(name + '{application="shop"')).split()[-1]

    def test_an_engine_that_does_not_stay(self):
        s = self.s
        self.start("fuse")
        with open(s.path("mnt/shop/data/f"), "w") as f:
            f.write("kept")
            f.flush()
            os.fsync(f.fileno())
        status = s.status()
        self.assertEqual((status["state"], status["crash_looping"], status["restarts"], status["alarms"]), ("protected", False, 0, []))
        open(self.die, "w").close()
        os.kill(status["engine_pid"], signal.SIGKILL)
        until(lambda: s.status()["state"] == "crash-looping", "the engine to be told as one that does not stay")
        status = s.status()
        for words in ("times in a row", "signal 9", "engine.log"):
            self.assertIn(words, status["message"])
        self.assertTrue(any("in a row" in alarm for alarm in status["alarms"]))
        self.assertGreaterEqual(status["restarts"], 3)
        self.assertEqual(self.metric("tidemark_engine_crash_looping"), "1")
        self.assertGreaterEqual(int(self.metric("tidemark_engine_restarts_total")), 3)
        os.unlink(self.die)
        until(lambda: s.status()["state"] == "protected", "the engine to stay")
        with open(s.path("mnt/shop/data/f")) as f:
            self.assertEqual(f.read(), "kept")
        until(lambda: not s.status()["crash_looping"], "that to be forgotten")
        self.assertEqual(s.status()["alarms"], [])
        self.was_killed_for_memory()

    def was_killed_for_memory(self):
        """As the holder notes it (engine-oom has a real one)."""
        s = self.s
        path = os.path.join(s.state, "apps/shop/holder.ends")
        with open(path, "r+") as f:
            ends = json.loads(f.read())
            ends.update(signal=9, oom_killed=True, limit_bytes=64 << 20, in_a_row=1, realtime_ns=time.time_ns())
            f.seek(0)
            f.write(json.dumps(ends).ljust(511) + "\n")
        alarms = s.status()["alarms"]
        self.assertEqual(len(alarms), 1, alarms)
        for words in ("killed by the kernel for memory", "64", "give it more"):
            self.assertIn(words, alarms[0])
        with open(path, "r+") as f:
            ends["realtime_ns"] -= 2 * 3600 * 10**9
            f.write(json.dumps(ends).ljust(511) + "\n")
        self.assertEqual(s.status()["alarms"], [])
        self.assertEqual(self.metric("tidemark_engine_crash_looping"), "0")

    def test_a_view_that_keeps_too_much_is_closed(self):
        """At the quota and half of its reserve, with a reason; the application goes on protected, and history with it."""
        s = self.s.start()
        s.apply("apiVersion: tidemark.io/v1alpha1\nkind: ProtectionPolicy\nmetadata: {name: small}\n"
                "spec: {journal: {quota: 256Mi, thinning: []}}\n")
        s.apply(s.yaml(volumes=("data",), size="128Mi").replace("spec:\n", "spec:\n  policyRef: {name: small}\n"))
        s.write("mnt/shop/data/f", "then")
        s.call("POST", "/v1/applications/shop/tag", {"name": "then"})
        view = s.operate("/v1/applications/shop/open", {"point": "tag:then"})["view"]
        seen = os.path.join(view["volumes"][0]["mount"], "f")
        with open(seen) as f:
            self.assertEqual(f.read(), "then")
        most = 0
        with open(s.path("mnt/shop/data/g"), "wb") as f:
            for i in range(40):  # 1.25 GiB at the most
                if s.call("GET", "/v1/views")["views"][0]["state"] != "open":
                    break
                f.seek(0)
                f.write(os.urandom(1 << 20) * 32)
                f.flush()
                os.fdatasync(f.fileno())
                most = max(most, s.status()["journal_bytes"])
        until(lambda: s.call("GET", "/v1/views")["views"][0]["state"] == "closed: quota", "the view to be closed")
        told = s.call("GET", "/v1/views")["views"][0]
        self.assertIn("quota", told["reason"])
        self.assertLessEqual(most, (256 + 256 + 192) << 20)
        with self.assertRaises(OSError):
            fd = os.open(view["volumes"][0]["device"], os.O_RDONLY | os.O_DIRECT)
            try:
                os.preadv(fd, [mmap.mmap(-1, 1 << 20)], 32 << 20)
            finally:
                os.close(fd)
        until(lambda: s.status()["journal_bytes"] <= 256 << 20 and s.status()["state"] == "protected", "history to move on")
        self.assertGreater(s.status()["oldest_lsn"], view["lsn"])
        self.assertTrue(is_attached(view["volumes"][0]["device"]))
        s.call("DELETE", "/v1/views/" + view["id"])
        self.assertEqual(s.call("GET", "/v1/views")["views"], [])
        self.assertFalse(is_attached(view["volumes"][0]["device"]), "its loop device has stayed")
        self.assertEqual(s.read("mnt/shop/data/f"), "then")

    def test_a_holder_that_is_asked_to_end_leaves_no_device(self):
        """By somebody else than `up`, which starts another: what the file system of before was mounted on is gone with it."""
        s = self.s.start()
        s.apply(s.yaml(volumes=("data",)))
        s.write("mnt/shop/data/f", "kept")
        os.sync()
        engine, device = s.status()["engine_pid"], s.status()["volumes"][0]["device"]
        os.kill(int(s.read("s/apps/shop/holder.pid")), signal.SIGTERM)
        until(lambda: s.status()["engine_pid"] not in (None, 0, engine) and s.status()["state"] == "protected", "another engine")
        self.assertEqual(s.read("mnt/shop/data/f"), "kept")
        with open("/proc/mounts") as f:
            mounted = [line.split()[0] for line in f if line.split()[1] == s.path("mnt/shop/data")]
        self.assertEqual(mounted, [s.status()["volumes"][0]["device"]])
        self.assertTrue(device == mounted[0] or not is_attached(device), "the loop device of before has stayed")


if __name__ == "__main__":
    if os.geteuid() or not os.path.exists("/dev/fuse"):
        print("skipped: needs root and /dev/fuse")
        sys.exit(77)
    unittest.main(verbosity=2)
