# SPDX-License-Identifier: Apache-2.0
"""An application by hand: holder, engine, loop devices, views, NBD; and that nothing of it is left over.

    with lib.Test("name") as test:
        app = test.application(volumes={"data": 256 * lib.MIB}, ack="flush")
        device = app.device("data")

As root. Exit status 77: skipped, the machine lacks something.
"""
import fcntl
import glob
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid

MIB = 1 << 20
SEGMENT_BYTES = 64 * MIB
ENGINE = os.environ["TIDEMARK_ENGINE"]
HOLDER = os.environ["TIDEMARK_HOLDER"]


class Failure(Exception):
    pass


def skip(why):
    print("skipped:", why)
    sys.exit(77)


def needs(*programs):
    for program in programs:
        if not shutil.which(program):
            skip("needs " + program)


def check(condition, *what):
    if not condition:
        raise Failure(" ".join(str(w) for w in what))


def wait_for(what, condition, seconds=30):
    """Returns what condition() gives as soon as it is true. The seconds are for an idle machine: a busy one has three times as long."""
    end = time.monotonic() + 3 * seconds
    while True:
        value = condition()
        if value:
            return value
        check(time.monotonic() < end, "timed out waiting for", what)
        time.sleep(0.01)


def name_of_backing(device):
    """The file that the loop device is attached to; empty: none."""
    try:
        with open("/sys/block/%s/loop/backing_file" % os.path.basename(device)) as f:
            return f.read().rstrip("\n")
    except OSError:
        return ""


def run(*command, status=0, **options):
    """Runs a command to its end; its output."""
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if status is not None:
        check(done.returncode == status, "%s: status %d: %s" % (" ".join(map(str, command)), done.returncode, done.stdout))
    return done.stdout


class _Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(self.path)


def call(path, method, target, body=None):
    """One request to a control socket: (status, answer)."""
    connection = _Connection(path)
    connection.request(method, target, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, json.loads(text) if text else None


def digest(path):
    """Of a device or file, past the page cache."""
    return run("sh", "-c", 'dd if="$0" bs=1M iflag=direct status=none | sha256sum', path).split()[0]


class Served:
    """A holder with its program, and loop devices over what it serves."""

    def __init__(self, test, directory, volumes, program, restart, pass_fds=()):
        self.test, self.directory, self.volumes = test, directory, volumes
        self.devices, self.log = {}, directory + "/log"
        mounts = []
        for name in volumes:
            os.makedirs("%s/fuse/%s" % (directory, name))
            mounts.append({"volume": name, "directory": "%s/fuse/%s" % (directory, name)})
        with open(directory + "/holder.json", "w") as f:
            json.dump({"name": test.name, "mounts": mounts, "program": program, "restart": restart,
                       "pid_file": directory + "/holder.pid"}, f)
        self.holder = None
        self.pass_fds = pass_fds
        test.served.append(self)

    def start(self):
        with open(self.log, "ab") as log:
            self.holder = subprocess.Popen([HOLDER, "--config", self.directory + "/holder.json"], stdout=log, stderr=log,
                                           pass_fds=self.pass_fds)
        for name in self.volumes:
            wait_for(name + " to be served", lambda: self._served(name))

    def _served(self, name):
        check(self.holder.poll() is None, "the holder ended with status", self.holder.poll())
        try:
            return os.stat("%s/fuse/%s/vol" % (self.directory, name)).st_size == self.volumes[name]
        except OSError:
            return False

    def device(self, name):
        """A loop device over the volume, attached at the first call."""
        if name not in self.devices:
            file = "%s/fuse/%s/vol" % (self.directory, name)
            command = ["losetup", "-f", "--show", "--direct-io=on", "--sector-size", "4096", file]
            for attempt in range(20):  # another test may take the same free one
                done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                if done.returncode == 0:
                    break
            check(done.returncode == 0, "losetup:", done.stderr)
            self.devices[name] = done.stdout.strip()
        return self.devices[name]

    def detach(self):
        for name in list(self.devices):
            device = self.devices.pop(name)
            run("blockdev", "--flushbufs", device, status=None)
            wait_for("losetup -d " + device, lambda: subprocess.run(["losetup", "-d", device], stderr=subprocess.DEVNULL).returncode == 0)
            # Another test may have taken it at once.
            wait_for(device + " to be free", lambda: name_of_backing(device) != "%s/fuse/%s/vol" % (self.directory, name))

    def stop(self, status=0):
        self.detach()
        self.holder.send_signal(signal.SIGTERM)
        ended = self.holder.wait(60)
        self.holder = None
        check(ended == status, "the holder ended with status", ended)

    def force(self):
        """At the end of a test that failed: whatever it takes."""
        for device in self.devices.values():
            subprocess.run(["losetup", "-d", device], stderr=subprocess.DEVNULL)
        if self.holder and self.holder.poll() is None:
            self.holder.terminate()
            try:
                self.holder.wait(10)
            except subprocess.TimeoutExpired:
                self.holder.kill()
                self.holder.wait()
        for name in self.volumes:
            subprocess.run(["umount", "-l", "%s/fuse/%s" % (self.directory, name)], stderr=subprocess.DEVNULL)


class View(Served):
    def __init__(self, app, pin, lock, answer):
        directory = "%s/views/%s" % (app.directory, pin)
        os.makedirs(directory + "/overlay")
        self.app, self.pin, self.lock, self.lsn = app, pin, lock, answer["lsn"]
        self.socket = directory + "/view.sock"
        with open(directory + "/view.json", "w") as f:
            json.dump({"id": pin, "journal": app.journal, "pin": pin, "lsn": self.lsn, "socket": self.socket,
                       "overlay": directory + "/overlay", "volumes": answer["volumes"]}, f)
        super().__init__(app.test, directory, {v["name"]: v["size_bytes"] for v in answer["volumes"]},
                         [ENGINE, "view", "--config", directory + "/view.json"], False, (lock.fileno(),))

    def close(self):
        if self.holder:
            self.stop()
        self.lock.close()
        if self.app.running():
            self.app.call("POST", "/v1/unpin", {"pin": self.pin})
        lock = "%s/pins/%s.lock" % (self.app.journal, self.pin)
        if os.path.exists(lock):
            os.unlink(lock)
        shutil.rmtree(self.directory)
        self.test.served.remove(self)


class Application(Served):
    def __init__(self, test, volumes, ack="write", quota=0, journal=None, name="app", thinning=(), compress=None):
        directory = "%s/%s" % (test.work, name)
        os.makedirs(directory + "/backing")
        self.journal, self.socket, self.config = journal or directory + "/journal", directory + "/engine.sock", directory + "/engine.json"
        self.nbd, self.nbd_socket, self.view_count = None, directory + "/nbd.sock", 0
        with open(self.config, "w") as f:
            json.dump({"application": name, "journal": self.journal, "socket": self.socket, "ack": ack, "quota_bytes": quota,
                       "thinning": list(thinning), **({} if compress is None else {"compress_after_ns": compress}),
                       "volumes": [{"name": v, "size_bytes": size, "backing": "%s/backing/%s.img" % (directory, v)}
                                   for v, size in volumes.items()]}, f)
        super().__init__(test, directory, volumes, [ENGINE, "serve", "--config", self.config], True)

    def call(self, method, target, body=None, status=200):
        got, answer = call(self.socket, method, target, body)
        check(got == status, method, target, body, "answered", got, answer)
        return answer

    def status(self):
        return self.call("GET", "/v1/status")

    def running(self):
        return (self.holder and self.holder.poll() is None) or (self.nbd and self.nbd.poll() is None)

    def pid(self):
        """Of the engine that can be used; 0 if there is none."""
        try:
            with open(self.socket + ".pid") as f:
                pid = int(f.read())
            os.kill(pid, 0)
            return pid if call(self.socket, "GET", "/v1/status")[1]["pid"] == pid else 0
        except (OSError, ValueError, TypeError, KeyError, http.client.HTTPException):
            return 0

    def start(self):
        super().start()
        wait_for("the engine", self.pid)

    def kill_engine(self):
        """SIGKILL; returns once the next one works."""
        old = wait_for("the engine", self.pid)
        os.kill(old, signal.SIGKILL)
        wait_for("the engine to come back", lambda: self.pid() not in (0, old))

    def start_nbd(self):
        if os.path.exists(self.nbd_socket + ".pid"):
            os.unlink(self.nbd_socket + ".pid")
        with open(self.log, "ab") as log:
            self.nbd = subprocess.Popen([ENGINE, "serve", "--config", self.config, "--nbd", self.nbd_socket, "--pid-file",
                                         self.nbd_socket + ".pid"], stdout=log, stderr=log)
        wait_for("NBD", lambda: check(self.nbd.poll() is None, "the engine ended") or os.path.exists(self.nbd_socket + ".pid"))
        wait_for("the engine", self.pid)

    def kill_nbd(self):
        self.nbd.kill()
        self.nbd.wait()
        self.start_nbd()

    def stop_nbd(self):
        self.nbd.terminate()
        status = self.nbd.wait(60)
        self.nbd = None
        check(status == 0, "the engine ended with status", status)

    def uri(self, volume):
        return "nbd+unix:///%s?socket=%s" % (volume, self.nbd_socket)

    def sync(self):
        for device in self.devices.values():
            fd = os.open(device, os.O_RDWR)
            os.fsync(fd)
            os.close(fd)
            run("blockdev", "--flushbufs", device)
        return self.call("POST", "/v1/sync")

    def tag(self, name):
        return self.call("POST", "/v1/tag", {"name": name})["lsn"]

    def pin(self, point, status=200):
        """A pin as `tidemark up` makes it: (name, lock file, answer)."""
        self.view_count += 1
        pin = "v-%d" % self.view_count
        lock = open("%s/pins/%s.lock" % (self.journal, pin), "w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        return pin, lock, self.call("POST", "/v1/pin", {"pin": pin, "point": point}, status)

    def view(self, point):
        view = View(self, *self.pin(point))
        view.start()
        return view

    def check_latest(self):
        """J4: with nobody writing, the live volumes are image(latest), block for block."""
        self.sync()
        view = self.view("latest")
        for volume in self.volumes:
            run("cmp", self.device(volume), view.device(volume))
        view.close()

    def force(self):
        if self.nbd and self.nbd.poll() is None:
            self.nbd.kill()
            self.nbd.wait()
        super().force()
        try:
            with open(self.journal + "/manifest", "rb") as f:
                identity = uuid.UUID(bytes=f.read(40)[24:40])
            for ring in glob.glob("/dev/shm/tidemark-%s-*.ring*" % identity):
                os.unlink(ring)
        except (OSError, ValueError):
            pass


class Test:
    def __init__(self, name, *programs):
        if os.getuid() != 0:
            skip("needs root")
        needs("losetup", *programs)
        if not os.path.exists("/dev/fuse") or not os.path.exists("/dev/loop-control"):
            skip("needs /dev/fuse and loop devices")
        self.name, self.served, self.mounts, self.loops, self.processes = name, [], [], [], []
        self.work = tempfile.mkdtemp(prefix="tidemark-engine-", dir=os.environ.get("TMPDIR", "/var/tmp"))
        if subprocess.run(["mount", "-t", "tmpfs", "none", self.work], stderr=subprocess.DEVNULL).returncode:
            os.rmdir(self.work)
            skip("may not mount")
        subprocess.run(["umount", self.work], check=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    def application(self, volumes, start=True, **options):
        app = Application(self, volumes, **options)
        if start:
            app.start()
        return app

    def mount(self, device, where, *options):
        os.makedirs(where, exist_ok=True)
        run("mount", *options, device, where)
        self.mounts.append(where)

    def unmount(self, where):
        run("umount", where)
        self.mounts.remove(where)

    def process(self, *command):
        """With all that it starts it is ended with the test."""
        process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.work, start_new_session=True)
        self.processes.append(process)
        return process

    def fio(self, device, wait=True, **options):
        """fio with the usual options, which may be replaced; fails on any error when waited for."""
        chosen = {"name": "fio", "filename": device, "direct": 1, "ioengine": "libaio", "rw": "randwrite", "iodepth": 16}
        if device.startswith("nbd"):
            chosen.update({"ioengine": "nbd", "uri": device})
            del chosen["filename"], chosen["direct"]
        chosen.update(options)
        process = self.process("fio", "--verify_state_save=0", *("--%s=%s" % o for o in chosen.items()))
        if wait:
            self.fio_ended(process)
        return process

    def fio_until(self, enough, device, **options):
        """fio pass after pass, until there is the file `enough`: however long what happens meanwhile takes, it happens in the middle of it."""
        words = " ".join("--%s=%s" % o for o in {"name": "fio", "filename": device, "direct": 1, "ioengine": "libaio", "rw": "randwrite", "iodepth": 16,
                                                "randrepeat": 0, **options}.items())
        passes = 'until [ -e "$1" ]; do fio --verify_state_save=0 --output="$1.fio" $2 || { cat "$1.fio"; exit 1; }; ! grep verify: "$1.fio" || exit 1; done'
        return self.process("sh", "-c", passes, "sh", enough, words)

    def fio_ended(self, process, seconds=240):
        output, _ = process.communicate(timeout=seconds)
        check(process.returncode == 0 and "verify:" not in output, "fio ended with", process.returncode, output)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        for process in self.processes:
            if process.poll() is None:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:  # not one of test.process
                    process.kill()
                process.wait()
        if kind and kind is not SystemExit:
            for served in self.served:
                if os.path.exists(served.log):
                    with open(served.log, errors="replace") as f:
                        print("--- %s\n%s" % (served.log, "".join(f.readlines()[-25:])), file=sys.stderr)
        for where in reversed(self.mounts):
            subprocess.run(["umount", where], stderr=subprocess.DEVNULL)
        for served in reversed(self.served):
            served.force()
        for where in self.mounts:
            subprocess.run(["umount", "-l", where], stderr=subprocess.DEVNULL)
        for loop in self.loops:
            subprocess.run(["losetup", "-d", loop], stderr=subprocess.DEVNULL)
        shutil.rmtree(self.work, ignore_errors=True)
        if kind is Failure:
            print("FAILED:", value, file=sys.stderr)
            os._exit(1)
