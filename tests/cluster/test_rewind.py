#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A bad release of a database application is taken back, in a cluster into which the chart was installed: a PostgreSQL whose
data and WAL are volumes of Tidemark's class; rows that were acknowledged before the point are there, none after; objects and pods
are as they were; the undo brings the bad release back; and a namespace that was deleted is restored with its data. The point is taken from the clock of the database's node, between two
statements of one session, so that there is no doubt about any row.

TIDEMARK_IMAGE: the image's archive. TIDEMARK_INSTALLED=1: Tidemark is installed already, and is left alone."""
import json
import os
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "../..")
CHART = os.path.join(ROOT, "packaging/helm/tidemark")
SYSTEM = "tidemark-system"
NAMESPACE = f"test-rewind-{os.getpid()}"
OTHER = NAMESPACE + "-operators"  # where the recovery of a namespace that is gone is made
POLICY = NAMESPACE
os.environ.setdefault("KUBECONFIG", os.path.join(os.environ.get("TIDEMARK_CLUSTER_STATE", "/var/lib/tidemark-cluster"), "kubeconfig"))
os.environ["PATH"] = os.path.join(os.environ.get("TIDEMARK_CLUSTER_CACHE", "/var/cache/tidemark-cluster"), "bin") + ":" + os.environ["PATH"]

AS_POSTGRES = "setpriv --reuid=postgres --regid=postgres --clear-groups"
APPLICATION = f"""
apiVersion: tidemark.io/v1alpha1
kind: ProtectionPolicy
metadata: {{name: {POLICY}}}
spec: {{}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: settings, namespace: {NAMESPACE}}}
data: {{release: good}}
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
      initContainers:
      - name: init
        image: localhost/postgres:15
        command:
        - bash
        - -ec
        - |
          mkdir -p -m 700 /data/pg /wal/pg && chown postgres /data/pg /wal/pg
          [ -e /data/pg/PG_VERSION ] || {AS_POSTGRES} initdb -D /data/pg -X /wal/pg -A trust -U postgres >/dev/null
        volumeMounts: [{{name: data, mountPath: /data}}, {{name: wal, mountPath: /wal}}]
      containers:
      - name: db
        image: localhost/postgres:15
        command: [bash, -ec, "mkdir -p /run/postgresql; chown postgres /run/postgresql; exec {AS_POSTGRES} postgres -D /data/pg"]
        env: [{{name: RELEASE, valueFrom: {{configMapKeyRef: {{name: settings, key: release}}}}}}]
        lifecycle: {{preStop: {{exec: {{command: [bash, -c, "{AS_POSTGRES} pg_ctl -D /data/pg -m fast -w stop"]}}}}}}
        readinessProbe: {{exec: {{command: [pg_isready, -q]}}, periodSeconds: 1}}
        volumeMounts: [{{name: data, mountPath: /data}}, {{name: wal, mountPath: /wal}}]
  volumeClaimTemplates:
  - metadata: {{name: data}}
    spec: {{storageClassName: tidemark, accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 256Mi}}}}}}
  - metadata: {{name: wal}}
    spec: {{storageClassName: tidemark, accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 512Mi}}}}}}
"""


class Failed(Exception):
    pass


def run(*command, text=None, check=True, timeout=720):
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout)
    if check and done.returncode:
        raise Failed(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def kubectl(*arguments, **options):
    return run("kubectl", *arguments, **options)


def get(kind, name, namespace=NAMESPACE):
    text = kubectl("-n", namespace, "get", kind, name, "-o", "json", "--ignore-not-found")
    return json.loads(text) if text else None


def expect(what, holds, detail=""):
    if not holds:
        raise Failed(f"{what}: {detail}")
    print(f"ok: {what}", flush=True)


def within(seconds, what, look):
    """Waits until look() is true, and returns what it gave. The seconds are for an idle machine: a busy one has three times as long."""
    deadline = time.monotonic() + 3 * seconds
    while True:
        found = look()
        if found:
            print(f"ok: {what}", flush=True)
            return found
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {3 * seconds} s")
        time.sleep(0.2)


class Session:
    """One session of psql in the pod; each statement is answered before the next is sent."""

    def __init__(self):
        self.process = subprocess.Popen(["kubectl", "-n", NAMESPACE, "exec", "-i", "db-0", "-c", "db", "--", "psql", "-qAtU", "postgres",
                                         "-v", "ON_ERROR_STOP=1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, sql):
        self.process.stdin.write(sql + ";\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise Failed(f"the session ended at: {sql}")
        return line.strip()

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=90)
        self.process.stdout.close()


def query(sql):
    return kubectl("-n", NAMESPACE, "exec", "db-0", "-c", "db", "--", "psql", "-qAtU", "postgres", "-c", sql).strip()


def install(*options):
    if os.environ.get("TIDEMARK_INSTALLED"):
        return
    archive = os.environ.get("TIDEMARK_IMAGE", os.path.join(ROOT, os.environ.get("TIDEMARK_BUILD", "build"), "tidemark-image.tar"))
    if not os.environ.get("TIDEMARK_IMAGE_LOADED"):
        run(os.path.join(HERE, "cluster.sh"), "import", os.path.abspath(archive))
    run("helm", "install", "tidemark", CHART, "--namespace", SYSTEM, "--create-namespace", "--set",
        "sidecars.registrar=localhost/node-driver-registrar:1", *options, "--wait", "--timeout", "540s")


def uninstall():
    if os.environ.get("TIDEMARK_INSTALLED"):
        return
    run("helm", "uninstall", "tidemark", "--no-hooks", "--namespace", SYSTEM, "--wait", "--timeout", "360s", check=False)
    kubectl("delete", "namespace", SYSTEM, "--wait", "--timeout=360s", check=False)


def recover(name, point, namespace=NAMESPACE, **more):
    """Who asked stands in the annotation as the webhook writes it; where that is installed, it does so itself."""
    spec = {"application": NAMESPACE, "mode": "rewind", "point": point} | more
    who = json.dumps({"username": "kubernetes-admin", "groups": ["system:masters", "system:authenticated"]})
    kubectl("create", "-f", "-", text=json.dumps({
        "apiVersion": "tidemark.io/v1alpha1", "kind": "Recovery",
        "metadata": {"name": name, "namespace": namespace, "annotations": {"tidemark.io/requested-by": who}}, "spec": spec}))


def status(name, namespace=NAMESPACE):
    return get("recovery", name, namespace).get("status", {})


def completed(name, namespace=NAMESPACE):
    def look():
        now = status(name, namespace)
        if now.get("phase") in ("Failed", "Cancelled"):
            raise Failed(f"{name}: {json.dumps(now, indent=1)}")
        return now if now.get("phase") == "Completed" else None
    return within(240, f"the recovery {name} is completed", look)


def condition(kind, name, wanted):
    for one in (get(kind, name) or {}).get("status", {}).get("conditions", []):
        if one["type"] == wanted:
            return one
    return {}


def release():
    return get("configmap", "settings")["data"]["release"]


def rows():
    return query("SELECT count(*), min(id), max(id), (SELECT count(*) FROM orders WHERE id > 200) FROM orders")


def write_rows():
    """200 rows, then the point, then 20 more."""
    session = Session()
    session.ask("CREATE TABLE orders (id int PRIMARY KEY, at timestamptz DEFAULT clock_timestamp()); SELECT 0")
    for i in range(1, 201):
        expect(f"row {i} is acknowledged", session.ask(f"INSERT INTO orders VALUES ({i}) RETURNING id") == str(i)) if i % 100 == 0 else \
            session.ask(f"INSERT INTO orders VALUES ({i}) RETURNING id")
    point = session.ask("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
    for i in range(201, 221):
        session.ask(f"INSERT INTO orders VALUES ({i}) RETURNING id")
    session.close()
    return point


def break_it():
    query("DROP TABLE orders")
    kubectl("-n", NAMESPACE, "patch", "configmap", "settings", "-p", '{"data":{"release":"bad"}}')
    kubectl("-n", NAMESPACE, "create", "configmap", "later", "--from-literal=a=b")
    kubectl("-n", NAMESPACE, "set", "image", "statefulset/db", "db=localhost/there-is-none:1")

    def pod_is_stuck():
        pod = get("pod", "db-0")
        states = (pod or {}).get("status", {}).get("containerStatuses", [])
        return pod and pod["spec"]["containers"][0]["image"].endswith("none:1") and \
            any("ImagePull" in s.get("state", {}).get("waiting", {}).get("reason", "") for s in states)
    within(120, "the bad release does not start", pod_is_stuck)


def image():
    return get("pod", "db-0")["spec"]["containers"][0]["image"]


def check_rewound(name, namespace=NAMESPACE):
    done = completed(name, namespace)
    expect("all rows that were acknowledged before the point are there, and none after", rows() == "200|1|200|0", rows())
    expect("the ConfigMap is as it was", release() == "good")
    expect("what came after is gone", get("configmap", "later") is None)
    expect("the pod runs the good release", image() == "localhost/postgres:15")
    expect("it sees the settings of the point",
           kubectl("-n", NAMESPACE, "exec", "db-0", "-c", "db", "--", "printenv", "RELEASE").strip() == "good")
    expect("the condition says that the workloads are ready",
           any(c["type"] == "WorkloadsReady" and c["status"] == "True" for c in done["conditions"]))
    timings = done["timings"]
    print(f"{name}: rows_lost=0 recovery_ms={timings['openedMs'] - timings['stopMs']} stop_ms={timings['stopMs']} "
          f"data_ms={timings['dataMs']} objects_ms={timings['objectsMs']} ready_ms={timings['readyMs']}", flush=True)


def set_image(image):
    """And the StatefulSet's controller knows it: a pod that it makes is of that image."""
    kubectl("-n", NAMESPACE, "set", "image", "statefulset/db", f"db={image}")

    def observed():
        live = get("statefulset", "db")
        return live["status"].get("observedGeneration", 0) >= live["metadata"]["generation"]
    within(60, "the new image is seen", observed)


def check_undo():
    """The bad release comes back, and with it what is wrong with it."""
    recover("undo", status("back")["before"])

    def awaits():
        now = status("undo")
        if now.get("phase") in ("Failed", "Completed", "Cancelled"):
            raise Failed(f"undo: {json.dumps(now, indent=1)}")
        return now.get("step", {}).get("name") == "Await" and "ImagePull" in now.get("message", "")
    within(120, "the undo says what its workload waits for", awaits)
    expect("the ConfigMap is the bad one again", release() == "bad")
    expect("what came after is back", get("configmap", "later") is not None)
    set_image("localhost/postgres:15")
    kubectl("-n", NAMESPACE, "delete", "pod", "db-0", "--wait=false")
    completed("undo")
    expect("the table is gone again", query("SELECT to_regclass('orders') IS NULL") == "t")


def check_restore(point):
    """The namespace is deleted, with claims and volumes; it comes back with its data."""
    kubectl("create", "namespace", OTHER)
    kubectl("delete", "namespace", NAMESPACE, "--wait", "--timeout=450s")
    volumes = json.loads(kubectl("get", "persistentvolumes", "-o", "json"))["items"]
    expect("claims and volumes are gone", not [v for v in volumes if v["spec"].get("claimRef", {}).get("namespace") == NAMESPACE
                                               and v["status"]["phase"] == "Bound"])
    recover("restored", point, namespace=OTHER, mode="restore", sourceNamespace=NAMESPACE, targetNamespace=NAMESPACE)
    check_rewound("restored", OTHER)
    within(60, "it is protected again", lambda: condition("papp", NAMESPACE, "Protected").get("reason") == "AllVolumesCaptured")


def check_refusals():
    recover("too-early", "2001-01-01T00:00:00Z")

    def refused():
        return status("too-early").get("phase") == "Failed" and status("too-early")
    now = within(60, "a point before the history is refused", refused)
    expect("with a reason", condition("recovery", "too-early", "Ready").get("reason") == "PointNotAvailable", json.dumps(now))
    recover("dry", "latest", dryRun=True)
    within(60, "a dry run is planned", lambda: status("dry").get("phase") == "Planned")


def show():
    for arguments in (["-n", NAMESPACE, "get", "pods,pvc,papp,recoveries,events", "-o", "wide"],
                      ["-n", SYSTEM, "get", "pods", "-o", "wide"],
                      ["-n", SYSTEM, "logs", "deployment/tidemark-controller", "-c", "controller", "--tail=40"],
                      ["-n", SYSTEM, "logs", "daemonset/tidemark-node", "-c", "node", "--tail=40"]):
        print(kubectl(*arguments, check=False), file=sys.stderr)


def main():
    failure = None
    try:
        install()
        kubectl("create", "namespace", NAMESPACE)
        kubectl("annotate", "namespace", NAMESPACE, f"tidemark.io/policy={POLICY}")
        kubectl("apply", "-f", "-", text=APPLICATION)
        within(180, "the database runs", lambda: condition("pod", "db-0", "Ready").get("status") == "True")
        within(60, "its volumes are captured", lambda: condition("papp", NAMESPACE, "Protected").get("reason") == "AllVolumesCaptured")
        within(60, "its objects are journaled", lambda: condition("papp", NAMESPACE, "Ready").get("status") == "True")
        point = write_rows()
        break_it()
        check_refusals()
        recover("back", point)
        check_rewound("back")
        check_undo()
        recover("again", point)
        check_rewound("again")
        check_restore(point)
    except (Failed, subprocess.TimeoutExpired) as e:
        failure = e
        show()
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--wait", "--timeout=360s", check=False)
        kubectl("delete", "namespace", OTHER, "--wait", "--timeout=180s", check=False)
        kubectl("delete", "protectionpolicy", POLICY, check=False)
        uninstall()
    if failure:
        print(f"NOT OK: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
