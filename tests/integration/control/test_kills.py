#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""fio --verify on an application's volume while its processes are killed or replaced: I/O goes on without an error, the data is
right, and `tidemark up` takes over what it finds. Needs root, /dev/fuse, loop devices and fio (skipped without)."""
import datetime
import os
import shutil
import signal
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(__file__))
from stand import BUILD, ApiError, Load, Stand, content, until  # noqa: E402

PROGRAMS = ("src/engine/tidemark-engine", "src/export/tidemark-holder")


class Base(unittest.TestCase):
    def setUp(self):
        self.s = Stand()
        self.addCleanup(self.s.destroy)
        # Installed programs of its own, so that they can be replaced.
        self.libexec = self.s.path("libexec")
        os.mkdir(self.libexec)
        for program in PROGRAMS:
            if os.path.exists(os.path.join(BUILD, program)):
                shutil.copy2(os.path.join(BUILD, program), self.libexec)
        self.fio = None

    def start(self):
        return self.s.start(environment={"TIDEMARK_LIBEXEC": self.libexec})

    def load(self):
        """Begins to write and verify on the volume data."""
        self.fio = Load(self.s.root, self.s.path("mnt/shop/data/load"), "--size=64m", "--rate=24m")
        self.addCleanup(self.fio.kill)
        self.goes_on()

    def written(self):
        return self.s.status()["volumes"][0]["written_bytes"] or 0

    def goes_on(self, least=4 << 20):
        """Another few MiB are written; the counter is an engine's own, and begins anew with it."""
        before = until(lambda: self.s.status()["state"] == "protected" and self.written() + 1, "protected") - 1
        until(lambda: self.fio.ended() or self.written() >= before + least, "writes go on")
        self.assertFalse(self.fio.ended(), "fio failed: " + self.fio.output())

    def ends_well(self):
        """A clean stop, and a start that has everything."""
        s = self.s
        s.write("mnt/shop/data/f", "last")
        self.assertEqual(s.stop(), 0)
        until(lambda: not any(s.remains().values()), "nothing is left", 15)
        self.start()
        status = s.status()
        self.assertEqual((status["state"], status["alarms"]), ("protected", []))
        self.assertEqual(s.read("mnt/shop/data/f"), "last")
        self.assertTrue(s.operate("/v1/applications/shop/verify", {})["ok"])


class Kills(Base):
    def test_up_and_holder(self):
        s = self.start()
        s.apply(s.yaml(volumes=("data",), size="256Mi"))
        self.load()
        engine, holder = s.status()["engine_pid"], int(s.read("s/apps/shop/holder.pid"))

        s.stop(signal.SIGKILL)  # `up`
        self.start()
        status = s.status()
        self.assertEqual((status["state"], status["engine_pid"], status["alarms"]), ("protected", engine, []))
        self.assertEqual(int(s.read("s/apps/shop/holder.pid")), holder, "taken over, not started again")
        self.goes_on()

        os.kill(engine, signal.SIGKILL)
        until(lambda: s.status()["engine_pid"] not in (None, engine) and s.status()["state"] == "protected", "the engine is back")
        engine = s.status()["engine_pid"]
        self.goes_on()

        os.kill(holder, signal.SIGKILL)
        until(lambda: any("holder was ended" in a for a in s.status()["alarms"]), "the alarm")
        self.assertEqual(s.status()["engine_pid"], engine)
        self.goes_on()
        with self.assertRaises(ApiError) as caught:  # nobody would start it again
            s.operate("/v1/applications/shop/upgrade-engine", {})
        self.assertIn("holder", caught.exception.message)

        s.stop(signal.SIGKILL)  # and `up` without a holder below it
        self.start()
        status = s.status()
        self.assertEqual((status["state"], status["engine_pid"]), ("protected", engine))
        self.assertTrue(any("holder was ended" in a for a in status["alarms"]), status["alarms"])
        self.goes_on()
        self.fio.is_right()
        self.ends_well()
        self.assertNotEqual(s.status()["engine_pid"], engine)


    def test_devices_that_are_still_used_are_waited_for_together(self):
        """All of it was killed, and somebody has the devices open: `up` waits for that once, not once for each volume."""
        s = self.start()
        s.apply(s.yaml(volumes=("data", "wal", "more")))
        status = s.status()
        held = [os.open(v["device"], os.O_RDONLY) for v in status["volumes"]]
        try:
            s.stop(signal.SIGKILL)
            for pid in (int(s.read("s/apps/shop/holder.pid")), status["engine_pid"]):
                os.kill(pid, signal.SIGKILL)
            self.start()
            self.assertEqual(s.status()["state"], "protected")
            with open(s.log, encoding="utf-8") as f:
                told = [datetime.datetime.fromisoformat(line.split()[0]) for line in f if "cannot detach /dev/loop" in line]
            self.assertEqual(len(told), 3)
            self.assertLess(told[-1] - told[0], datetime.timedelta(seconds=8))  # it waits 10 s
            for v in s.status()["volumes"]:
                content(v["device"], 0, 4096)
        finally:
            for fd in held:
                os.close(fd)


class Upgrade(Base):
    def replace(self, content=None):
        """Installs another program as the engine, as a package does: a new file under the old name. None: the same program."""
        path = os.path.join(self.libexec, "tidemark-engine")
        if content is None:
            shutil.copy2(os.path.join(BUILD, PROGRAMS[0]), path + ".new")
        else:
            with open(path + ".new", "w", encoding="ascii") as f:
                f.write(content)
            os.chmod(path + ".new", 0o755)
        os.rename(path + ".new", path)

    def program_of(self, pid):
        found = os.stat(f"/proc/{pid}/exe")
        return found.st_dev, found.st_ino

    def test_fuse(self):
        s = self.start()
        if s.call("GET", "/v1/status")["warnings"]:
            self.skipTest("the kernel cannot send requests again")
        s.apply(s.yaml(volumes=("data",), size="256Mi"))
        self.load()
        upgrade = "/v1/applications/shop/upgrade-engine"
        old = s.status()["engine_pid"]
        for content, words in (("#!/bin/sh\necho no such journal >&2\nexit 78\n", "no such journal"), ("#!/bin/sh\nexit 0\n", "cannot take over")):
            self.replace(content)
            with self.assertRaises(ApiError) as caught:
                s.operate(upgrade, {})
            self.assertIn(words, caught.exception.message)
            self.assertEqual(s.status()["engine_pid"], old, "nothing was changed")
        for _ in range(2):
            self.goes_on()
            self.replace()
            new = os.stat(os.path.join(self.libexec, "tidemark-engine"))
            result = s.operate(upgrade, {})
            self.assertEqual(result["from_pid"], old)
            self.assertNotEqual(result["to_pid"], old)
            self.assertEqual(result["to_pid"], s.status()["engine_pid"])
            self.assertEqual(self.program_of(result["to_pid"]), (new.st_dev, new.st_ino))
            self.assertTrue(0 < result["pause_ms"] < 20000, result)
            self.assertFalse(result["disconnected"])
            print(f"paused for {result['pause_ms']:.1f} ms", file=sys.stderr)
            old = result["to_pid"]
        self.goes_on()
        self.fio.is_right()
        for _ in range(3):  # within a minute: that is no engine that does not stay
            s.operate(upgrade, {})
            status = s.status()
            self.assertEqual((status["alarms"], status["crash_looping"]), ([], False))
        for _ in range(3):
            killed = s.status()["engine_pid"]
            os.kill(killed, signal.SIGKILL)
            until(lambda: s.status()["engine_pid"] not in (None, killed), "the next engine")
        status = s.status()
        self.assertTrue(status["crash_looping"], status)
        self.assertIn("has ended 3 times in a row", " ".join(status["alarms"]))
        self.ends_well()

    def test_an_engine_of_another_installation_is_left_alone(self):
        """Its holder would start the program that it knows, which may not read what this `up` has configured: the mounts would end."""
        s = self.start()
        if s.call("GET", "/v1/status")["warnings"]:
            self.skipTest("the kernel cannot send requests again")
        s.apply(s.yaml(volumes=("data",)))
        old = s.status()["engine_pid"]
        s.stop(signal.SIGKILL)
        s.start()  # the programs of the build, not those of self.libexec
        with self.assertRaises(ApiError) as caught:
            s.operate("/v1/applications/shop/upgrade-engine", {})
        self.assertIn("the running holder starts " + self.libexec, caught.exception.message)
        self.assertEqual(s.status()["engine_pid"], old, "nothing was changed")
        s.write("mnt/shop/data/f", "works")

    def test_nbd(self):
        s = self.start()
        s.apply(s.yaml(volumes=("data",), size="16Mi", export="nbd"))
        uri, old = s.status()["volumes"][0]["nbd_uri"], s.status()["engine_pid"]
        with open(s.path("image"), "wb") as f:
            f.write(b"tide" * (4 << 20))
        subprocess.run(["nbdcopy", s.path("image"), uri], check=True)
        upgrade = "/v1/applications/shop/upgrade-engine"
        with self.assertRaises(ApiError) as caught:
            s.operate(upgrade, {})
        self.assertEqual(caught.exception.code, "EBUSY")
        self.assertIn("--disconnect", caught.exception.message)
        self.assertEqual(s.status()["engine_pid"], old)
        result = s.operate(upgrade, {"disconnect": True})
        self.assertTrue(result["disconnected"])
        self.assertEqual(result["to_pid"], s.status()["engine_pid"])
        self.assertNotEqual(result["to_pid"], old)
        subprocess.run(["nbdcopy", uri, s.path("back")], check=True)
        subprocess.run(["cmp", s.path("image"), s.path("back")], check=True)


if __name__ == "__main__":
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse") or not os.path.exists("/dev/loop-control") or not shutil.which("fio"):
        print("needs root, /dev/fuse, loop devices and fio")
        sys.exit(77)
    unittest.main(verbosity=2)
