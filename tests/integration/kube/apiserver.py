# SPDX-License-Identifier: Apache-2.0
"""A real API server for a test (tests/cluster/cluster.sh api-up), and a program whose lines are awaited."""
import base64
import http.client
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "../../.."))
SCRIPT = os.environ.get("TIDEMARK_CLUSTER_SCRIPT", os.path.join(ROOT, "tests/cluster/cluster.sh"))
CACHE = os.environ.get("TIDEMARK_CLUSTER_CACHE", "/var/cache/tidemark-cluster")
# Another release than the cache's own; tests of it are skipped where it has not been built.
KUBE_VERSION = os.environ.get("TIDEMARK_KUBE_VERSION", "")
KUBE_BIN = f"{CACHE}/versions/v{KUBE_VERSION.removeprefix('v')}/bin" if KUBE_VERSION else f"{CACHE}/bin"
KUBECTL = f"{KUBE_BIN}/kubectl"
DEADLINE = 180  # on a busy machine; a quick one never needs it


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(77)


def reserve(port):
    """A socket that no other test has while it is open: nobody listens on the port yet, but somebody will."""
    s = socket.socket(socket.AF_UNIX)
    try:
        s.bind(f"\0tidemark-test-port-{port}")
        return s
    except OSError:
        s.close()
        raise


RESERVED = []  # until this process ends


def free_ports(count):
    """The first of `count` ports in a row that nobody listens on, or is going to."""
    for first in range(23000 + os.getpid() % 2000, 32000, count):
        listening, reserved = [], []
        try:
            for port in range(first, first + count):
                reserved.append(reserve(port))
                s = socket.socket()
                listening.append(s)
                s.bind(("127.0.0.1", port))
            RESERVED.extend(reserved)
            return first
        except OSError:
            for s in reserved:
                s.close()
        finally:
            for s in listening:
                s.close()
    raise RuntimeError("no free ports")


def until(what, condition, seconds=DEADLINE, tell=lambda: ""):
    """`tell`: what is said of why not."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {seconds} s{tell()}")


def release_manifests():
    """The plain manifests, or for another release the chart as Helm makes it for that."""
    if not KUBE_VERSION:
        with open(f"{ROOT}/packaging/manifests/tidemark.yaml", encoding="utf-8") as f:
            return f.read()
    if not os.access(f"{CACHE}/bin/helm", os.X_OK):
        skip("helm is not in the cache")
    return subprocess.run([f"{CACHE}/bin/helm", "template", "tidemark", f"{ROOT}/packaging/helm/tidemark", "--namespace", "tidemark-system",
                           "--include-crds", "--no-hooks", "--kube-version", KUBE_VERSION, "--set",
                           "tls.controllerSecret=tidemark-controller-tls", "--set", "tls.nodeSecret=tidemark-node-tls"],
                          check=True, stdout=subprocess.PIPE, text=True).stdout


def is_running(pid):
    """A process whose first thread has ended may have others that still hold its port."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z" or len(os.listdir(f"/proc/{pid}/task")) > 1
    except (FileNotFoundError, ProcessLookupError):
        return False


class ApiServer:
    def __init__(self):
        if not os.access(SCRIPT, os.X_OK):
            skip(f"{SCRIPT} is not there")
        if os.geteuid() != 0:
            skip("needs root")
        if KUBE_VERSION and not all(os.access(f"{KUBE_BIN}/{p}", os.X_OK) for p in ("kube-apiserver", "kube-controller-manager", "kubectl")):
            skip(f"Kubernetes {KUBE_VERSION} is not in the cache: TIDEMARK_KUBE_VERSION={KUBE_VERSION} tests/cluster/cluster.sh build api")
        if not os.access(f"{KUBE_BIN}/kube-apiserver", os.X_OK) and not shutil.which("go"):
            skip("no kube-apiserver in the cache and no Go to build it")
        self.directory = tempfile.mkdtemp(prefix="tidemark-api-")
        self.port = free_ports(4)
        self.kubeconfig = f"{self.directory}/kubeconfig"
        self.up()

    def up(self):
        done = subprocess.run([SCRIPT, "api-up", self.directory, str(self.port)], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stdout)
        if "WARNING" in done.stdout:
            print(done.stdout, flush=True)

    def kill(self, name="kube-apiserver"):
        with open(f"{self.directory}/run/{name}.pid") as f:
            pid = int(f.read().split()[0])
        os.kill(pid, signal.SIGKILL)
        until(f"{name} is gone", lambda: not is_running(pid))

    def last_lines(self, name="kube-apiserver", count=40):
        with open(f"{self.directory}/log/{name}.log", errors="replace") as f:
            return f"\n--- {name}.log\n" + "".join(f.readlines()[-count:])

    def close(self):
        subprocess.run([SCRIPT, "api-down", self.directory], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        shutil.rmtree(self.directory, ignore_errors=True)

    def kubectl(self, *arguments, stdin=None, check=True):
        done = subprocess.run([KUBECTL, f"--kubeconfig={self.kubeconfig}", *arguments], input=stdin, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if check and done.returncode != 0:
            raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr}")
        return done.stdout.strip() if done.returncode == 0 else done.stderr.strip()

    def json(self, *arguments):
        return json.loads(self.kubectl(*arguments, "-o", "json"))

    def apply(self, *objects):
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-",
                     stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))

    def etcd(self, path, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.port + 1, timeout=30)
        connection.request("POST", path, json.dumps(body))
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return json.loads(text)

    def compact(self):
        """Makes all older versions unreadable: what etcd does every five minutes."""
        key = base64.b64encode(b"tidemark-test").decode()
        revision = self.etcd("/v3/kv/put", {"key": key, "value": key})["header"]["revision"]
        return self.etcd("/v3/kv/compaction", {"revision": revision, "physical": True})


class Program:
    """A child whose standard output comes line by line."""

    def __init__(self, arguments, environment=None, **more):
        self.child = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                      env={**os.environ, **(environment or {})}, **more)
        self.lines = []
        self.queue = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.child.stdout:
            self.queue.put(line.rstrip("\n"))
        self.queue.put(None)

    def expect(self, text, seconds=DEADLINE):
        """The next line that begins with the text; those before it are kept in `lines`."""
        end = time.monotonic() + seconds
        while True:
            try:
                line = self.queue.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no '{text}' within {seconds} s; the last lines: {self.lines[-10:]}") from None
            if line is None:
                raise AssertionError(f"ended without '{text}'; the last lines: {self.lines[-10:]}")
            self.lines.append(line)
            if line.startswith(text):
                return line

    def send(self, text="\n"):
        self.child.stdin.write(text)
        self.child.stdin.flush()

    def finish(self):
        self.child.stdin.close()
        code = self.child.wait(timeout=DEADLINE)
        while (line := self.queue.get(timeout=DEADLINE)) is not None:
            self.lines.append(line)
        return code

    def kill(self):
        self.child.kill()
        self.child.wait()
