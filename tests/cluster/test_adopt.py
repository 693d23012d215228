#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Claims of somebody else's storage come under protection with their data, and go again, under the same names and classes: by copies,
and, file systems and a raw device, without; and what the plugin says of their history meanwhile: points, diff, verify, and a rewind to a
point that it listed. A directory is copied, since it is no device.

TIDEMARK_IMAGE: the image's archive. TIDEMARK_INSTALLED=1: Tidemark is installed already, with backing class over `shared`, and is left
alone."""
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import test_rewind as base
from test_rewind import Failed, expect, kubectl, within

NAMESPACE = f"test-adopt-{os.getpid()}"
RAW, DIRECTORY = NAMESPACE + "-raw", NAMESPACE + "-directory"
POLICY = NAMESPACE
PROGRAM = os.environ.get("TIDEMARK", os.path.join(base.ROOT, os.environ.get("TIDEMARK_BUILD", "build"), "src/cli/tidemark"))
CLAIMS = ["data-db-0", "wal-db-0"]
THEIRS, OURS = "shared.test.tidemark.io", "csi.tidemark.io"
PLUGIN = None
KNOWN = set()
APPLICATION = f"""
apiVersion: tidemark.io/v1alpha1
kind: ProtectionPolicy
metadata: {{name: {POLICY}}}
spec: {{}}
---
apiVersion: v1
kind: Service
metadata: {{name: db, namespace: {NAMESPACE}}}
spec: {{clusterIP: None, selector: {{app: db}}, ports: [{{port: 5432}}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: db, namespace: {NAMESPACE}}}
spec:
  serviceName: db
  selector: {{matchLabels: {{app: db}}}}
  template:
    metadata: {{labels: {{app: db}}}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 0
      containers:
      - name: db
        image: localhost/toolbox:1
        command: [sleep, infinity]
        volumeMounts: [{{name: data, mountPath: /data}}, {{name: wal, mountPath: /wal}}]
  volumeClaimTemplates:
  - metadata: {{name: data}}
    spec: {{storageClassName: shared, accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 256Mi}}}}}}
  - metadata: {{name: wal}}
    spec: {{storageClassName: shared, accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 64Mi}}}}}}
"""
SINGLE = """
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: db, namespace: {0}}}
spec:
  serviceName: db
  selector: {{matchLabels: {{app: db}}}}
  template:
    metadata: {{labels: {{app: db}}}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 0
      containers:
      - name: db
        image: localhost/toolbox:1
        command: [sleep, infinity]
        {1}
  volumeClaimTemplates:
  - metadata: {{name: data}}
    spec: {{storageClassName: {2}, volumeMode: {3}, accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 64Mi}}}}}}
"""
# A file system of files on the raw device, which nobody mounts.
FILL_RAW = """set -e
mkdir -p /tmp/tree/deep && head -c 20000000 /dev/urandom >/tmp/tree/deep/blob && cd /tmp/tree && sha256sum deep/blob >sums
mke2fs -q -t ext4 -F -d /tmp/tree /dev/raw && sync /dev/raw"""
LOOK_RAW = """set -e
sha256sum </dev/raw && e2fsck -fn /dev/raw >/dev/null 2>&1 && cd $(mktemp -d) && debugfs -R 'rdump / .' /dev/raw 2>/dev/null && sha256sum -c sums"""
FILL = """set -e
mkdir -p /data/deep/er && head -c 8000000 /dev/urandom >/data/deep/er/blob && ln /data/deep/er/blob /data/hard && ln -s deep/er/blob /data/soft
chown 1000:1001 /data/deep && chmod 2750 /data/deep && touch -d 2001-02-03T04:05:06Z /data/deep/er/blob
truncate -s 20M /data/sparse && head -c 1000000 /dev/urandom >/wal/log && sync -f /data /wal"""
# Contents, and names with owner, mode, kind, links and time.
LOOK = r"""cd / && find data wal -type f -print0 | sort -z | xargs -0 sha256sum
find data wal -mindepth 1 ! -name lost+found -printf '%p %U:%G %m %y %n %l ' \( -type f -printf '%T@\n' -o -printf '\n' \) | sort"""


def get(kind, name, namespace=NAMESPACE):
    return base.get(kind, name, namespace)


def condition(kind, name, wanted, namespace=NAMESPACE):
    found = (get(kind, name, namespace) or {}).get("status", {}).get("conditions", [])
    return next((c for c in found if c["type"] == wanted), {})


def show():
    for arguments in (*(["-n", n, "get", "pods,pvc,papp,recoveries,events", "-o", "wide"] for n in (NAMESPACE, RAW, DIRECTORY, base.SYSTEM)),
                      ["get", "persistentvolumes,volumeattachments"],
                      ["-n", base.SYSTEM, "logs", "daemonset/tidemark-node", "-c", "node", "--tail=40"],
                      ["-n", base.SYSTEM, "logs", "deployment/tidemark-controller", "-c", "controller", "--tail=40"]):
        print(kubectl(*arguments, check=False), file=sys.stderr)


def call(*arguments, code=0):
    done = subprocess.run([PLUGIN, *arguments], text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=400)
    expect(f"kubectl tidemark {arguments[0]} ends with {code}", done.returncode == code, done.stdout + done.stderr)
    return done


def plugin(*arguments, code=0):
    done = call(*arguments, code=code)
    return done.stdout + done.stderr


def answer(*arguments):
    """Without the steps that standard error tells when it takes long."""
    return json.loads(call(*arguments, "-o", "json").stdout)


def inside(script, namespace=NAMESPACE):
    return kubectl("-n", namespace, "exec", "db-0", "--", "bash", "-c", script)


def scale(replicas, namespace=NAMESPACE):
    kubectl("-n", namespace, "scale", "statefulset", "db", f"--replicas={replicas}")
    if replicas:
        within(180, "the pod runs", lambda: condition("pod", "db-0", "Ready", namespace).get("status") == "True")
    else:
        within(120, "the pod is gone", lambda: get("pod", "db-0", namespace) is None)


def items(kind, *arguments):
    return json.loads(kubectl("get", kind, "-o", "json", *arguments))["items"]


def volumes(claims=None, namespace=NAMESPACE):
    names = [get("persistentvolumeclaim", c, namespace)["spec"]["volumeName"] for c in claims or CLAIMS]
    return [json.loads(kubectl("get", "persistentvolume", n, "-o", "json")) for n in names]


def drivers(claims=None, namespace=NAMESPACE):
    return [v["spec"]["csi"]["driver"] for v in volumes(claims, namespace)]


def policies(names):
    return [json.loads(kubectl("get", "persistentvolume", n, "-o", "json"))["spec"]["persistentVolumeReclaimPolicy"] for n in names]


def made():
    """What there is of volumes without a copy."""
    found = {f"{kind}/{o['metadata']['name']}" for kind in ("pods", "persistentvolumeclaims", "configmaps") for o in items(kind, "-n", base.SYSTEM)}
    found |= {f"persistentvolumes/{o['metadata']['name']}" for o in items("persistentvolumes")}
    return {f for f in found if "/tm-" in f} - KNOWN


def from_here_on():
    """Records of copies stay."""
    KNOWN.update(made())


def protected(namespace=NAMESPACE):
    """What the volumes held is in the history, too."""
    def look():
        streams = (get("papp", namespace, namespace) or {}).get("status", {}).get("streams", [])
        return condition("papp", namespace, "Protected", namespace).get("reason") == "AllVolumesCaptured" and streams and \
            all(s["state"] == "protected" for s in streams)
    within(120, "it is protected, with what it held", look)


def now(namespace=NAMESPACE):
    return inside("date -u +%Y-%m-%dT%H:%M:%S.%NZ | sed 's/...Z$/Z/'", namespace).strip()


def check_history(app, before):
    """What the plugin tells of the history, and that it is so."""
    point = answer("points", app, "--limit", "5000")
    expect("both claims are one stream", len(point["streams"]) == 1 and sorted(point["streams"][0]["claims"]) == CLAIMS, json.dumps(point["streams"]))
    inside("head -c 3000000 /dev/urandom >/data/bad && sync -f /data")
    later = within(60, "the write is a point", lambda: [p for p in answer("points", app, "--since", before)["points"]
                                                       if p["kind"] == "activity" and p["bytes"] >= 3000000])
    found = answer("diff", f"{app}@{before}", f"{app}@{later[0]['point']}")
    changed = {v["claim"]: v["changedBytes"] for v in found["volumes"]}
    expect("the bytes of the claim differ", changed["data-db-0"] >= 3000000 > changed["wal-db-0"], json.dumps(found["volumes"]))
    expect("all of the history is whole", answer("verify", app)["ok"])
    plugin("rewind", app, "--to", before, "--yes")
    within(180, "the pod runs", lambda: condition("pod", "db-0", "Ready").get("status") == "True")
    expect("the bad file is gone", "bad" not in inside("ls /data"))


def namespace(name, text):
    kubectl("create", "namespace", name)
    kubectl("annotate", "namespace", name, f"tidemark.io/policy={POLICY}")
    kubectl("apply", "-f", "-", text=text)


def there_and_back_by_copies():
    app = f"{NAMESPACE}/{NAMESPACE}"
    within(180, "the application runs", lambda: condition("pod", "db-0", "Ready").get("status") == "True")
    inside(FILL)
    held = inside(LOOK)
    within(60, "its volumes are named", lambda: condition("papp", NAMESPACE, "Protected").get("reason") == "VolumesNotCaptured")
    both = [f"{NAMESPACE}/{c}" for c in CLAIMS]
    expect("what is in use is refused", "the pod db-0 uses the claim" in plugin("adopt", *both, "--yes", code=4))
    scale(0)
    former = [v["metadata"]["name"] for v in volumes()]
    plugin("adopt", *both, "--copy", "--yes")
    expect("their volumes are Tidemark's", drivers() == [OURS] * 2)
    expect("their class is as it was", [get("persistentvolumeclaim", c)["spec"]["storageClassName"] for c in CLAIMS] == ["shared"] * 2)
    expect("the former volumes are kept", all("Released" in kubectl("get", "persistentvolume", n) for n in former))
    scale(1)
    expect("everything is as it was", inside(LOOK) == held, inside(LOOK) + "\n--- was\n" + held)
    within(60, "it is protected", lambda: condition("papp", NAMESPACE, "Protected").get("reason") == "AllVolumesCaptured")
    check_history(app, now())
    expect("everything is as it was", inside(LOOK) == held)
    scale(0)
    plugin("release", *both, "--yes")
    expect("their volumes are plain ones", drivers() == [THEIRS] * 2)
    scale(1)
    expect("everything is as it was", inside(LOOK) == held)
    within(60, "they are not captured any more", lambda: condition("papp", NAMESPACE, "Protected").get("reason") == "VolumesNotCaptured")
    return held


def lines_of(stream):
    """Its lines as they come; None where none has come for half a second."""
    lines = queue.Queue()
    threading.Thread(target=lambda: [lines.put(line) for line in stream], daemon=True).start()
    while True:
        try:
            yield lines.get(timeout=0.5)
        except queue.Empty:
            yield None


def killed(arguments, kind, namespace, seen):
    """The command, ended in the middle: at the first change of an object of that kind of which seen(name, phase, deletion time) holds. The
    changes are watched, since what is looked for may be there for less than a second."""
    watch = subprocess.Popen(["kubectl", "-n", namespace, "get", kind, "--watch", "--output",
                              'jsonpath={.metadata.name},{.status.phase},{.metadata.deletionTimestamp}{"\\n"}'], text=True, stdout=subprocess.PIPE)
    child = subprocess.Popen([PLUGIN, *arguments], text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 360
    try:
        for line in lines_of(watch.stdout):
            if line and seen(*line.strip().split(",")):
                break
            if child.poll() is not None or watch.poll() is not None or time.monotonic() > deadline:
                child.kill()
                raise Failed(f"{' '.join(arguments)} was not seen in its middle: {child.communicate()[0]}")
        expect("it is in the middle", child.poll() is None)
    finally:
        for process in (child, watch):
            process.kill()
            process.wait()


def there_and_back_as_they_are(held):
    """File systems. The command is killed, there and back, and given again."""
    app = f"{NAMESPACE}/{NAMESPACE}"
    both = [f"{NAMESPACE}/{c}" for c in CLAIMS]
    scale(0)
    from_here_on()
    former = [v["metadata"]["name"] for v in volumes()]
    said = plugin("adopt", *both, "--dry-run")
    expect("a dry run says that it would be tried", said.count("without a copy, if its driver") == 2, said)
    expect("and changes nothing", not made() and policies(former) == ["Delete"] * 2)
    killed(["adopt", *both, "--no-copy", "--yes"], "pods", base.SYSTEM, lambda name, phase, deleted: name.endswith("-look"))
    expect("the data is kept first", policies(former[:1]) == ["Retain"])
    said = plugin("adopt", *both, "--no-copy", "--yes")
    expect("nothing was copied", said.count("nothing was copied") == 2, said)
    expect("their volumes are Tidemark's", drivers() == [OURS] * 2)
    expect("their class is as it was", [get("persistentvolumeclaim", c)["spec"]["storageClassName"] for c in CLAIMS] == ["shared"] * 2)
    expect("the former volumes are kept", policies(former) == ["Retain"] * 2)
    expect("one volume carries each", len([m for m in made() if m.endswith("-backing")]) == 2, str(made()))
    scale(1)
    expect("everything is as it was", inside(LOOK) == held, inside(LOOK) + "\n--- was\n" + held)
    protected()
    check_history(app, now())
    expect("everything is as it was", inside(LOOK) == held)
    inside("head -c 5000000 /dev/urandom >/data/later && sync -f /data")
    held = inside(LOOK)
    scale(0)
    expect("one of a stream does not go alone", "those of a stream go together" in plugin("release", both[0], "--no-copy", "--yes", code=4))
    # It copies, or has just copied: a small copy may have ended before it was reported as running.
    killed(["release", *both, "--yes"], "pods", NAMESPACE,
           lambda name, phase, deleted: name == f"{CLAIMS[0]}-tidemark-move" and phase in ("Running", "Succeeded"))
    kubectl("-n", NAMESPACE, "patch", "pvc", CLAIMS[0], "--type=merge", "-p", '{"metadata":{"finalizers":["test.tidemark.io/hold"]}}')
    try:
        killed(["release", *both, "--yes"], "pvc", NAMESPACE, lambda name, phase, deleted: name == CLAIMS[0] and deleted)
    finally:
        kubectl("-n", NAMESPACE, "patch", "pvc", CLAIMS[0], "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    within(60, "the claim is gone", lambda: get("pvc", CLAIMS[0]) is None)
    said = plugin("release", *both, "--yes")
    expect("nothing was copied", said.count("nothing was copied") == 2, said)
    expect("they have the volumes of before", [v["metadata"]["name"] for v in volumes()] == former)
    expect("with the policy of before", policies(former) == ["Delete"] * 2)
    expect("nothing else is left", not made(), str(made()))
    scale(1)
    expect("everything is current", inside(LOOK) == held)


def a_raw_device():
    app, claim = f"{RAW}/{RAW}", ["data-db-0"]
    namespace(RAW, SINGLE.format(RAW, "volumeDevices: [{name: data, devicePath: /dev/raw}]", "shared", "Block"))
    within(180, "the pod runs", lambda: condition("pod", "db-0", "Ready", RAW).get("status") == "True")
    inside(FILL_RAW, RAW)
    held = inside(LOOK_RAW, RAW)
    scale(0, RAW)
    former = [v["metadata"]["name"] for v in volumes(claim, RAW)]
    expect("a copy of a raw device is refused", "is a raw device" in plugin("adopt", f"{RAW}/data-db-0", "--copy", "--yes", code=4))
    said = plugin("adopt", f"{RAW}/data-db-0", "--yes")
    expect("nothing was copied", "nothing was copied" in said and drivers(claim, RAW) == [OURS], said)
    scale(1, RAW)
    expect("the device is as it was", inside(LOOK_RAW, RAW) == held)
    protected(RAW)
    before = now(RAW)
    inside("head -c 4000000 /dev/urandom | dd of=/dev/raw bs=1M seek=8 conv=notrunc,fsync status=none", RAW)
    expect("it was written over", inside("sha256sum </dev/raw", RAW) not in held)
    plugin("rewind", app, "--to", before, "--yes")
    within(180, "the pod runs", lambda: condition("pod", "db-0", "Ready", RAW).get("status") == "True")
    expect("a rewind brings back what it held", inside(LOOK_RAW, RAW) == held)
    inside("head -c 4096 /dev/zero | tr '\\0' x | dd of=/dev/raw bs=4096 seek=10000 conv=notrunc,fsync status=none", RAW)
    protected(RAW)
    kubectl("-n", RAW, "patch", "pvc", "data-db-0", "-p", '{"spec":{"resources":{"requests":{"storage":"96Mi"}}}}')
    within(180, "the device has grown", lambda: int(inside("blockdev --getsize64 /dev/raw", RAW)) == 96 << 20)
    held = inside("sha256sum </dev/raw", RAW)
    scale(0, RAW)
    said = plugin("release", f"{RAW}/data-db-0", "--no-copy", "--yes")
    expect("nothing was copied", "nothing was copied" in said and [v["metadata"]["name"] for v in volumes(claim, RAW)] == former, said)
    expect("nothing else is left", not made() and policies(former) == ["Delete"], str(made()))
    scale(1, RAW)
    expect("the device is current", inside("sha256sum </dev/raw", RAW) == held)
    expect("and as large", get("pvc", "data-db-0", RAW)["status"]["capacity"]["storage"] in ("96Mi", str(96 << 20)))


def a_raw_device_that_is_deleted():
    """Somebody deletes the claim of an adopted volume: what has the data is kept."""
    held = inside("sha256sum </dev/raw", RAW)
    scale(0, RAW)
    former = volumes(["data-db-0"], RAW)[0]["metadata"]["name"]
    plugin("adopt", f"{RAW}/data-db-0", "--yes")
    scale(1, RAW)
    expect("the device is as it was", inside("sha256sum </dev/raw", RAW) == held)
    scale(0, RAW)
    claim = get("pvc", "data-db-0", RAW)
    handle = claim["spec"]["volumeName"]
    kubectl("-n", RAW, "delete", "pvc", "data-db-0")
    within(120, "its volume is gone", lambda: not kubectl("get", "persistentvolume", handle, "--ignore-not-found"))
    expect("the storage is kept", policies([former, f"{handle}-backing"]) == ["Retain"] * 2)
    kubectl("patch", "persistentvolume", former, "--type=merge", "-p", '{"spec":{"claimRef":null}}')
    claim["spec"]["volumeName"] = former
    kubectl("create", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": claim["spec"],
                                                 "metadata": {k: claim["metadata"][k] for k in ("name", "namespace", "labels")}}))
    scale(1, RAW)
    expect("and the data on it", inside("sha256sum </dev/raw", RAW) == held)
    scale(0, RAW)
    kubectl("-n", base.SYSTEM, "delete", "pvc", handle, "--ignore-not-found")
    kubectl("delete", "persistentvolume", f"{handle}-backing", "--ignore-not-found")


def a_directory():
    """What its driver gives as no device."""
    claim = ["data-db-0"]
    from_here_on()
    namespace(DIRECTORY, SINGLE.format(DIRECTORY, "volumeMounts: [{name: data, mountPath: /data}]", "shared-directory", "Filesystem"))
    within(180, "the pod runs", lambda: condition("pod", "db-0", "Ready", DIRECTORY).get("status") == "True")
    inside("head -c 3000000 /dev/urandom >/data/blob && sync -f /data", DIRECTORY)
    held = inside("sha256sum /data/blob", DIRECTORY)
    scale(0, DIRECTORY)
    former = [v["metadata"]["name"] for v in volumes(claim, DIRECTORY)]
    said = plugin("adopt", f"{DIRECTORY}/data-db-0", "--no-copy", "--yes", code=4)
    expect("without a copy it is refused, with the reason", "is a directory, and cannot be a block device" in said, said)
    expect("and everything is as it was", not made() and policies(former) == ["Delete"], str(made()))
    said = plugin("adopt", f"{DIRECTORY}/data-db-0", "--yes")
    expect("else it is copied, with the reason", "is copied: " in said and "is a directory, and cannot be a block device" in said, said)
    expect("its volume is Tidemark's", drivers(claim, DIRECTORY) == [OURS] and not [m for m in made() if "configmaps" not in m])
    events = [e for e in items("events", "-n", DIRECTORY) if e["reason"] == "AdoptedByCopy"]
    expect("an event says why", len(events) == 1 and "is a directory" in events[0]["message"], json.dumps(events))
    scale(1, DIRECTORY)
    expect("everything is as it was", inside("sha256sum /data/blob", DIRECTORY) == held)


def test():
    namespace(NAMESPACE, APPLICATION)
    there_and_back_as_they_are(there_and_back_by_copies())
    a_raw_device()
    a_raw_device_that_is_deleted()
    a_directory()


def forget_volumes():
    """What was kept on purpose."""
    for v in json.loads(kubectl("get", "persistentvolumes", "-o", "json"))["items"]:
        if v["spec"].get("claimRef", {}).get("namespace") in (NAMESPACE, RAW, DIRECTORY):
            name = v["metadata"]["name"]
            kubectl("patch", "persistentvolume", name, "-p", '{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}', check=False)
            kubectl("wait", "--for=delete", f"persistentvolume/{name}", "--timeout=180s", check=False)


def main():
    global PLUGIN
    failure = None
    links = tempfile.mkdtemp(prefix="tidemark-adopt-")
    PLUGIN = os.path.join(links, "kubectl-tidemark")
    os.symlink(os.path.abspath(PROGRAM), PLUGIN)
    try:
        base.install("--set", "backingClasses[0].class=shared", "--set", "backingClasses[0].journalSize=512Mi")
        test()
    except (Failed, subprocess.TimeoutExpired) as e:
        failure = e
        show()
    finally:
        kubectl("delete", "namespace", NAMESPACE, RAW, DIRECTORY, "--wait", "--timeout=360s", "--ignore-not-found", check=False)
        forget_volumes()
        kubectl("delete", "protectionpolicy", POLICY, check=False)
        base.uninstall()
        shutil.rmtree(links)
    if failure:
        print(f"NOT OK: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
