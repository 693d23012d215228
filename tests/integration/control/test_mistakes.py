#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What people do wrong on the command line of a real `tidemark up`: each mistake ends with its exit code, names the thing, the reason
and what to do, and leaves nothing half done. Needs root, /dev/fuse and loop devices."""
import os
import re
import signal
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(__file__))
from stand import TIDEMARK, Stand, told, until  # noqa: E402

HEAD = "apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {name: shop}\n"
POLICY = "apiVersion: tidemark.io/v1alpha1\nkind: ProtectionPolicy\nmetadata: {name: gold}\nspec: "
FAILED, USAGE, NOT_FOUND, REFUSED, UNREACHABLE = 1, 2, 3, 4, 5
VOLUME = "spec:\n  volumes:\n  - {name: data, size: %s}\n"
# What is written, and what the message has behind "FILE:".
YAML = (
    (HEAD + VOLUME % "[1]", "6:24: spec.volumes[0].size: found a list; expected a size such as"),
    (HEAD + "spec:\n  volumes: {name: data}\n", "5:12: spec.volumes: found a mapping; expected a list"),
    (HEAD + "spec:\n  volumes:\n  - {name: data, size: 64Mi, mountpath: /x}\n", "6:30: spec.volumes[0].mountpath: unknown field; did you mean 'mountPath'?"),
    (HEAD + "specs: 1\n", "4:1: specs: unknown field; did you mean 'spec'?"),
    (HEAD + "spec:\n  export: fuse\n  export: nbd\n", "6:3: key 'export' is there twice: first on line 5"),
    (HEAD + "spec:\n\tvolumes: []\n", "5:1: found a tab where a value or a key begins: YAML is indented by spaces"),
    (HEAD + "spec:\n  volumes:\n  - &a {name: data, size: 64Mi}\n  - *a\n", "6:5: anchors and aliases (& and *) are not supported"),
    (HEAD + VOLUME % "8GB", "6:24: spec.volumes[0].size: found '8GB'; expected a size such as 8Gi"),
    (HEAD + VOLUME % "1Mi", "6:24: spec.volumes[0].size: found '1Mi'; expected at least 16.0 MiB"),
    (HEAD + VOLUME % "99999999Ti", "6:24: spec.volumes[0].size: found '99999999Ti'"),
    (HEAD + "spec:\n  volumes: []\n", "5:12: spec.volumes: found an empty list"),
    (HEAD, "1:1: spec: missing; expected a mapping with volumes"),
    (HEAD + "spec:\n  volumes:\n  - {name: data, size: 64Mi, mountPath: srv}\n", "6:41: spec.volumes[0].mountPath: found 'srv'; expected an absolute path"),
    (HEAD + "spec:\n  export: iscsi\n", "5:11: spec.export: found 'iscsi'; expected fuse, ublk or nbd"),
    (HEAD + "spec:\n  policyRef: {name: golden}\n" + (VOLUME % "64Mi")[6:], "5:21: spec.policyRef.name: there is no ProtectionPolicy 'golden'; apply one"),
    (HEAD + "spec:\n  manifests: ./nope\n" + (VOLUME % "64Mi")[6:], "5:14: spec.manifests: there is no directory "),
    (HEAD + "spec:\n  journal: {encryption: {keyFile: /nonexistent/k}}\n" + (VOLUME % "64Mi")[6:],
     "5:35: spec.journal.encryption.keyFile: there is no key file /nonexistent/k; `tidemark key generate"),
    (HEAD.replace("ProtectedApplication", "Application") + VOLUME % "64Mi", "2:7: kind: found 'Application'; expected ProtectedApplication or"),
    (HEAD.replace("v1alpha1", "v1") + VOLUME % "64Mi", "1:13: apiVersion: found 'tidemark.io/v1'; expected tidemark.io/v1alpha1"),
    (HEAD.replace("shop", "Shop!") + VOLUME % "64Mi", "3:18: metadata.name: found 'Shop!'; expected a DNS label"),
    ("", " no document found; expected a ProtectedApplication"),
    ("- a\n", "1:1: found a list; expected a mapping"),
    (HEAD + "spec: {volumes: [\n", "5:1: did not find expected"),
    (HEAD + VOLUME % "64Mi" + "---\n" + HEAD.replace("shop", "bank") + "spec: {volumes: 5}\n", "11:17: spec.volumes: found '5'"),
    (POLICY + "{journal: {history: 30}}\n", "4:27: spec.journal.history: found '30'; expected a duration"),
    (POLICY + "{ackMode: fast}\n", "4:17: spec.ackMode: found 'fast'; expected write or flush"),
)


class Mistakes(unittest.TestCase):
    def setUp(self):
        self.s = Stand()
        self.addCleanup(self.s.destroy)

    def tidemark(self, *args, state=None):
        done = subprocess.run([TIDEMARK, "--state", state or self.s.state, *args], capture_output=True, text=True, timeout=180, check=False)
        done.stderr = told(done.stderr)
        return done

    def refused(self, code, args, *says, remedy=None):
        done = self.tidemark(*args)
        self.assertEqual(done.returncode, code, (args, done.stderr))
        self.assertTrue(done.stderr.startswith("tidemark: "), done.stderr)
        for text in says:
            self.assertIn(text, done.stderr.splitlines()[0], args)
        self.assertEqual(remedy or "", "\n".join(line.strip() for line in done.stderr.splitlines()[1:]), args)
        return done

    def application(self, *options, name="shop"):
        self.s.write("app.yaml", self.s.yaml(name, volumes=("data",), extra="".join(options)))
        return self.s.path("app.yaml")

    def nothing_is_left(self):
        self.assertEqual((os.listdir(self.s.path("s/apps")), os.listdir(self.s.path("s/policies"))), ([], []))
        until(lambda: not any(self.s.remains().values()), "nothing is left", 15)

    def test_yaml(self):
        self.s.start()
        path = self.s.path("wrong.yaml")
        for text, says in YAML:
            with self.subTest(says=says):
                self.s.write("wrong.yaml", text)
                self.refused(FAILED, ["apply", "-f", path], f"apply: {path}:{says}")
                self.nothing_is_left()
        self.refused(FAILED, ["apply", "-f", self.s.path("no.yaml")], "no.yaml: No such file")
        self.s.write("wrong.yaml", HEAD + "spec:\n  volumes:\n  - {name: data, source: /nonexistent.img}\n")
        self.refused(FAILED, ["apply", "-f", path], "there is no such file; leave `source` out")
        self.s.write("wrong.yaml", HEAD + VOLUME % "60Ti")
        self.refused(FAILED, ["apply", "-f", path], "shop does not fit on the disk", "needed 60.0 TiB", "make the volumes smaller")
        self.nothing_is_left()

    def test_words(self):
        self.s.start()
        help_ = "`tidemark help {}` shows its usage".format
        self.refused(USAGE, ["apply", "shop.yaml"], "unexpected 'shop.yaml': did you mean -f shop.yaml?", remedy=help_("apply"))
        self.refused(USAGE, ["apply", "-f", "--dry-run"], "--file needs a value before --dry-run", remedy=help_("apply"))
        self.refused(USAGE, ["rewind", "shop", "--to", "--yes"], "--to needs a value before --yes", remedy=help_("rewind"))
        self.refused(USAGE, ["points", "shop", "--limit", "9999999"], "'9999999' is too large: at most 100000", remedy=help_("points"))
        self.refused(USAGE, ["points", "shop", "--limit", "0"], "'0' is too small: at least 1", remedy=help_("points"))
        self.refused(FAILED, ["key", "generate", "/nonexistent/k"], "cannot create the key file /nonexistent/k: No such file")
        for args in (["points", "shop"], ["undo", "shop"], ["verify", "shop"], ["open", "shop@latest"], ["delete", "shop"], ["detach", "shop"]):
            self.refused(NOT_FOUND, args, "there is no application 'shop'; none was applied yet")
        self.refused(NOT_FOUND, ["close", "v-1"], "there is no open view 'v-1'", remedy="`tidemark views` lists the open views")

    def test_points_and_views(self):
        s = self.s.start()
        s.apply(s.yaml(volumes=("data",)))
        s.call("POST", "/v1/applications/shop/tag", {"name": "one"})
        history = "`tidemark status shop` says how far the history goes, `tidemark points shop` what is in it"
        for point in ("-1h", "2100-01-01T00:00:00Z", "2020-01-01T00:00:00Z", "lsn:999999"):
            self.refused(REFUSED, ["rewind", "shop", "--to", point], "is outside of the history, which goes from LSN 0 (2", remedy=history)
            done = self.refused(REFUSED, ["open", "shop@" + point], f"open shop@{point}: ", "is outside of the history", remedy=history)
            self.assertNotIn("cannot open", done.stderr, "said once")
        for point in ("tag:on", "tag:One"):
            self.refused(NOT_FOUND, ["rewind", "shop", "--to", point], f"there is no tag '{point[4:]}' in the history; `points` lists")
        self.refused(REFUSED, ["tag", "shop", "one"], "the tag 'one' is there already", "choose another name")
        self.refused(REFUSED, ["undo", "shop"], "there is no rewind in the history that could be undone; `tidemark points`")
        self.refused(NOT_FOUND, ["open", "shop@latest", "--volume", "wal"], "shop had no volume 'wal' at that point; it had: data")
        self.refused(REFUSED, ["open", "shop@latest", "--mount", s.path("mnt/shop/data")], "it lies in volume data of shop, which could not be unmounted or rewound", "choose another directory")
        self.refused(FAILED, ["open", "shop@latest", "--nbd", s.path("no/x.sock")], f"there is no directory {s.path('no')}/; make it")
        os.mkdir(s.path("full"))
        s.write("full/f", "")
        self.refused(REFUSED, ["open", "shop@latest", "--mount", s.path("full")], "it is not empty (it holds f)")
        self.assertEqual((s.call("GET", "/v1/views")["views"], os.listdir(s.path("s/apps/shop/views"))), ([], []))
        self.assertEqual(s.status()["state"], "protected")

    def test_mount_points(self):
        s = self.s.start()
        where = s.path("mnt/shop/data")
        os.makedirs(where)
        subprocess.run(["mount", "-t", "tmpfs", "nobody", where], check=True)
        self.addCleanup(subprocess.run, ["umount", where], stderr=subprocess.DEVNULL, check=False)
        self.refused(REFUSED, ["apply", "-f", self.application()], f"cannot mount on {where}: a file system of source nobody is mounted there; unmount it")
        subprocess.run(["umount", where], check=True)
        self.nothing_is_left()
        s.write("mnt/shop/data/f", "")
        self.refused(REFUSED, ["apply", "-f", self.application()], f"cannot mount on {where}: it is not empty (it holds f)")
        self.nothing_is_left()

    def test_mount_points_that_cannot_be_made(self):
        """Not the exit code, nor the remedy, of an application that is not there."""
        s = self.s.start()
        path = self.application()
        s.write("app.yaml", s.read("app.yaml").replace(s.path("mnt/shop/data"), "/proc/nowhere"))
        self.refused(FAILED, ["apply", "-f", path], "cannot create directory /proc/nowhere: No such file or directory")
        self.nothing_is_left()

    def test_used_volumes_and_views(self):
        s = self.s.start()
        s.apply(s.yaml(volumes=("data",)))
        view = s.operate("/v1/applications/shop/open", {"point": "latest"})["view"]
        for directory, commands in ((view["volumes"][0]["mount"], (["close", view["id"]], ["delete", "shop"])),
                                    (s.path("mnt/shop/data"), (["rewind", "shop", "--to", "latest"], ["detach", "shop"]))):
            user = subprocess.Popen(["sleep", "600"], cwd=directory)
            try:
                for args in commands:
                    self.refused(REFUSED, args, f"cannot unmount {directory}: it is used by sleep (pid {user.pid}: cwd); stop it")
            finally:
                user.kill()
                user.wait()
            self.assertEqual(s.status()["state"], "protected")
            if directory == view["volumes"][0]["mount"]:
                self.assertEqual(self.tidemark("close", view["id"]).returncode, 0)

    def test_lifecycle(self):
        s = self.s.start()
        lifecycle = "  lifecycle: {stop: [sh, -c, %s], start: [sh, -c, %s]}\n"
        self.assertEqual(self.tidemark("apply", "-f", self.application(lifecycle % ("exit 3", "true"))).returncode, 0)
        s.write("mnt/shop/data/f", "one")
        s.call("POST", "/v1/applications/shop/tag", {"name": "one"})
        s.write("mnt/shop/data/f", "two")
        self.refused(FAILED, ["rewind", "shop", "--to", "tag:one"], "lifecycle.stop of shop: `sh ...` failed: exit status 3 (see ", "lifecycle.log")
        self.assertEqual(s.read("mnt/shop/data/f"), "two", "nothing was rewound")
        self.assertEqual(self.tidemark("apply", "-f", self.application(lifecycle % ("true", "exit 7"))).returncode, 0)
        self.refused(FAILED, ["rewind", "shop", "--to", "tag:one"], "(`tidemark undo shop` brings the newer state back)", "exit status 7")
        self.assertEqual(s.read("mnt/shop/data/f"), "one")

    def test_two_at_once(self):
        """Each is told what is under way, and the first goes on."""
        s = self.s.start()
        hold, held = s.path("hold"), s.path("held")
        os.mkfifo(hold)
        self.assertEqual(self.tidemark("apply", "-f", self.application(f"  lifecycle: {{stop: [sh, -c, 'touch {held}; cat {hold}']}}\n")).returncode, 0)
        first = subprocess.Popen([TIDEMARK, "--state", s.state, "rewind", "shop", "--to", "latest", "-q"])
        try:
            until(lambda: os.path.exists(held), "the rewind stops the application")
            for args in (["rewind", "shop", "--to", "latest"], ["undo", "shop"], ["delete", "shop"], ["detach", "shop"], ["upgrade-engine", "shop"]):
                self.refused(REFUSED, args, "shop is busy: rewind is under way; try again when that has ended (tidemark status shop)")
        finally:
            with open(hold, "w", encoding="ascii"):
                pass
        self.assertEqual(first.wait(180), 0)

    def test_left_out(self):
        """An application of another version is told in the first line, not as if there were none."""
        s = self.s.start()
        s.apply(s.yaml(volumes=("data",)))
        self.assertEqual(s.stop(), 0)
        text = s.read("s/apps/shop/application.yaml")
        s.write("s/apps/shop/application.yaml", text.replace("v1alpha1", "v9"))
        s.start()
        first = self.tidemark("status").stdout.splitlines()[0]
        self.assertRegex(first, r"^PROBLEM: shop is left out and not protected: .*found 'tidemark.io/v9'.* \(1 of 1 applications\)$")
        self.assertEqual([one["name"] for one in s.call("GET", "/v1/status")["left_out"]], ["shop"])
        self.refused(NOT_FOUND, ["points", "shop"], "the application 'shop' is left out and not protected: ", "apply its YAML again")
        s.apply(s.yaml(volumes=("data",)))
        self.assertEqual(self.tidemark("status").stdout.splitlines()[0], "OK: 1 application, protected.")
        s.call("DELETE", "/v1/applications/shop?purge=true")
        self.refused(NOT_FOUND, ["points", "shop"], "there is no application 'shop'; none was applied yet")

    def test_manifests_that_go(self):
        s = self.s.start()
        manifests = s.path("manifests")
        self.assertEqual(self.tidemark("apply", "-f", self.application(f"  manifests: {manifests}\n")).returncode, 0)
        os.rmdir(manifests)
        until(lambda: any(f"{manifests} is gone; make it again" in alarm for alarm in s.status()["alarms"]), "the alarm")
        os.mkdir(manifests)
        s.write("manifests/a.yaml", "a: 1\n")
        until(lambda: not s.status()["alarms"], "it is read again")


class Starts(unittest.TestCase):
    """`tidemark up` that cannot start says why and makes nothing."""

    def setUp(self):
        self.s = Stand()
        self.addCleanup(self.s.destroy)

    def refused(self, code, *args, says=()):
        done = subprocess.run([TIDEMARK, "up", *args], capture_output=True, text=True, timeout=180, check=False)
        self.assertEqual(done.returncode, code, done.stderr)
        for text in says:
            self.assertIn(text, done.stderr)

    def test_places(self):
        s = self.s
        s.write("file", "")
        deep = s.path("d" * 110)
        self.refused(FAILED, "--state", deep, says=["is longer than 107 bytes: choose another with --socket"])
        self.refused(FAILED, "--state", s.state, "--socket", "/tmp/" + "x" * 110, says=["longer than 107 bytes"])
        self.assertEqual(sorted(os.listdir(s.root)), ["file", "manifests"])
        self.refused(FAILED, "--state", s.path("file"), says=["cannot create directory", "something else has that name"])
        self.refused(FAILED, "--state", s.state, "--socket", s.path("no/x.sock"), says=["cannot listen at", "No such file"])
        self.refused(FAILED, "--state", s.state, "--socket", s.path("file"), says=["something else than a socket has that name"])
        for address in ("nonsense", "127.0.0.1:99999", "127.0.0.1:"):
            self.refused(FAILED, "--state", s.state, "--metrics", address, says=[f"'{address}' is not an address: expected host:port"])
        until(lambda: not any(s.remains().values()), "nothing is left", 15)

    def test_disks(self):
        s = self.s
        for name, option, says in (("ro", "ro", "Read-only file system"), ("inodes", "nr_inodes=2", "No space left on device")):
            os.mkdir(s.path(name))
            subprocess.run(["mount", "-t", "tmpfs", "-o", option, "none", s.path(name)], check=True)
            self.addCleanup(subprocess.run, ["umount", s.path(name)], check=False)
            self.refused(FAILED, "--state", s.path(name, "state"), says=["cannot create directory", says])

    def test_small_disk(self):
        s = self.s
        os.mkdir(s.state)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "none", s.state], check=True)
        self.addCleanup(subprocess.run, ["umount", "-l", s.state], check=False)
        s.start()
        s.write("app.yaml", s.yaml(volumes=("data",)))
        done = subprocess.run([TIDEMARK, "--state", s.state, "apply", "-f", s.path("app.yaml")], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, FAILED)
        self.assertIn("shop does not fit on the disk of", done.stderr)
        self.assertEqual(os.listdir(s.path("s/apps")), [])
        self.assertEqual(s.stop(), 0)

    def test_without_dev_fuse_or_programs(self):
        """In a mount namespace with a /dev that has neither FUSE nor loop devices; and a program that was copied alone."""
        s = self.s
        s.write("app.yaml", s.yaml(volumes=("data",)))
        dev, alone = s.path("dev"), s.path("alone")
        os.mkdir(dev)
        os.mkdir(alone)
        subprocess.run(["cp", TIDEMARK, alone], check=True)
        hidden = (f"mount -t tmpfs none {dev} && touch {dev}/null {dev}/urandom && mount --bind /dev/null {dev}/null && "
                  f"mount --bind /dev/urandom {dev}/urandom && mount --move {dev} /dev && ")
        environment = {k: v for k, v in os.environ.items() if k != "TIDEMARK_LIBEXEC"}
        for number, (prepare, program, says) in enumerate(((hidden, TIDEMARK, "export fuse needs /dev/fuse, which cannot be opened"),
                                                           ("", f"{alone}/tidemark", "tidemark-engine was not found beside tidemark"))):
            state, log = s.path(f"s{number}"), s.path(f"log{number}")
            with open(log, "wb") as f:
                up = subprocess.Popen(["unshare", "-m", "--propagation", "private", "sh", "-c", f"{prepare}exec {program} up --state {state}"],
                                      stdout=f, stderr=f, env=environment)
            try:
                until(lambda: "the API answers" in s.read(f"log{number}") or up.poll() is not None, "up is ready")
                done = subprocess.run([TIDEMARK, "--state", state, "apply", "-f", s.path("app.yaml")], capture_output=True, text=True, check=False)
                self.assertEqual(done.returncode, FAILED, done.stderr + s.read(f"log{number}"))
                self.assertRegex(done.stderr, re.escape(says) + r".*: \S")
                self.assertEqual(os.listdir(os.path.join(state, "apps")), [])
            finally:
                up.send_signal(signal.SIGTERM)
                up.wait(180)
        self.assertFalse(os.path.exists(s.path("mnt")))


if __name__ == "__main__":
    if os.geteuid() or not os.path.exists("/dev/fuse"):
        print("skipped: needs root and /dev/fuse")
        sys.exit(77)
    unittest.main(verbosity=2)
