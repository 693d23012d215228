# SPDX-License-Identifier: Apache-2.0
"""A `tidemark up` in a directory of its own, and its API."""
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.parse

from openapi import Api

BUILD = os.environ.get("TIDEMARK_BUILD", os.path.join(os.path.dirname(__file__), "..", "..", "..", "build"))
TIDEMARK = os.path.join(BUILD, "src", "cli", "tidemark")
DEADLINE_S = 60
API = Api()
RESULTS = {"rewind": "RewindResult", "undo": "RewindResult", "verify": "VerifyResult", "upgrade-engine": "UpgradeResult", "clone": "CloneResult"}


class ApiError(Exception):
    def __init__(self, status, body):
        self.status = status
        self.code = body.get("error", {}).get("code")
        self.message = body.get("error", {}).get("message", "")
        super().__init__(f"{status} {self.code}: {self.message}")


class Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=120)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(120)
        self.sock.connect(self.path)


def content(device, offset=0, length=None):
    with open(device, "rb") as f:
        f.seek(offset)
        return f.read(length if length is not None else -1)


def write(device, offset, data):
    fd = os.open(device, os.O_WRONLY)
    try:
        assert os.pwrite(fd, data, offset) == len(data)
        os.fsync(fd)
    finally:
        os.close(fd)


def until(condition, what, deadline_s=DEADLINE_S):
    """Polls; returns the first true value. The seconds are for an idle machine: a busy one has three times as long."""
    end = time.monotonic() + 3 * deadline_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {deadline_s} s: {what}")


def told(text):
    """What a command says, without how long it has taken so far, which it tells after a second."""
    return re.sub(r"^tidemark: .*, \d+ s\n", "", text, flags=re.MULTILINE)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as f:
            return f.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Load:
    """fio writes and verifies, pass after pass, until it is told to end: whatever happens meanwhile, and however long that takes, happens in
    the middle of it."""
    PASSES = 'until [ -e "$1/enough" ]; do fio --output="$1/fio.out" $2 || exit 1; done'

    def __init__(self, directory, file, *options):
        self.directory = directory
        words = ["--name=load", "--filename=" + file, "--rw=randwrite", "--bsrange=4k-64k", "--direct=1", "--ioengine=libaio", "--iodepth=8",
                 "--fdatasync=64", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--randrepeat=0", *options]
        self.process = subprocess.Popen(["sh", "-c", self.PASSES, "sh", directory, " ".join(words)], cwd=directory, start_new_session=True)

    def ended(self):
        return self.process.poll() is not None

    def output(self):
        with open(os.path.join(self.directory, "fio.out"), encoding="utf-8", errors="replace") as f:
            return f.read()

    def is_right(self):
        """Ends it after the pass that it is in."""
        with open(os.path.join(self.directory, "enough"), "w", encoding="ascii"):
            pass
        assert self.process.wait(600) == 0 and "verify:" not in self.output(), self.output()

    def kill(self):
        if not self.ended():
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Stand:
    def __init__(self):
        self.root = tempfile.mkdtemp(prefix="tmc-", dir="/tmp")
        self.state = os.path.join(self.root, "s")
        self.socket = os.path.join(self.state, "tidemark.sock")
        self.log = os.path.join(self.root, "up.log")
        self.up = None
        os.mkdir(os.path.join(self.root, "manifests"))

    def path(self, *parts):
        return os.path.join(self.root, *parts)

    def start(self, *options, environment=None):
        log = open(self.log, "ab")
        self.up = subprocess.Popen([TIDEMARK, "--state", self.state, "up", *options], stdout=log, stderr=log,
                                   stdin=subprocess.DEVNULL, env={**os.environ, **(environment or {})})
        log.close()
        until(self.answers, "the API answers")
        return self

    def answers(self):
        if self.up.poll() is not None:
            raise AssertionError("up ended: " + self.log_text())
        # Until everything was brought back, the log line is missing.
        if f"up: the API answers on {self.socket}" not in self.log_text()[self.log_from:]:
            return False
        return self.call("GET", "/v1/version")["pid"] == self.up.pid

    log_from = 0

    def log_text(self):
        with open(self.log, encoding="utf-8", errors="replace") as f:
            return f.read()

    def stop(self, number=signal.SIGTERM):
        self.up.send_signal(number)
        code = self.up.wait(3 * DEADLINE_S)
        self.log_from = len(self.log_text())
        return code

    def call(self, method, path, body=None, raw=False):
        connection = Connection(self.socket)
        data = body if isinstance(body, (str, type(None))) else json.dumps(body)
        connection.request(method, path, data)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        if raw:
            return answer.status, text
        value = json.loads(text)
        API.answer(method, path, answer.status, value)
        if answer.status >= 400:
            raise ApiError(answer.status, value)
        return value

    def operate(self, path, body):
        operation = self.call("POST", path, body)["operation"]
        while operation["state"] == "running":
            operation = self.call("GET", f"/v1/operations/{operation['id']}?wait_ms=1000&version={operation['version']}")[
                "operation"]
        if operation["state"] == "failed":
            raise ApiError(0, {"error": operation["error"]})
        assert all(s["state"] in ("done", "skipped") for s in operation["steps"]), operation
        if operation["kind"] == "open":
            API.named("View", operation["result"]["view"])
        else:
            API.named(RESULTS[operation["kind"]], operation["result"])
        return operation["result"]

    def apply(self, text, query=""):
        directory = urllib.parse.quote(self.root)
        return self.call("POST", f"/v1/apply?directory={directory}&file=test.yaml{query}", text)["results"]

    def status(self, name="shop"):
        return self.call("GET", f"/v1/status?app={name}")["applications"][0]

    def yaml(self, name="shop", export="fuse", volumes=("data", "wal"), extra="", fs_type="ext4", size="64Mi"):
        lines = [f"apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {{name: {name}}}\nspec:\n"
                 f"  export: {export}\n  volumes:"]
        for volume in volumes:
            mount = f", mountPath: {self.path('mnt', name, volume)}, fsType: {fs_type}" if export == "fuse" else ""
            lines.append(f"  - {{name: {volume}, size: {size}{mount}}}")
        return "\n".join(lines) + "\n" + extra

    def write(self, relative, text):
        path = self.path(relative)
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())

    def read(self, relative):
        with open(self.path(relative), encoding="utf-8") as f:
            return f.read()

    def mounts(self):
        with open("/proc/self/mountinfo", encoding="utf-8") as f:
            return [line.split()[4] for line in f if self.root in line.split()[4]]

    def loops(self):
        found = []
        for name in os.listdir("/sys/block"):
            path = f"/sys/block/{name}/loop/backing_file"
            try:
                with open(path, encoding="utf-8") as f:
                    if self.root in f.read():
                        found.append(name)
            except OSError:
                pass
        return found

    def processes(self):
        """Processes of this stand other than `up`: holders and engines."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    line = f.read()
            except OSError:
                continue
            if self.state.encode() in line and int(pid) not in (os.getpid(), self.up.pid if self.up else 0) and alive(pid):
                found.append(int(pid))
        return found

    def remains(self):
        return {"mounts": self.mounts(), "loops": self.loops(), "processes": self.processes()}

    def destroy(self):
        """Whatever the state: nothing of the test stays on the machine."""
        if self.up and self.up.poll() is None:
            self.up.send_signal(signal.SIGTERM)
            try:
                self.up.wait(120)
            except subprocess.TimeoutExpired:
                self.up.kill()
                self.up.wait()
        for mount in sorted((m for m in self.mounts() if "/fuse/" not in m), reverse=True):
            subprocess.run(["umount", "-l", mount], check=False)
        for loop in self.loops():
            subprocess.run(["losetup", "-d", f"/dev/{loop}"], check=False)
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for mount in sorted(self.mounts(), reverse=True):
            subprocess.run(["umount", "-l", mount], check=False)
        shutil.rmtree(self.root, ignore_errors=True)
