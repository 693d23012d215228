#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`tidemark up` with real engines, loop devices and mounts. Needs root, /dev/fuse and loop devices (skipped without)."""
import errno
import fcntl
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest
import urllib.error
import urllib.request

sys.path.insert(0, os.path.dirname(__file__))
import journal  # noqa: E402
from stand import ApiError, Stand, TIDEMARK, until  # noqa: E402

LIFECYCLE = """\
  lifecycle:
    stop: [[sh, -c, "echo stop >> {0}/calls; [ ! -e {0}/fail-stop ]"]]
    start: "echo start >> {0}/calls"
    probe: [sh, -c, "test -e {0}/healthy"]
"""


class Base(unittest.TestCase):
    def setUp(self):
        self.s = Stand()
        self.addCleanup(self.s.destroy)

    def fails(self, code, words, call, *arguments, **named):
        with self.assertRaises(ApiError) as caught:
            call(*arguments, **named)
        self.assertEqual(caught.exception.code, code, caught.exception.message)
        for word in words:
            self.assertIn(word, caught.exception.message)

    def nothing_left(self):
        until(lambda: not any(self.s.remains().values()), "nothing is left", 15)


class Applications(Base):
    def test_life(self):
        s = self.s.start()
        s.write("manifests/app.yaml", "a: 1\n")
        text = s.yaml(extra="  manifests: ./manifests\n")
        self.assertEqual(s.apply(text, "&dry_run=true")[0]["result"], "created")
        self.assertEqual(s.call("GET", "/v1/status")["applications"], [])
        self.assertEqual(s.apply(text)[0]["result"], "created")
        self.assertEqual(s.apply(text)[0]["result"], "unchanged")
        status = s.status()
        for field in ("name", "state", "lsn", "durable_lsn", "oldest_lsn", "oldest_time", "rpo_ms", "journal_bytes"):
            self.assertIsNotNone(status[field], field)
        self.assertEqual(status["state"], "protected")
        for volume in status["volumes"]:
            self.assertEqual(volume["size_bytes"], 64 << 20)
            self.assertTrue(volume["device"].startswith("/dev/loop"))
            self.assertEqual(volume["mount"], s.path("mnt/shop", volume["name"]))
            self.assertIsNone(volume["nbd_uri"])
            self.assertGreater(volume["written_bytes"], 0)
        s.write("mnt/shop/data/f", "one")
        metrics = s.call("GET", "/metrics", raw=True)[1]
        self.assertIn('tidemark_volume_size_bytes{application="shop",volume="wal"} 67108864', metrics)
        self.assertIn('tidemark_application_state{application="shop",state="protected"} 1', metrics)
        self.assertIn('tidemark_suspicious{application="shop"} 0', metrics)
        self.assertIn('tidemark_volume_high_entropy_rewrites_bytes_total{application="shop",volume="data"} 0', metrics)
        self.fails("ENOENT", ["nothing suspicious"], s.call, "GET", "/v1/applications/shop/last-clean")

        # A stop brings nothing down but ends everything; the next start has it all back.
        self.assertEqual(s.stop(), 0)
        self.nothing_left()
        s.start()
        self.assertEqual(s.read("mnt/shop/data/f"), "one")

        # In use: refused with the user's name, all stays mounted.
        sleeper = subprocess.Popen(["sleep", "100"], cwd=s.path("mnt/shop/data"))
        self.addCleanup(sleeper.kill)
        self.fails("EBUSY", ["sleep", str(sleeper.pid), "cwd"], s.call, "DELETE", "/v1/applications/shop")
        self.assertEqual(len([v for v in s.status()["volumes"] if v["mount"]]), 2)
        sleeper.kill()
        sleeper.wait()

        answer = s.call("DELETE", "/v1/applications/shop")
        self.assertTrue(os.path.isdir(answer["journal"]))
        self.assertTrue(all(os.path.exists(v["backing"]) for v in answer["volumes"]))
        self.nothing_left()
        self.assertEqual(s.apply(text)[0]["result"], "created")  # the data was kept
        self.assertEqual(s.read("mnt/shop/data/f"), "one")
        self.assertIsNone(s.call("DELETE", "/v1/applications/shop?purge=true")["journal"])
        self.assertEqual(os.listdir(s.path("s/apps")), [])
        self.fails("ENOENT", ["there is no application 'shop'"], s.status)

    def test_changes(self):
        s = self.s.start()
        s.apply(s.yaml())
        s.write("mnt/shop/data/f", "one")
        self.assertEqual(s.apply(s.yaml(volumes=("data", "wal", "more")))[0]["result"], "configured")
        self.assertEqual(s.read("mnt/shop/data/f"), "one")
        self.assertEqual([v["name"] for v in s.status()["volumes"] if v["mount"]], ["data", "wal", "more"])
        self.assertEqual(s.apply(s.yaml(volumes=("data", "wal", "more"), extra=LIFECYCLE.format(s.root)))[0]["result"],
                         "configured")
        three = ("data", "wal", "more")
        self.fails("EINVAL", ["volume more", "cannot be removed"], s.apply, s.yaml())
        self.fails("EINVAL", ["cannot shrink", "64.0 MiB"], s.apply, s.yaml(volumes=three, size="32Mi"))
        self.fails("EINVAL", ["spec.export", "tidemark delete shop"], s.apply, s.yaml(export="nbd", volumes=three))
        self.assertEqual(s.status()["state"], "protected")

    def test_refused(self):
        s = self.s.start()
        before = s.remains()
        for query, says in (("dry_run=yes", ["dry_run", "true or false", "'yes'"]), ("dry-run=true", ["'dry-run' is not expected", "dry_run"]),
                            ("dry_run=true&dry_run=false", ["'dry_run'", "twice"])):
            self.fails("EINVAL", says, s.apply, s.yaml(), "&" + query)
        self.fails("EINVAL", ["test.yaml:7:", "spec.volumes[0].size", "found '1Mi'", "at least 16.0 MiB"], s.apply,
                   s.yaml(size="1Mi"))
        self.fails("ENOSPC", ["needed", "free", "volumes"], s.apply, s.yaml(size="60Ti"))
        self.fails("EINVAL", ["spec.policyRef.name", "no ProtectionPolicy 'gold'", "there are: default"], s.apply, s.yaml(extra="  policyRef: {name: gold}\n"))
        self.fails("ENOTDIR", ["spec.manifests", "create it"], s.apply, s.yaml(extra="  manifests: ./nowhere\n"))
        os.makedirs(s.path("mnt/shop/wal"))
        s.write("mnt/shop/wal/precious", "x")
        self.fails("ENOTEMPTY", ["volume wal", "precious"], s.apply, s.yaml())
        os.unlink(s.path("mnt/shop/wal/precious"))
        subprocess.run(["mount", "-t", "tmpfs", "none", s.path("mnt/shop/wal")], check=True)
        self.fails("EBUSY", ["volume wal", "is mounted there"], s.apply, s.yaml())
        subprocess.run(["umount", s.path("mnt/shop/wal")], check=True)
        self.assertEqual(os.listdir(s.path("s/apps")), [], "nothing half done")
        self.assertFalse(os.path.exists(s.path("mnt/shop/data")))
        until(lambda: s.remains() == before, "nothing more is left", 15)
        self.assertEqual(s.apply(s.yaml())[0]["result"], "created")
        for query in ("purge=no", "purge=False", "purge=", "purge", "dry_run=true"):
            self.fails("EINVAL", [query.split("=")[0]], s.call, "DELETE", f"/v1/applications/shop?{query}")
        self.fails("EINVAL", ["'dry_run' is not expected"], s.call, "POST", "/v1/applications/shop/rewind?dry_run=true", {"to": "latest"})
        self.fails("EBUSY", ["volume data of shop is mounted on"], s.apply, s.yaml(name="other").replace("mnt/other", "mnt/shop"))

    def test_foreign_content(self):
        s = self.s.start()
        text = s.yaml(volumes=("data",)).replace(", mountPath: " + s.path("mnt/shop/data") + ", fsType: ext4", "")
        s.apply(text)
        device = s.status()["volumes"][0]["device"]
        self.assertIsNone(s.status()["volumes"][0]["mount"])
        subprocess.run(["mkswap", device], check=True, capture_output=True)
        self.fails("EEXIST", ["holds swap", "nothing was changed"], s.apply, s.yaml(volumes=("data",)))
        self.assertEqual(s.status()["state"], "protected", "back to what it was")

    def test_policies(self):
        s = self.s.start()
        policy = ("apiVersion: tidemark.io/v1alpha1\nkind: ProtectionPolicy\nmetadata: {name: gold}\n"
                  "spec: {journal: {quota: 512Mi}, ackMode: flush}\n")
        results = s.apply(s.yaml(volumes=("data",), extra="  policyRef: {name: gold}\n") + "---\n" + policy)
        self.assertEqual([r["kind"] for r in results], ["ProtectionPolicy", "ProtectedApplication"])
        self.assertEqual((s.status()["quota_bytes"], s.status()["ack"]), (512 << 20, "flush"))
        self.assertEqual(s.apply(policy)[0]["result"], "unchanged")
        changed = s.apply(policy.replace("512Mi", "1Gi"))[0]
        self.assertEqual(changed["result"], "configured")
        self.assertIsNone(changed["message"])  # and the running engine has taken it

    def test_manifests(self):
        s = self.s.start()
        s.write("manifests/a.yaml", "a: 1\n")
        s.write("manifests/.hidden.yaml", "no\n")
        s.write("manifests/note.txt", "no\n")
        s.apply(s.yaml(volumes=("data",), extra="  manifests: ./manifests\n"))

        def objects():
            points = s.call("GET", "/v1/applications/shop/points?limit=1000")["points"]
            return [p["name"] for p in reversed(points) if p["kind"] == "object"]

        until(lambda: objects() == ["a.yaml"], "the first comparison")
        os.makedirs(s.path("manifests/sub/deep"))
        s.write("manifests/sub/deep/b.json", "{}\n")
        until(lambda: objects() == ["a.yaml", "sub/deep/b.json"], "a new directory")
        s.write("manifests/c.yaml.tmp", "c: 1\n")
        os.rename(s.path("manifests/c.yaml.tmp"), s.path("manifests/c.yaml"))
        until(lambda: objects()[2:] == ["c.yaml"], "a rename")
        os.unlink(s.path("manifests/c.yaml"))
        until(lambda: objects()[2:] == ["c.yaml", "c.yaml"], "a deletion")
        s.stop()
        s.write("manifests/a.yaml", "a: 2\n")
        s.start()
        until(lambda: objects()[4:] == ["a.yaml"], "a change while it was down")
        with open(s.path("manifests/bad.yaml"), "wb") as f:
            f.write(b"\xff\xfe")
        until(lambda: any("bad.yaml is not UTF-8" in a for a in s.status()["alarms"]), "the alarm")


class Supervision(Base):
    def test_kill_of_up(self):
        """U1: nothing ends with `up`; the next one takes over, views included."""
        s = self.s.start()
        s.apply(s.yaml())
        s.write("mnt/shop/data/f", "one")
        view = s.operate("/v1/applications/shop/open", {"point": "latest"})["view"]
        before = (s.mounts(), sorted(s.processes()), sorted(s.loops()))
        s.stop(signal.SIGKILL)
        s.write("mnt/shop/data/f", "two")
        s.start()
        self.assertEqual((s.mounts(), sorted(s.processes()), sorted(s.loops())), before)
        self.assertEqual(s.status()["state"], "protected")
        self.assertEqual([v["id"] for v in s.call("GET", "/v1/views")["views"]], [view["id"]])
        s.call("DELETE", f"/v1/views/{view['id']}")
        self.assertEqual(s.stop(), 0)
        self.nothing_left()

    def test_kill_of_engine(self):
        s = self.s.start()
        s.apply(s.yaml(volumes=("data",)))
        pid = s.status()["engine_pid"]
        os.kill(pid, signal.SIGKILL)
        s.write("mnt/shop/data/f", "one")
        until(lambda: s.status()["state"] == "protected" and s.status()["engine_pid"] not in (None, pid), "the engine is back")
        self.assertEqual(s.read("mnt/shop/data/f"), "one")

    def test_kill_of_holder(self):
        s = self.s.start()
        s.apply(s.yaml(volumes=("data",)))
        s.write("mnt/shop/data/f", "one")
        os.kill(int(s.read("s/apps/shop/holder.pid")), signal.SIGKILL)
        until(lambda: any("holder was ended" in a for a in s.status()["alarms"]), "the alarm")
        s.write("mnt/shop/data/f", "two")  # I/O goes on
        os.kill(s.status()["engine_pid"], signal.SIGKILL)
        until(lambda: s.status()["state"] == "protected" and not s.status()["alarms"], "both are back")
        self.assertEqual(s.read("mnt/shop/data/f"), "two")

    def test_kill_of_everything(self):
        s = self.s.start()
        s.apply(s.yaml(volumes=("data",)))
        s.write("mnt/shop/data/f", "one")
        s.operate("/v1/applications/shop/open", {"point": "latest"})
        s.stop(signal.SIGKILL)
        for pid in s.processes():
            os.kill(pid, signal.SIGKILL)
        until(lambda: not s.processes(), "all are dead")
        s.start()
        self.assertEqual(s.read("mnt/shop/data/f"), "one")
        self.assertEqual(s.call("GET", "/v1/views")["views"], [])
        self.assertEqual(os.listdir(s.path("s/apps/shop/views")), [])
        self.assertEqual(s.stop(), 0)
        self.nothing_left()

    def test_start_that_fails(self):
        s = self.s.start()
        s.apply(s.yaml(volumes=("data",)))
        s.stop()
        s.write("mnt/shop/data/in-the-way", "x")
        s.start()
        self.assertEqual(s.status()["state"], "failed")
        self.assertIn("in-the-way", s.status()["message"])
        os.unlink(s.path("mnt/shop/data/in-the-way"))
        until(lambda: s.status()["state"] == "protected", "it is tried again")

    def test_metrics_by_tcp(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        self.s.start("--metrics", f"127.0.0.1:{port}")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            self.assertIn("tidemark_build_info", answer.read().decode())
        with self.assertRaises(urllib.error.HTTPError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/status", timeout=10)

    def test_up_after_a_killed_one(self):
        """A child that has not begun its program yet holds the lock for a moment longer."""
        s = self.s.start()
        s.stop(signal.SIGKILL)
        with open(s.path("s/tidemark.lock"), "rb") as child:
            fcntl.flock(child, fcntl.LOCK_EX | fcntl.LOCK_NB)
            release = threading.Timer(0.5, fcntl.flock, (child, fcntl.LOCK_UN))
            release.start()
            s.start()
            release.join()

    def test_second_up(self):
        s = self.s.start()
        other = subprocess.run([TIDEMARK, "--state", s.state, "up"], capture_output=True, text=True, timeout=120)
        self.assertNotEqual(other.returncode, 0)
        self.assertIn(f"pid {s.up.pid}", other.stderr)
        self.assertEqual(s.call("GET", "/v1/version")["pid"], s.up.pid)

    def test_not_root(self):
        # In a place that nobody may read the program from, the message would be the kernel's.
        run = subprocess.run(["setpriv", "--reuid", "65534", "--clear-groups", TIDEMARK, "--state", "/tmp/nobody-tidemark",
                              "up"], capture_output=True, text=True, timeout=120)
        self.assertNotEqual(run.returncode, 0)
        if "Permission denied" not in run.stderr:
            self.assertIn("root", run.stderr)

    def test_busy_at_stop(self):
        """The workload holds a volume: lifecycle.stop is run, and lifecycle.start at the next `up`."""
        s = self.s.start()
        stop = '[sh, -c, "kill $(cat {0}/pid); echo stop >> {0}/calls; while kill -0 $(cat {0}/pid); do :; done"]'
        s.apply(s.yaml(volumes=("data",), extra="  lifecycle:\n    stop: " + stop.format(s.root) +
                       f"\n    start: echo start >> {s.root}/calls\n"))
        # Not our child: a zombie would look alive to the command.
        subprocess.run(["sh", "-c", "cd \"$1\" && (sleep 100 & echo $! > \"$2\") < /dev/null > /dev/null 2>&1", "sh",
                        s.path("mnt/shop/data"), s.path("pid")], check=True)
        self.assertEqual(s.stop(), 0)
        self.nothing_left()
        s.start()
        self.assertEqual(s.read("calls"), "stop\nstart\n")


class Views(Base):
    def test_open(self):
        s = self.s.start()
        s.apply(s.yaml())
        s.write("mnt/shop/data/f", "one")
        tag = s.call("POST", "/v1/applications/shop/tag", {"name": "t1", "labels": {"k": "v"}})
        s.write("mnt/shop/data/f", "two")
        view = s.operate("/v1/applications/shop/open", {"point": "tag:t1"})["view"]
        self.assertEqual(view["lsn"], tag["lsn"])
        mounts = {v["name"]: v["mount"] for v in view["volumes"]}
        self.assertEqual(sorted(mounts), ["data", "wal"])
        with open(mounts["data"] + "/f", encoding="ascii") as f:
            self.assertEqual(f.read(), "one")
        with open(mounts["data"] + "/g", "w", encoding="ascii") as f:
            f.write("in the overlay")
        self.assertFalse(os.path.exists(s.path("mnt/shop/data/g")))
        one = s.operate("/v1/applications/shop/open", {"point": "latest", "volume": "data", "mount": s.path("here")})["view"]
        self.assertEqual(s.read("here/f"), "two")
        several = s.operate("/v1/applications/shop/open", {"point": "latest", "mount": s.path("both")})["view"]
        self.assertEqual(s.read("both/data/f"), "two")
        listed = s.call("GET", "/v1/views")["views"]
        self.assertEqual([v["id"] for v in listed], [view["id"], one["id"], several["id"]])
        self.assertEqual({v["state"] for v in listed}, {"open"})
        held = open(s.path("here/f"), encoding="ascii")
        self.fails("EBUSY", ["python", "an open file"], s.call, "DELETE", f"/v1/views/{one['id']}")
        held.close()
        for each in listed:
            s.call("DELETE", f"/v1/views/{each['id']}")
        self.assertFalse(os.path.exists(s.path("here")) or os.path.exists(s.path("both")), "made for the view")
        self.assertEqual(len(s.mounts()), 4)
        self.assertEqual(os.listdir(s.path("s/apps/shop/views")), [])
        self.assertEqual(os.listdir(s.path("s/apps/shop/journal/pins")), [])
        self.fails("ENOENT", [view["id"]], s.call, "DELETE", f"/v1/views/{view['id']}")

    def test_refused(self):
        s = self.s.start()
        s.apply(s.yaml())
        before = s.remains()
        opening = "/v1/applications/shop/open"
        self.fails("ENOENT", ["'nothing'"], s.operate, opening, {"point": "tag:nothing"})
        self.fails("ERANGE", ["lsn:999999"], s.operate, opening, {"point": "lsn:999999"})
        self.fails("ENOENT", ["no volume 'x'", "data, wal"], s.operate, opening, {"point": "latest", "volume": "x"})
        s.write("manifests/in-the-way", "x")
        self.fails("ENOTEMPTY", ["in-the-way"], s.operate, opening,
                   {"point": "latest", "volume": "data", "mount": s.path("manifests")})
        self.fails("ENODATA", ["no file system"], s.operate, opening,
                   {"point": "lsn:2", "volume": "data", "mount": s.path("early")})
        self.fails("EINVAL", ["exclude"], s.operate, opening, {"point": "latest", "mount": "/a", "nbd": "/b"})
        until(lambda: s.remains() == before, "nothing more is left", 15)
        self.assertEqual(os.listdir(s.path("s/apps/shop/views")), [])
        self.assertEqual(os.listdir(s.path("s/apps/shop/journal/pins")), [])
        self.assertFalse(os.path.exists(s.path("early")))
        early = s.operate(opening, {"point": "lsn:2", "volume": "data"})["view"]["volumes"][0]
        self.assertIn("no file system", early["note"])

    def test_xfs_and_dead_view(self):
        s = self.s.start()
        s.apply(s.yaml(volumes=("data",), fs_type="xfs", size="304Mi"))
        s.write("mnt/shop/data/f", "one")
        view = s.operate("/v1/applications/shop/open", {"point": "latest"})["view"]
        with open(view["volumes"][0]["mount"] + "/f", encoding="ascii") as f:
            self.assertEqual(f.read(), "one")
        for pid in s.processes():
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                if view["id"].encode() in f.read():
                    os.kill(pid, signal.SIGKILL)
        until(lambda: s.call("GET", "/v1/views")["views"][0]["state"] == "dead", "the view is dead")
        self.assertEqual(s.read("mnt/shop/data/f"), "one")
        s.call("DELETE", f"/v1/views/{view['id']}")
        self.assertEqual(s.call("GET", "/v1/views")["views"], [])


class Salvage(Base):
    """A point of a damaged journal: right bytes, or an error that the map has."""

    def prepare(self, **named):
        s = self.s.start()
        s.apply(s.yaml(volumes=("data",), size="32Mi", **named))
        return s

    def seal(self):
        self.s.operate("/v1/applications/shop/verify", {})

    def blocks(self, device):
        """Each block as bytes, or None where reading it fails."""
        fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
        buffer = mmap.mmap(-1, 4096)
        size = os.lseek(fd, 0, os.SEEK_END)
        found = []
        for at in range(0, size, 4096):
            try:
                self.assertEqual(os.preadv(fd, [buffer], at), 4096)
                found.append(bytes(buffer))
            except OSError as error:
                self.assertEqual(error.errno, errno.EIO)
                found.append(None)
        os.close(fd)
        return found

    def damaged(self, view):
        """Blocks that the map calls damaged."""
        found = set()
        for one in view["salvage"]["damage"]:
            self.assertEqual(one["volume"], "data")
            found.update(range(one["offset_bytes"] // 4096, (one["offset_bytes"] + one["length_bytes"]) // 4096))
        self.assertEqual(len(found) * 4096, view["salvage"]["damaged_bytes"])
        self.assertTrue(view["salvage"]["complete"])
        return found

    def test_salvage(self):
        s = self.prepare()
        opening = "/v1/applications/shop/open"
        s.write("mnt/shop/data/f", "one" * 100000)
        self.seal()
        s.write("mnt/shop/data/g", "two" * 100000)
        tag = s.call("POST", "/v1/applications/shop/tag", {"name": "t"})
        self.seal()
        view = s.operate(opening, {"point": "tag:t"})["view"]
        self.assertIsNone(view["salvage"])
        subprocess.run(["umount", view["volumes"][0]["mount"]], check=True)  # so that its log is not replayed
        s.call("DELETE", f"/v1/views/{view['id']}")
        view = s.operate(opening, {"point": "tag:t", "salvage": True})["view"]
        self.assertEqual((view["lsn"], self.damaged(view), view["salvage"]["findings"]), (tag["lsn"], set(), []))
        with open(view["volumes"][0]["mount"] + "/f", encoding="ascii") as f:
            self.assertEqual(f.read(), "one" * 100000)
        with self.assertRaises(OSError) as caught:
            open(view["volumes"][0]["mount"] + "/new", "w", encoding="ascii")
        self.assertEqual(caught.exception.errno, errno.EROFS)
        good = self.blocks(view["volumes"][0]["device"])
        s.call("DELETE", f"/v1/views/{view['id']}")
        # Mounting has replayed the file system's log into what `good` is; and as it is in the history:
        view = s.operate(opening, {"point": "tag:t", "nbd": s.path("v.sock")})["view"]
        subprocess.run(["nbdcopy", view["volumes"][0]["nbd_uri"], s.path("raw")], check=True)
        s.call("DELETE", f"/v1/views/{view['id']}")
        with open(s.path("raw"), "rb") as f:
            raw = [f.read(4096) for _ in good]

        # An index that is missing costs nothing.
        l0 = s.path("s/apps/shop/journal/l0-0000000001.idx")
        os.unlink(l0)
        self.fails("EBADMSG", [os.path.basename(l0), "--salvage"], s.operate, opening, {"point": "tag:t"})
        self.fails("EBADMSG", [os.path.basename(l0), "--salvage"], s.operate, opening, {"point": "lsn:3"})
        self.assertEqual(s.call("GET", "/v1/views")["views"], [])
        view = s.operate(opening, {"point": "tag:t", "salvage": True})["view"]
        self.assertEqual(self.damaged(view), set())
        self.assertTrue(any("made again" in f for f in view["salvage"]["findings"]), view["salvage"])
        self.assertEqual(self.blocks(view["volumes"][0]["device"]), good)
        s.call("DELETE", f"/v1/views/{view['id']}")

        # Its segment too: what the second one does not hold is unknown.
        os.unlink(journal.segments(s.path("s/apps/shop/journal"))[0])
        view = s.operate(opening, {"point": "tag:t", "salvage": True})["view"]
        damaged = self.damaged(view)
        self.assertEqual(s.call("GET", f"/v1/views/{view['id']}")["view"]["salvage"], view["salvage"])
        now = self.blocks(view["volumes"][0]["device"])
        self.assertEqual({i for i, block in enumerate(now) if block is None}, damaged)
        self.assertTrue(0 < len(damaged) < len(now))
        wrong = [i for i, block in enumerate(now) if block not in (None, good[i], raw[i])]
        self.assertEqual(wrong, [])
        s.call("DELETE", f"/v1/views/{view['id']}")
        early = s.operate(opening, {"point": "lsn:3", "salvage": True})["view"]
        self.assertIn("the last point before it", early["note"])
        self.assertEqual((early["lsn"], self.damaged(early)), (0, set()))
        s.call("DELETE", f"/v1/views/{early['id']}")
        self.fails("ENOENT", [view["id"]], s.call, "GET", f"/v1/views/{view['id']}")
        # The live volume has nothing to do with it.
        self.assertEqual(s.read("mnt/shop/data/g"), "two" * 100000)
        self.assertFalse(s.operate("/v1/applications/shop/verify", {})["ok"])

    def test_by_nbd(self):
        s = self.prepare()
        s.write("mnt/shop/data/f", "one" * 100000)
        self.seal()
        point = "lsn:%d" % s.status()["lsn"]
        for broken in (False, True):
            segment, offset, _ = journal.a_write(s.path("s/apps/shop/journal"), 1, last=True)
            if broken:
                journal.flip(segment, offset)
            view = s.operate("/v1/applications/shop/open", {"point": point, "salvage": True,
                                                                      "nbd": s.path("v.sock")})["view"]
            self.assertEqual(bool(self.damaged(view)), broken)
            done = subprocess.run(["nbdcopy", view["volumes"][0]["nbd_uri"], s.path("copy")], capture_output=True, text=True,
                                  check=False)
            self.assertEqual(done.returncode != 0, broken, done.stderr)
            if broken:
                self.assertIn("Input/output error", done.stderr)
            s.call("DELETE", f"/v1/views/{view['id']}")


class Nbd(Base):
    def test_nbd(self):
        s = self.s.start()
        self.fails("EINVAL", ["mountPath", "not allowed with export nbd"], s.apply,
                   s.yaml().replace("export: fuse", "export: nbd"))
        s.apply(s.yaml(export="nbd"))
        uri = {v["name"]: v["nbd_uri"] for v in s.status()["volumes"]}
        copy = ["nbdcopy", "--destination-is-zero"]
        with open(s.path("image"), "wb") as f:
            f.write(b"tide" * (16 << 20))
        subprocess.run([*copy, s.path("image"), uri["data"]], check=True)
        s.call("POST", "/v1/applications/shop/tag", {"name": "t1"})
        subprocess.run(["dd", "if=/dev/zero", "of=" + s.path("zero"), "bs=1M", "count=64", "status=none"], check=True)
        subprocess.run(["nbdcopy", s.path("zero"), uri["data"]], check=True)
        view = s.operate("/v1/applications/shop/open", {"point": "tag:t1", "nbd": s.path("v.sock")})["view"]
        s.stop(signal.SIGKILL)
        s.start()
        at_tag = {v["name"]: v["nbd_uri"] for v in view["volumes"]}
        subprocess.run(["nbdcopy", at_tag["data"], s.path("back")], check=True)
        subprocess.run(["cmp", s.path("image"), s.path("back")], check=True)
        s.call("DELETE", f"/v1/views/{view['id']}")
        s.operate("/v1/applications/shop/rewind", {"to": "tag:t1"})
        subprocess.run(["nbdcopy", uri["data"], s.path("back")], check=True)
        subprocess.run(["cmp", s.path("image"), s.path("back")], check=True)
        pid = s.status()["engine_pid"]
        os.kill(pid, signal.SIGKILL)
        until(lambda: s.status()["state"] == "protected" and s.status()["engine_pid"] != pid, "the engine is back")
        subprocess.run(["nbdcopy", uri["data"], s.path("back")], check=True)
        subprocess.run(["cmp", s.path("image"), s.path("back")], check=True)
        self.assertEqual(s.stop(), 0)
        self.nothing_left()


class Rewind(Base):
    def prepare(self, extra=""):
        s = self.s.start()
        s.write("healthy", "")
        s.write("manifests/a.yaml", "a: 1\n")
        s.write("manifests/gone.yaml", "g: 1\n")
        s.apply(s.yaml(extra="  manifests: ./manifests\n" + LIFECYCLE.format(s.root) + extra))
        s.write("mnt/shop/data/f", "one")
        s.write("mnt/shop/wal/f", "one")
        until(lambda: s.call("POST", "/v1/applications/shop/diff", {"from": "lsn:0", "to": "latest"})["objects"][1:],
              "the manifests are journaled")
        self.tag = s.call("POST", "/v1/applications/shop/tag", {"name": "good"})
        s.write("mnt/shop/data/f", "bad")
        s.write("mnt/shop/wal/g", "bad")
        s.write("manifests/a.yaml", "a: bad\n")
        s.write("manifests/new.yaml", "n: bad\n")
        os.unlink(s.path("manifests/gone.yaml"))
        until(lambda: len(s.call("POST", "/v1/applications/shop/diff", {"from": "tag:good", "to": "latest"})["objects"]) == 3,
              "the changes are journaled")
        return s

    def good(self):
        s = self.s
        self.assertEqual((s.read("mnt/shop/data/f"), s.read("mnt/shop/wal/f")), ("one", "one"))
        self.assertFalse(os.path.exists(s.path("mnt/shop/wal/g")))
        self.assertEqual((s.read("manifests/a.yaml"), s.read("manifests/gone.yaml")), ("a: 1\n", "g: 1\n"))
        self.assertFalse(os.path.exists(s.path("manifests/new.yaml")))

    def bad(self):
        s = self.s
        self.assertEqual((s.read("mnt/shop/data/f"), s.read("mnt/shop/wal/g")), ("bad", "bad"))
        self.assertEqual((s.read("manifests/a.yaml"), s.read("manifests/new.yaml")), ("a: bad\n", "n: bad\n"))
        self.assertFalse(os.path.exists(s.path("manifests/gone.yaml")))

    def test_rewind_and_undo(self):
        s = self.prepare()
        plan = s.call("POST", "/v1/applications/shop/rewind", {"to": "tag:good", "dry_run": True})["plan"]
        self.assertEqual(plan["target_lsn"], self.tag["lsn"])
        self.assertEqual({m["name"]: m["change"] for m in plan["manifests"]},
                         {"a.yaml": "write", "gone.yaml": "create", "new.yaml": "delete"})
        self.assertEqual(plan["lifecycle"]["start"], [["/bin/sh", "-c", f"echo start >> {s.root}/calls"]])
        self.assertGreater(plan["changed_bytes"], 0)
        self.bad()
        result = s.operate("/v1/applications/shop/rewind", {"to": "tag:good"})
        self.good()
        self.assertEqual(s.read("calls"), "stop\nstart\n")
        self.assertEqual(result["target_lsn"], self.tag["lsn"])
        self.assertGreater(result["lsn"], self.tag["lsn"])
        for field in ("stop_ms", "engine_ms", "mount_ms", "start_ms", "rewind_ms"):
            self.assertGreaterEqual(result[field], 0)
        s.operate("/v1/applications/shop/undo", {})
        self.bad()
        s.operate("/v1/applications/shop/rewind", {"to": f"lsn:{self.tag['lsn']}"})
        self.good()
        time.sleep(1.1)
        result = s.operate("/v1/applications/shop/rewind", {"to": "-1s"})
        self.assertIsNotNone(result["rpo_ms"])
        self.assertFalse(os.path.exists(s.path("s/apps/shop/operation.json")))

    def test_failures(self):
        s = self.prepare()
        rewind = "/v1/applications/shop/rewind"
        self.fails("ENOENT", ["nowhere"], s.operate, rewind, {"to": "tag:nowhere"})
        s.write("fail-stop", "")
        self.fails("EIO", ["lifecycle.stop", "exit status 1"], s.operate, rewind, {"to": "tag:good"})
        os.unlink(s.path("fail-stop"))
        sleeper = subprocess.Popen(["sleep", "100"], cwd=s.path("mnt/shop/wal"))
        self.addCleanup(sleeper.kill)
        self.fails("EBUSY", ["sleep", str(sleeper.pid)], s.operate, rewind, {"to": "tag:good"})
        self.bad()
        self.assertEqual(s.read("calls"), "stop\nstart\nstop\nstart\n", "started again each time")
        sleeper.kill()
        sleeper.wait()
        s.operate(rewind, {"to": "tag:good"})
        self.good()

    def test_interrupted(self):
        """U2: `up` is killed while a rewind is under way; the next one carries it on."""
        for wait in ("stop", "probe"):
            with self.subTest(step=wait):
                self.s = Stand()
                self.addCleanup(self.s.destroy)
                s = self.prepare()
                if wait == "probe":
                    os.unlink(s.path("healthy"))
                else:
                    hold = s.yaml(extra="  manifests: ./manifests\n" + LIFECYCLE.format(s.root)).replace(
                        "echo stop", f"echo stopping >> {s.root}/calls; while [ ! -e {s.root}/go ]; do sleep 0.02; done; echo stop")
                    s.apply(hold)
                s.call("POST", "/v1/applications/shop/rewind", {"to": "tag:good"})
                self.fails("EBUSY", ["rewind is under way"], s.operate, "/v1/applications/shop/rewind", {"to": "tag:good"})
                word = "start" if wait == "probe" else "stopping"
                until(lambda: os.path.exists(s.path("calls")) and word in s.read("calls").split(), "it is in the middle")
                s.stop(signal.SIGKILL)
                s.write("healthy", "")
                s.write("go", "")
                s.start()
                until(lambda: not os.path.exists(s.path("s/apps/shop/operation.json")), "it is carried on")
                until(lambda: s.status()["operation"] is None, "it has ended")
                operation = s.call("GET", "/v1/operations")["operations"][0]
                self.assertEqual(operation["state"], "succeeded", json.dumps(operation))
                self.good()
                points = s.call("GET", "/v1/applications/shop/points?limit=1000")["points"]
                self.assertEqual(len([p for p in points if p["kind"] == "rewind"]), 1, "once only")

    def test_verify(self):
        s = self.prepare()
        result = s.operate("/v1/applications/shop/verify", {})
        self.assertTrue(result["ok"], json.dumps(result))
        # A young journal: what is being written is covered too.
        self.assertGreaterEqual(result["segments"], 1)
        self.assertGreaterEqual(result["pin_lsn"], self.tag["lsn"])
        self.assertGreaterEqual(result["records"], self.tag["lsn"])
        segment, offset, first_lsn = journal.a_write(s.path("s/apps/shop/journal"), 1)
        journal.flip(segment, offset)
        result = s.operate("/v1/applications/shop/verify", {})
        self.assertFalse(result["ok"])
        self.assertEqual(result["damages"], 1, json.dumps(result))
        damage = result["damage"][0]
        self.assertEqual((damage["file"], damage["volume"], damage["low_lsn"], damage["high_lsn"]),
                         (os.path.basename(segment), "data", first_lsn, first_lsn))
        self.assertGreater(damage["length_bytes"], 0)
        self.assertIsNotNone(damage["low_time"])


if __name__ == "__main__":
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse") or not os.path.exists("/dev/loop-control"):
        print("needs root, /dev/fuse and loop devices")
        sys.exit(77)
    unittest.main(verbosity=2)
