#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Claims of somebody else's storage come under protection with their data, and go again, under the same names and classes; and what the
plugin says of their history meanwhile: points, diff, verify, and a rewind to a point that it listed.

TIDEMARK_IMAGE: the image's archive. TIDEMARK_INSTALLED=1: Tidemark is installed already, and is left alone."""
import json
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import test_rewind as base
from test_rewind import Failed, expect, kubectl, within

NAMESPACE = f"test-adopt-{os.getpid()}"
POLICY = NAMESPACE
PROGRAM = os.environ.get("TIDEMARK", os.path.join(base.ROOT, os.environ.get("TIDEMARK_BUILD", "build"), "src/cli/tidemark"))
CLAIMS = ["data-db-0", "wal-db-0"]
PLUGIN = None
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
FILL = """set -e
mkdir -p /data/deep/er && head -c 8000000 /dev/urandom >/data/deep/er/blob && ln /data/deep/er/blob /data/hard && ln -s deep/er/blob /data/soft
chown 1000:1001 /data/deep && chmod 2750 /data/deep && touch -d 2001-02-03T04:05:06Z /data/deep/er/blob
truncate -s 20M /data/sparse && head -c 1000000 /dev/urandom >/wal/log && sync"""
# Contents, and names with owner, mode, kind, links and time.
LOOK = r"""cd / && find data wal -type f -print0 | sort -z | xargs -0 sha256sum
find data wal -mindepth 1 ! -name lost+found -printf '%p %U:%G %m %y %n %l ' \( -type f -printf '%T@\n' -o -printf '\n' \) | sort"""


def get(kind, name):
    return base.get(kind, name, NAMESPACE)


def condition(kind, name, wanted):
    found = (get(kind, name) or {}).get("status", {}).get("conditions", [])
    return next((c for c in found if c["type"] == wanted), {})


def show():
    for arguments in (["-n", NAMESPACE, "get", "pods,pvc,papp,recoveries,events", "-o", "wide"], ["get", "persistentvolumes"],
                      ["-n", base.SYSTEM, "get", "pods", "-o", "wide"],
                      ["-n", base.SYSTEM, "logs", "deployment/tidemark-controller", "-c", "controller", "--tail=40"]):
        print(kubectl(*arguments, check=False), file=sys.stderr)


def plugin(*arguments, code=0):
    done = subprocess.run([PLUGIN, *arguments], text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=400)
    expect(f"kubectl tidemark {arguments[0]} ends with {code}", done.returncode == code, done.stdout + done.stderr)
    return done.stdout + done.stderr


def inside(script):
    return kubectl("-n", NAMESPACE, "exec", "db-0", "--", "bash", "-c", script)


def scale(replicas):
    kubectl("-n", NAMESPACE, "scale", "statefulset", "db", f"--replicas={replicas}")
    if replicas:
        within(180, "the pod runs", lambda: condition("pod", "db-0", "Ready").get("status") == "True")
    else:
        within(120, "the pod is gone", lambda: get("pod", "db-0") is None)


def volumes():
    names = [get("persistentvolumeclaim", c)["spec"]["volumeName"] for c in CLAIMS]
    return [json.loads(kubectl("get", "persistentvolume", n, "-o", "json")) for n in names]


def drivers():
    return [v["spec"]["csi"]["driver"] for v in volumes()]


def check_history(app, before):
    """What the plugin tells of the history, and that it is so."""
    point = json.loads(plugin("points", app, "--limit", "5000", "-o", "json"))
    expect("both claims are one stream", len(point["streams"]) == 1 and sorted(point["streams"][0]["claims"]) == CLAIMS, json.dumps(point["streams"]))
    inside("head -c 3000000 /dev/urandom >/data/bad && sync")
    later = within(60, "the write is a point", lambda: [p for p in json.loads(plugin("points", app, "--since", before, "-o", "json"))["points"]
                                                       if p["kind"] == "activity" and p["bytes"] >= 3000000])
    found = json.loads(plugin("diff", f"{app}@{before}", f"{app}@{later[0]['point']}", "-o", "json"))
    changed = {v["claim"]: v["changedBytes"] for v in found["volumes"]}
    expect("the bytes of the claim differ", changed["data-db-0"] >= 3000000 > changed["wal-db-0"], json.dumps(found["volumes"]))
    expect("all of the history is whole", json.loads(plugin("verify", app, "-o", "json"))["ok"])
    plugin("rewind", app, "--to", before, "--yes")
    within(180, "the pod runs", lambda: condition("pod", "db-0", "Ready").get("status") == "True")
    expect("the bad file is gone", "bad" not in inside("ls /data"))


def test():
    app = f"{NAMESPACE}/{NAMESPACE}"
    kubectl("create", "namespace", NAMESPACE)
    kubectl("annotate", "namespace", NAMESPACE, f"tidemark.io/policy={POLICY}")
    kubectl("apply", "-f", "-", text=APPLICATION)
    within(180, "the application runs", lambda: condition("pod", "db-0", "Ready").get("status") == "True")
    inside(FILL)
    held = inside(LOOK)
    within(60, "its volumes are named", lambda: condition("papp", NAMESPACE, "Protected").get("reason") == "VolumesNotCaptured")
    both = [f"{NAMESPACE}/{c}" for c in CLAIMS]
    expect("what is in use is refused", "the pod db-0 uses the claim" in plugin("adopt", *both, "--yes", code=4))
    scale(0)
    former = [v["metadata"]["name"] for v in volumes()]
    plugin("adopt", *both, "--yes")
    expect("their volumes are Tidemark's", drivers() == ["csi.tidemark.io"] * 2)
    expect("their class is as it was", [get("persistentvolumeclaim", c)["spec"]["storageClassName"] for c in CLAIMS] == ["shared"] * 2)
    expect("the former volumes are kept", all("Released" in kubectl("get", "persistentvolume", n) for n in former))
    scale(1)
    expect("everything is as it was", inside(LOOK) == held, inside(LOOK) + "\n--- was\n" + held)
    within(60, "it is protected", lambda: condition("papp", NAMESPACE, "Protected").get("reason") == "AllVolumesCaptured")
    check_history(app, inside("date -u +%Y-%m-%dT%H:%M:%S.%NZ | sed 's/...Z$/Z/'").strip())
    expect("everything is as it was", inside(LOOK) == held)
    scale(0)
    plugin("release", *both, "--yes")
    expect("their volumes are plain ones", drivers() == ["shared.test.tidemark.io"] * 2)
    scale(1)
    expect("everything is as it was", inside(LOOK) == held)
    within(60, "they are not captured any more", lambda: condition("papp", NAMESPACE, "Protected").get("reason") == "VolumesNotCaptured")


def forget_volumes():
    """What was kept on purpose."""
    for v in json.loads(kubectl("get", "persistentvolumes", "-o", "json"))["items"]:
        if v["spec"].get("claimRef", {}).get("namespace") == NAMESPACE:
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
        base.install()
        test()
    except (Failed, subprocess.TimeoutExpired) as e:
        failure = e
        show()
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--wait", "--timeout=360s", check=False)
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
