# SPDX-License-Identifier: Apache-2.0
"""The three processes of a cluster on this machine, in a directory of their own, and gRPC clients for them."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import grpc

sys.path.insert(0, os.environ["TIDEMARK_CSI_PB2"])
import csi_pb2 as csi  # noqa: E402

BUILD = os.environ["TIDEMARK_BUILD"]
TIDEMARK = os.path.join(BUILD, "src", "cli", "tidemark")
DEADLINE_S = 60
MIB = 1 << 20
NODE = "node-1"


def until(condition, what, deadline_s=DEADLINE_S):
    """Polls; returns the first true value. The seconds are for an idle machine: a busy one has three times as long."""
    end = time.monotonic() + 3 * deadline_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {deadline_s} s: {what}")


class Stand:
    def __init__(self):
        self.root = tempfile.mkdtemp(prefix="tmk-", dir="/tmp")
        self.processes = {}
        self.channels = {}
        self.node_options = []
        self.data_socket = self.path("data.sock")

    def path(self, *parts):
        return os.path.join(self.root, *parts)

    # ---- processes ----

    def spawn(self, name, arguments, ready):
        log = self.path(f"{name}.log")
        before = os.path.getsize(log) if os.path.exists(log) else 0
        with open(log, "ab") as f:
            process = subprocess.Popen([TIDEMARK, *arguments], stdout=f, stderr=f, stdin=subprocess.DEVNULL)
        self.processes[name] = process

        def answers():
            if process.poll() is not None:
                raise AssertionError(f"{name} ended: {self.log(name)}")
            return ready in self.log(name)[before:]
        until(answers, f"{name} is ready")

    def log(self, name):
        with open(self.path(f"{name}.log"), encoding="utf-8", errors="replace") as f:
            return f.read()

    def start_data(self):
        self.spawn("data", ["data", "--state", self.path("d"), "--socket", self.data_socket], "data: the API answers")

    def start_node(self):
        self.spawn("node", ["node", "--state", self.path("n"), "--csi-socket", self.path("node.sock"), "--data-socket",
                            self.data_socket, "--node-name", NODE, *self.node_options], "node: CSI answers")

    def start_controller(self):
        self.spawn("controller", ["controller", "--state", self.path("c"), "--csi-socket", self.path("controller.sock"),
                                  "--node", NODE], "controller: CSI answers")

    def start(self):
        self.start_data()
        self.start_node()
        self.start_controller()
        return self

    def stop(self, name, number=signal.SIGTERM, deadline_s=DEADLINE_S):
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(3 * deadline_s)

    # ---- calls ----

    def call(self, name, service, method, request, timeout=60):
        if name not in self.channels:
            self.channels[name] = grpc.insecure_channel(f"unix:{self.path(name + '.sock')}", options=[
                ("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)])
        reply = getattr(csi, type(request).__name__.removesuffix("Request") + "Response")
        stub = self.channels[name].unary_unary(f"/csi.v1.{service}/{method}", request_serializer=type(request).SerializeToString,
                                               response_deserializer=reply.FromString)
        for attempt in range(3):
            try:
                return stub(request, timeout=timeout, wait_for_ready=True)
            except grpc.RpcError as e:  # the process was killed: the channel finds out with the next call
                lost = e.code() == grpc.StatusCode.UNAVAILABLE and re.search(r"pipe|[Ss]ocket|reset|connect", e.details())
                if attempt == 2 or not lost or "tidemark data" in e.details():
                    raise
        return None

    def controller(self, method, **fields):
        return self.call("controller", "Controller", method, getattr(csi, method + "Request")(**fields))

    def node(self, method, timeout=60, **fields):
        return self.call("node", "Node", method, getattr(csi, method + "Request")(**fields), timeout)

    @staticmethod
    def capability(block=False, fs_type="ext4", mode="SINGLE_NODE_WRITER", flags=()):
        capability = csi.VolumeCapability()
        capability.access_mode.mode = csi.VolumeCapability.AccessMode.Mode.Value(mode)
        if block:
            capability.block.SetInParent()
        else:
            capability.mount.fs_type = fs_type
            capability.mount.mount_flags.extend(flags)
        return capability

    def create(self, name, size=64 * MIB, capability=None, **fields):
        return self.controller("CreateVolume", name=name, capacity_range=csi.CapacityRange(required_bytes=size),
                               volume_capabilities=[capability or self.capability()], **fields).volume

    def volume(self, name, size=64 * MIB, **capability):
        """A volume that is created and attached: a driver for the calls about it."""
        return Volume(self, name, size, self.capability(**capability))

    def api(self, method, path, body=None):
        command = ["curl", "-sS", "--fail-with-body", "--unix-socket", self.data_socket, "-X", method, f"http://localhost{path}"]
        if body is not None:
            command += ["--data-binary", body if isinstance(body, str) else json.dumps(body)]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    # ---- the machine ----

    def mounts(self):
        with open("/proc/self/mountinfo", encoding="utf-8") as f:
            return [line.split()[4] for line in f if self.root in line.split()[4]]

    def loops(self):
        found = []
        for name in os.listdir("/sys/block"):
            try:
                with open(f"/sys/block/{name}/loop/backing_file", encoding="utf-8") as f:
                    if self.root in f.read():
                        found.append(name)
            except OSError:
                pass
        return found

    def strays(self):
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    line = f.read()
            except OSError:
                continue
            if self.root.encode() in line and int(pid) != os.getpid():
                found.append(int(pid))
        return found

    def destroy(self):
        """Whatever the state: nothing of the test stays on the machine."""
        for channel in self.channels.values():
            channel.close()
        for mount in sorted((m for m in self.mounts() if "/fuse/" not in m), reverse=True):
            subprocess.run(["umount", "-l", mount], check=False)
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for loop in self.loops():
            subprocess.run(["losetup", "-d", f"/dev/{loop}"], check=False)
        for pid in self.strays():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for mount in sorted(self.mounts(), reverse=True):
            subprocess.run(["umount", "-l", mount], check=False)
        shutil.rmtree(self.root, ignore_errors=True)


class Volume:
    def __init__(self, stand, name, size, capability):
        self.stand = stand
        self.name = name
        self.capability = capability
        self.info = stand.create(name, size, capability)
        self.id = self.info.volume_id
        self.staging = stand.path("k", name, "globalmount")
        self.context = None
        self.attach()

    def target(self, pod="pod"):
        return self.stand.path("k", "pods", pod, self.name)

    def attach(self):
        self.context = dict(self.stand.controller("ControllerPublishVolume", volume_id=self.id, node_id=NODE,
                                                  volume_capability=self.capability).publish_context)

    def stage(self):
        self.stand.node("NodeStageVolume", volume_id=self.id, publish_context=self.context, staging_target_path=self.staging,
                        volume_capability=self.capability)

    def unstage(self):
        self.stand.node("NodeUnstageVolume", volume_id=self.id, staging_target_path=self.staging)

    def publish(self, pod="pod", readonly=False, timeout=60, capability=None):
        self.stand.node("NodePublishVolume", timeout, volume_id=self.id, publish_context=self.context,
                        staging_target_path=self.staging, target_path=self.target(pod),
                        volume_capability=capability or self.capability, readonly=readonly)
        return self.target(pod)

    def unpublish(self, pod="pod"):
        self.stand.node("NodeUnpublishVolume", volume_id=self.id, target_path=self.target(pod))

    def detach(self):
        self.stand.controller("ControllerUnpublishVolume", volume_id=self.id, node_id=NODE)
