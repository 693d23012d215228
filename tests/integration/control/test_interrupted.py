#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A rewind whose answer never comes: `up` or the engine ends at the moment at which nobody knows whether the volumes were rewound
(U5). Needs root, /dev/fuse and loop devices (skipped without)."""
import json
import os
import select
import shutil
import signal
import socket
import sys
import threading
import unittest

sys.path.insert(0, os.path.dirname(__file__))
from stand import BUILD, ApiError, Stand, until  # noqa: E402

PROGRAMS = ("src/engine/tidemark-engine", "src/export/tidemark-holder")


class Between:
    """Takes the place of the engine's socket, and hands everything on but a request to rewind, which `hook` gets: it returns
    whether that is handed on, too."""

    def __init__(self, path, hook):
        self.path, self.hook, self.rewinds = path, hook, 0
        os.rename(path, path + ".real")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(64)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while True:
            try:
                one, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(one,), daemon=True).start()

    @staticmethod
    def request(one):
        data = b""
        while b"\r\n\r\n" not in data:
            more = one.recv(65536)
            if not more:
                return data
            data += more
        head, body = data.split(b"\r\n\r\n", 1)
        lengths = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        while lengths and len(body) < lengths[0]:
            body += one.recv(65536)
        return head + b"\r\n\r\n" + body

    def serve(self, one):
        with one, socket.socket(socket.AF_UNIX) as real:
            data = self.request(one)
            if data.startswith((b"POST /v1/rewind ", b"POST /v1/undo ")) and b'"dry_run":true' not in data.replace(b" ", b""):
                self.rewinds += 1
                if not self.hook(data):
                    return
            try:
                real.connect(self.path + ".real" if os.path.exists(self.path + ".real") else self.path)
                real.sendall(data)
                while True:
                    ready, _, _ = select.select([one, real], [], [])
                    for s in ready:
                        data = s.recv(65536)
                        if not data:
                            return
                        (one if s is real else real).sendall(data)
            except OSError:
                return

    def leave(self):
        """The engine's socket is in its place again."""
        if os.path.exists(self.path + ".real"):
            os.rename(self.path + ".real", self.path)

    def close(self):
        self.listener.close()


def ask(path, data):
    """Sends a request that was held back; the answer."""
    with socket.socket(socket.AF_UNIX) as real:
        real.connect(path)
        real.settimeout(60)
        real.sendall(data)
        return real.recv(65536)


class Interrupted(unittest.TestCase):
    def setUp(self):
        self.s = Stand()
        self.addCleanup(self.s.destroy)
        self.libexec = self.s.path("libexec")
        os.mkdir(self.libexec)
        for program in PROGRAMS:
            shutil.copy2(os.path.join(BUILD, program), self.libexec)
        s = self.start()
        s.write("manifests/a.yaml", "a: 1\n")
        s.apply(s.yaml(volumes=("data",), size="32Mi", extra="  manifests: ./manifests\n  lifecycle:\n"
                       f"    stop: echo stop >> {s.root}/calls\n    start: echo start >> {s.root}/calls\n"))
        until(lambda: s.call("POST", "/v1/applications/shop/diff", {"from": "lsn:0", "to": "latest"})["objects"], "the manifest is journaled")
        s.write("mnt/shop/data/f", "good")
        s.call("POST", "/v1/applications/shop/tag", {"name": "good"})
        s.write("mnt/shop/data/f", "bad")
        s.write("manifests/a.yaml", "a: bad\n")
        until(lambda: s.call("POST", "/v1/applications/shop/diff", {"from": "tag:good", "to": "latest"})["objects"], "its change is, too")
        self.operation = s.path("s/apps/shop/operation.json")
        self.engine_socket = s.path("s/apps/shop/engine.sock")

    def start(self):
        return self.s.start(environment={"TIDEMARK_LIBEXEC": self.libexec})

    def between(self, hook):
        self.b = Between(self.engine_socket, hook)
        self.addCleanup(self.b.close)

    def killed_before_the_engine_was_asked(self):
        """`up`, with a rewind under way."""
        s, asked = self.s, threading.Event()

        def hook(_):
            asked.set()
            return False

        self.between(hook)
        s.call("POST", "/v1/applications/shop/rewind", {"to": "tag:good"})
        self.assertTrue(asked.wait(60))
        s.stop(signal.SIGKILL)
        self.b.leave()
        return s

    def rewound(self, rewinds=1):
        """It was carried on to its end: once, volumes and manifests and workload; and what serves them is whole."""
        s = self.s
        until(lambda: not os.path.exists(self.operation), "the rewind has ended")
        until(lambda: s.status()["operation"] is None and s.status()["state"] == "protected", "nothing is under way")
        self.assertEqual((s.read("mnt/shop/data/f"), s.read("manifests/a.yaml")), ("good", "a: 1\n"))
        points = s.call("GET", "/v1/applications/shop/points?limit=1000")["points"]
        self.assertEqual(len([p for p in points if p["kind"] == "rewind"]), rewinds)
        self.assertEqual(s.status()["alarms"], [])
        self.assertEqual(s.read("calls").split()[-1], "start")
        s.write("manifests/b.yaml", "b: 1\n")  # they are watched again
        until(lambda: s.call("POST", "/v1/applications/shop/diff", {"from": "tag:good", "to": "latest"})["objects"], "the new one is journaled")
        s.operate("/v1/applications/shop/undo", {})
        self.assertEqual((s.read("mnt/shop/data/f"), s.read("manifests/a.yaml")), ("bad", "a: bad\n"))

    def test_up_is_killed_and_the_engine_was_never_asked(self):
        s = self.killed_before_the_engine_was_asked()
        self.start()
        self.rewound()

    def test_up_is_killed_and_the_engine_rewinds_while_the_next_one_looks(self):
        """The request of the dead reaches the engine after the next `up` has begun: not below a mounted file system, and once."""
        s, held, asked, killed, again = self.s, [], threading.Event(), threading.Event(), threading.Event()

        def hook(data):
            if asked.is_set():
                again.set()  # of the next `up`: the first is carried out now
                self.answer = ask(self.engine_socket + ".real", held[0])
                return True
            held.append(data)
            asked.set()
            killed.wait(60)  # else it would ask again before it is
            return False

        self.between(hook)
        s.call("POST", "/v1/applications/shop/rewind", {"to": "tag:good"})
        self.assertTrue(asked.wait(60))
        s.stop(signal.SIGKILL)
        killed.set()
        self.start()
        self.assertTrue(again.wait(60))
        until(lambda: not os.path.exists(self.operation), "the rewind has ended")
        self.assertIn(b" 200 ", self.answer)
        self.b.leave()
        self.rewound()

    def test_the_engine_and_its_holder_are_killed(self):
        """Carried on when the next engine answers; until then status tells, the volumes stay unmounted, and no other rewind begins."""
        s, program = self.s, os.path.join(self.libexec, "tidemark-engine")
        engine, holder = s.status()["engine_pid"], int(s.read("s/apps/shop/holder.pid"))

        def hook(data):
            self.b.leave()
            self.answer = ask(self.engine_socket, data)  # it is done, and nobody hears of it
            os.rename(program, program + ".away")
            with open(program, "w", encoding="ascii") as f:  # without one the next `up` would look elsewhere
                f.write("#!/bin/sh\nexit 78\n")
            os.chmod(program, 0o755)
            for pid in (holder, engine):
                os.kill(pid, signal.SIGKILL)
            return False

        self.between(hook)
        with self.assertRaises(ApiError) as caught:
            s.operate("/v1/applications/shop/rewind", {"to": "tag:good"})
        self.assertIn("carried on when its engine answers again", caught.exception.message)
        self.assertIn(b" 200 ", self.answer)
        self.assertTrue(os.path.exists(self.operation))
        until(lambda: any("a rewind was interrupted" in a for a in s.status()["alarms"]), "the alarm")
        until(lambda: s.status()["state"] == "failed", "the engine does not start")
        self.assertEqual([m for m in s.mounts() if "/mnt/" in m], [])
        with self.assertRaises(ApiError) as caught:
            s.operate("/v1/applications/shop/rewind", {"to": "tag:good"})
        self.assertEqual(caught.exception.code, "EBUSY", caught.exception.message)
        s.stop(signal.SIGKILL)  # and the next `up` knows of it
        self.start()
        self.assertTrue(os.path.exists(self.operation))
        os.rename(program + ".away", program)
        self.rewound()

    def test_the_engine_alone_is_killed(self):
        """Its holder starts it again: the rewind goes on by itself."""
        s = self.s
        engine = s.status()["engine_pid"]

        def hook(_):
            self.b.leave()
            os.kill(engine, signal.SIGKILL)
            return False

        self.between(hook)
        s.operate("/v1/applications/shop/rewind", {"to": "tag:good"})
        self.rewound()

    def test_a_damaged_note_of_another_point_is_not_carried_on(self):
        s = self.killed_before_the_engine_was_asked()
        with open(self.operation, encoding="utf-8") as f:
            note = json.load(f)
        note["plan"]["target_lsn"] -= 1
        with open(self.operation, "w", encoding="utf-8") as f:
            json.dump(note, f)
        self.start()
        until(lambda: s.status()["operation"] is None and s.status()["state"] == "protected", "nothing is under way")
        self.assertEqual((s.read("mnt/shop/data/f"), s.read("manifests/a.yaml")), ("bad", "a: bad\n"))
        self.assertFalse(os.path.exists(self.operation))
        self.assertIn("what was noted of it cannot be read: it is not carried on; look at the data (" + self.operation, s.log_text())

    def test_a_note_that_cannot_be_read_does_not_keep_the_volumes_away(self):
        s = self.s
        self.assertEqual(s.stop(), 0)
        for text in ("{", "{}", '{"step": 1}', '{"step": "dance", "to": "latest"}'):
            with open(self.operation, "w", encoding="utf-8") as f:
                f.write(text)
            self.start()
            until(lambda: not os.path.exists(self.operation) and s.status()["operation"] is None, "it is put away")
            self.assertEqual((s.status()["state"], s.read("mnt/shop/data/f"), s.status()["alarms"]), ("protected", "bad", []), text)
            self.assertEqual(s.stop(), 0)


if __name__ == "__main__":
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse") or not os.path.exists("/dev/loop-control"):
        print("needs root, /dev/fuse and loop devices")
        sys.exit(77)
    unittest.main(verbosity=2)
