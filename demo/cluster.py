#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""An application in a cluster is rewound, cloned and restored while you watch: PostgreSQL on two volumes, two replicas that write orders,
a ConfigMap, a Secret, a Service, an Ingress, a HorizontalPodAutoscaler, and one annotation. Then a bad release: image, settings, and a
migration that drops a column.

Without KUBECONFIG it makes a cluster of two nodes on this machine (tests/cluster/cluster.sh, needs root) and removes it (KEEP=1: it stays).
Where Tidemark is not installed it installs the chart with TIDEMARK_IMAGE, and takes it away again. DEMO_NAMESPACE: the application's (shop).
The last line is "demo-cluster: rows_lost=0 objects_wrong=0 rewind_ms=N clone_ms=N restore_ms=N", - for what was left out; status 0 if
nothing was wrong."""
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), ".."))
BUILD = os.path.join(ROOT, os.environ.get("BUILD", "build"))
SCRIPT = os.path.join(ROOT, "tests/cluster/cluster.sh")
CACHE = os.environ.get("TIDEMARK_CLUSTER_CACHE", "/var/cache/tidemark-cluster")
STATE = os.environ.get("TIDEMARK_CLUSTER_STATE", "/var/lib/tidemark-cluster")
SYSTEM = "tidemark-system"
NS = os.environ.get("DEMO_NAMESPACE", "shop")
TRY = f"{NS}-try"
POLICY = f"demo-{NS}"
AS_POSTGRES = "setpriv --reuid=postgres --regid=postgres --clear-groups"
PASSWORD = "not-printed-anywhere"
KINDS = ("configmap/settings", "secret/database", "service/db", "service/web", "ingress/web", "horizontalpodautoscaler/orders", "deployment/orders",
         "statefulset/db")

INIT = f"""mkdir -p -m 700 /data/pg /wal/pg && chown postgres /data/pg /wal/pg
[ -e /data/pg/PG_VERSION ] && exit 0
printf %s "$PGPASSWORD" >/tmp/password; chown postgres /tmp/password
{AS_POSTGRES} initdb -D /data/pg -X /wal/pg -U postgres --auth-local=trust --auth-host=scram-sha-256 --pwfile=/tmp/password >/dev/null
echo 'host all all all scram-sha-256' >>/data/pg/pg_hba.conf
"""
RUN = f"mkdir -p /run/postgresql; chown postgres /run/postgresql; exec {AS_POSTGRES} postgres -D /data/pg -c listen_addresses='*'"
WRITE = """while :; do
  if psql -qAt -h "$DB_HOST" -U postgres -c "INSERT INTO orders (writer, amount) VALUES ('$HOSTNAME', $RANDOM)" 2>/dev/null
  then touch /tmp/wrote; sleep 0.02; else rm -f /tmp/wrote; sleep 0.2; fi
done
"""


def claim(name, size):
    return {"metadata": {"name": name}, "spec": {"storageClassName": "tidemark", "accessModes": ["ReadWriteOnce"],
                                                 "resources": {"requests": {"storage": size}}}}


def meta(name):
    return {"name": name, "namespace": NS}


PASSWORD_VARIABLE = {"name": "PGPASSWORD", "valueFrom": {"secretKeyRef": {"name": "database", "key": "password"}}}
MOUNTS = [{"name": "data", "mountPath": "/data"}, {"name": "wal", "mountPath": "/wal"}]
APPLICATION = [
    {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("settings"), "data": {"release": "good", "greeting": "hello"}},
    {"apiVersion": "v1", "kind": "Secret", "metadata": meta("database"), "stringData": {"password": PASSWORD}},
    {"apiVersion": "v1", "kind": "Service", "metadata": meta("db"), "spec": {"clusterIP": "None", "selector": {"app": "db"}, "ports": [{"port": 5432}]}},
    {"apiVersion": "v1", "kind": "Service", "metadata": meta("web"), "spec": {"selector": {"app": "orders"}, "ports": [{"port": 80}]}},
    {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": meta("web"), "spec": {"rules": [{"host": "shop.example.com", "http": {
        "paths": [{"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "web", "port": {"number": 80}}}}]}}]}},
    {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": meta("orders"), "spec": {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "orders"}, "minReplicas": 2, "maxReplicas": 4,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]}},
    {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": meta("db"), "spec": {
        "serviceName": "db", "selector": {"matchLabels": {"app": "db"}}, "template": {"metadata": {"labels": {"app": "db"}}, "spec": {
            "automountServiceAccountToken": False,
            "initContainers": [{"name": "init", "image": "localhost/postgres:15", "command": ["bash", "-ec", INIT], "env": [PASSWORD_VARIABLE],
                                "volumeMounts": MOUNTS}],
            "containers": [{"name": "db", "image": "localhost/postgres:15", "command": ["bash", "-ec", RUN], "volumeMounts": MOUNTS,
                            "lifecycle": {"preStop": {"exec": {"command": ["bash", "-c", f"{AS_POSTGRES} pg_ctl -D /data/pg -m fast -w stop"]}}},
                            "readinessProbe": {"exec": {"command": ["pg_isready", "-q"]}, "periodSeconds": 1}}]}},
        "volumeClaimTemplates": [claim("data", "256Mi"), claim("wal", "512Mi")]}},
    {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta("orders"), "spec": {
        "replicas": 2, "selector": {"matchLabels": {"app": "orders"}}, "template": {"metadata": {"labels": {"app": "orders"}}, "spec": {
            "automountServiceAccountToken": False, "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "writer", "image": "localhost/postgres:15", "command": ["bash", "-c", WRITE],
                            "env": [PASSWORD_VARIABLE, {"name": "DB_HOST", "value": "db"}, {"name": "PGCONNECT_TIMEOUT", "value": "2"},
                                    {"name": "RELEASE", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "release"}}}],
                            "readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/wrote"]}, "periodSeconds": 1}}]}}}}]


class Failed(Exception):
    pass


class LeftOut(Exception):
    pass


step_number = 0
wrong = []


def say(title, *lines):
    global step_number
    step_number += 1
    print(f"\n[{step_number:2}] {title}", flush=True)
    for line in lines:
        print(f"     {line}", flush=True)


def show(text):
    print("".join(f"     {line}\n" for line in text.rstrip("\n").splitlines()), end="", flush=True)


def run(*command, text=None, check=True, timeout=300, quiet=False):
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=timeout)
    if check and done.returncode:
        raise Failed(f"{' '.join(command)[:300]}: {done.stdout[-500:]}{done.stderr[-1500:]}")
    return done.stdout if check else done


def kubectl(*arguments, **options):
    return run("kubectl", *arguments, **options)


def get(what, namespace=NS):
    return json.loads(kubectl("-n", namespace, "get", what, "-o", "json"))


def within(seconds, what, look):
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {seconds} s")
        time.sleep(0.2)


def tidemark(*arguments):
    """Runs the plugin; shows the command. (answer, ms)"""
    print(f"     $ kubectl tidemark {' '.join(arguments)}", flush=True)
    begun = time.monotonic()
    done = run("kubectl", "tidemark", *arguments, "-o", "json", check=False)
    ms = (time.monotonic() - begun) * 1000
    answer = json.loads(done.stdout) if done.stdout.startswith("{") else {}
    if done.returncode:
        raise Failed(f"kubectl tidemark {arguments[0]}: {done.stderr}")
    show(done.stderr)
    return answer, ms


def query(sql, namespace=NS):
    return kubectl("-n", namespace, "exec", "db-0", "-c", "db", "--", "psql", "-qAtU", "postgres", "-c", sql).strip()


def try_query(sql, namespace=NS):
    done = kubectl("-n", namespace, "exec", "db-0", "-c", "db", "--", "psql", "-qAtU", "postgres", "-c", sql, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def rows(namespace=NS):
    """{id: (microseconds, amount)} of all orders."""
    text = query("SELECT id, (extract(epoch FROM at) * 1000000)::bigint, amount FROM orders", namespace)
    return {i: (int(at), int(amount)) for i, at, amount in (line.split("|") for line in text.splitlines())}


class Moment:
    """Rows that were committed, then a time of the database's clock, and the objects as they are."""

    def __init__(self):
        self.rows = rows()
        self.time, us = query("SELECT to_char(t AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), (extract(epoch FROM t) * 1000000)::bigint "
                              "FROM clock_timestamp() t").split("|")
        self.us = int(us)
        self.objects = {name: shape(get(name)) for name in KINDS}


def shape(live):
    """What a person wrote of the object."""
    spec = dict(live.get("spec", {}))
    for key in ("clusterIP", "clusterIPs"):
        if spec.get(key) not in ("None", ["None"]):
            spec.pop(key, None)
    return {"data": live.get("data"), "spec": spec}


def compare(moment, namespace, until_us):
    """(lost, leaked, wrong objects): against the moment. Rows after until_us are of the present."""
    now = rows(namespace)
    lost = [i for i, row in moment.rows.items() if now.get(i) != row]
    leaked = [i for i, (at, _) in now.items() if moment.us < at < until_us]
    bad = []
    for name, was in moment.objects.items():
        done = kubectl("-n", namespace, "get", name, "-o", "json", check=False)
        is_now = shape(json.loads(done.stdout)) if done.returncode == 0 else None
        if is_now != was:
            bad.append(name)
    return len(lost), len(leaked), bad


def now_us():
    return time.time_ns() // 1000


def ready(namespace=NS):
    """Workloads and the database answer."""
    for name in ("statefulset/db", "deployment/orders"):
        status = get(name, namespace)
        if status.get("status", {}).get("readyReplicas", 0) < status["spec"]["replicas"]:
            return False
    return try_query("SELECT 1", namespace) == "1"


# ---- steps ----

def prepare():
    """(own cluster, installed by us)"""
    own = not os.environ.get("KUBECONFIG")
    if own:
        say("A Kubernetes of two nodes on this machine")
        run(SCRIPT, "up", timeout=3600)
        os.environ["KUBECONFIG"] = f"{STATE}/kubeconfig"
    if kubectl("get", "csidriver", "csi.tidemark.io", "--ignore-not-found"):
        return own, False
    image = os.environ.get("TIDEMARK_IMAGE", f"{BUILD}/tidemark-image.tar")
    say("Tidemark is installed", f"$ helm install tidemark packaging/helm/tidemark --namespace {SYSTEM}")
    if own:
        run(SCRIPT, "import", image, timeout=600)
    run("helm", "install", "tidemark", f"{ROOT}/packaging/helm/tidemark", "--namespace", SYSTEM, "--create-namespace", "--set",
        "sidecars.provisioner=localhost/csi-provisioner:1", "--set", "sidecars.registrar=localhost/node-driver-registrar:1", "--wait",
        "--timeout", "240s", timeout=300)
    return own, True


def begin():
    say("An application, and one annotation that protects it",
        "PostgreSQL with claims for data and WAL, two replicas that write orders, and all that belongs to it")
    kubectl("create", "namespace", NS)
    within(60, "the kinds", lambda: kubectl("apply", "-f", "-", check=False, text=json.dumps(
        {"apiVersion": "tidemark.io/v1alpha1", "kind": "ProtectionPolicy", "metadata": {"name": POLICY}, "spec": {}})).returncode == 0)
    kubectl("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": APPLICATION}))
    within(180, "the database", lambda: try_query("SELECT 1") == "1")
    query("CREATE TABLE orders (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), at timestamptz NOT NULL DEFAULT clock_timestamp(), "
          "writer text NOT NULL, amount int NOT NULL)")
    print(f"     $ kubectl annotate namespace {NS} tidemark.io/policy={POLICY}")
    kubectl("annotate", "namespace", NS, f"tidemark.io/policy={POLICY}")
    protected = lambda: next((a for a in json.loads(run("kubectl", "tidemark", "status", "-n", NS, "-o", "json"))["applications"]
                              if a["state"] == "protected" and a.get("volumesCaptured") == 2), None)
    within(120, "its protection", protected)
    within(120, "its workloads", ready)
    show(run("kubectl", "tidemark", "status", f"{NS}/{NS}"))


def load(count):
    begun = time.monotonic()
    target = int(query("SELECT count(*) FROM orders")) + count
    within(180, f"{count} orders", lambda: int(query("SELECT count(*) FROM orders")) >= target)
    print(f"     {count} orders in {time.monotonic() - begun:.1f} s")


def settled():
    """Until a dry run to the present finds nothing to do: all that was changed is in the journal of objects."""
    def nothing_to_do():
        done = run("kubectl", "tidemark", "rewind", f"{NS}/{NS}", "--to", "latest", "--objects-only", "--dry-run", "-o", "json", check=False)
        if done.returncode:
            raise Failed(done.stderr)
        plan = json.loads(done.stdout)["plan"]
        return sum(plan.get(key, 0) for key in ("create", "change", "recreate", "delete")) == 0
    within(60, "the journal of objects", nothing_to_do)


def spoil():
    say("A bad release: an image without psql, wrong settings, and a migration that drops a column")
    kubectl("-n", NS, "set", "image", "deployment/orders", "writer=localhost/toolbox:1")
    kubectl("-n", NS, "patch", "configmap", "settings", "--type=merge", "-p", '{"data":{"release":"bad","greeting":null}}')
    query("ALTER TABLE orders DROP COLUMN amount")
    # What may be lost when it is taken back: an order of the bad release.
    query("ALTER TABLE orders ADD COLUMN total money")
    query("INSERT INTO orders (writer) VALUES ('bad')")
    kubectl("-n", NS, "delete", "ingress", "web")
    columns = query("SELECT string_agg(column_name, ' ') FROM information_schema.columns WHERE table_name = 'orders'")
    print(f"     the columns are now: {columns}")


def rewind(moment):
    say("Rewind to just before it")
    show(run("kubectl", "tidemark", "rewind", f"{NS}/{NS}", "--to", moment.time, "--dry-run"))
    begun = now_us()
    answer, _ = tidemark("rewind", f"{NS}/{NS}", "--to", moment.time, "--yes")
    if not answer.get("streams"):
        raise Failed("the rewind was of objects only: this installation does not rewind volumes")
    within(120, "its workloads", ready)
    lost, leaked, bad = compare(moment, NS, begun)
    last = max((at for at, _ in moment.rows.values()), default=moment.us)
    print(f"     RTO {answer['rtoMs']} ms ({', '.join(f'{k[:-2]} {v} ms' for k, v in answer.get('timings', {}).items())}); "
          f"RPO {(moment.us - last) / 1000:.0f} ms from the last order that was looked up to the moment asked for")
    return ("rewind, in place", len(moment.rows), lost, leaked, bad, answer["rtoMs"])


def needs_data(verb, moment, *options):
    """LeftOut when a recovery of this kind is about objects only: its plan says nothing of the volumes."""
    done = run("kubectl", "tidemark", verb, f"{NS}/{NS}", "--to", moment.time, *options, "--dry-run", "-o", "json", check=False)
    if done.returncode:
        raise Failed(done.stderr)
    answer = json.loads(done.stdout)
    if not answer.get("streams") and not answer.get("plan", {}).get("volumes"):
        raise LeftOut(f"the {verb} of this build makes the objects, and volumes that are empty: their data does not come along yet")


def beside(verb, moment, namespace, *options):
    """Clone and restore: (lost, leaked, wrong objects, ms)."""
    begun = now_us()
    answer, ms = tidemark(verb, f"{NS}/{NS}", "--to", moment.time, *options, "--yes")
    where, name = answer["recovery"].split("/")
    if where != NS:
        kubectl("-n", where, "delete", "recovery", name)
    with_data = bool(answer.get("streams") or answer.get("plan", {}).get("volumes"))
    within(180, "its workloads", lambda: ready(namespace))
    lost, leaked, bad = compare(moment, namespace, begun)
    return lost, leaked, bad, int(answer.get("rtoMs") or ms)


def clone(moment):
    say("An earlier moment beside it, in another namespace, cut off the network")
    needs_data("clone", moment, "--into", TRY)
    try:
        lost, leaked, bad, ms = beside("clone", moment, TRY, "--into", TRY, "--isolated")
        print(f"     used: {query('SELECT count(*) FROM orders', TRY)} orders, one more is written there, and the whole is thrown away")
        before = query("SELECT count(*) FROM orders WHERE writer = 'clone'")
        query("INSERT INTO orders (writer, amount) VALUES ('clone', 1)", TRY)
        if query("SELECT count(*) FROM orders WHERE writer = 'clone'") != before:
            bad = [*bad, "the original has a row of the clone"]
        return ("clone, beside", len(moment.rows), lost, leaked, bad, ms)
    finally:
        kubectl("delete", "namespace", TRY, "--ignore-not-found", "--timeout=120s", timeout=150)


def restore():
    say("The namespace is deleted")
    settled()
    moment = Moment()
    needs_data("restore", moment)
    kubectl("delete", "namespace", NS, "--timeout=180s", timeout=200)
    say("and restored")
    lost, leaked, bad, ms = beside("restore", moment, NS)
    return ("restore, of a namespace that was gone", len(moment.rows), lost, leaked, bad, ms)


def attempt(what, table, part, *arguments):
    try:
        table.append(part(*arguments))
    except LeftOut as e:
        print(f"     LEFT OUT: {e}")
        table.append((what, "left out"))
    except Failed as e:
        print(f"     FAILED: {e}")
        wrong.append(f"{what}: {e}")
        table.append((what, "failed"))


def finish(table):
    print(f"\n{'':40} {'orders before':>14} {'lost':>6} {'leaked':>7} {'objects wrong':>14} {'ms':>8}")
    lost = objects = 0
    ms = {}
    for name, *cells in table:
        verb = name.split(",")[0]
        if len(cells) == 1:
            print(f"{name:40} {cells[0]}")
            ms[verb] = "-"
            continue
        count, gone, leaked, bad, took = cells
        print(f"{name:40} {count:>14} {gone:>6} {leaked:>7} {len(bad):>14} {took:>8}")
        if bad:
            print(f"    wrong: {', '.join(bad)}")
        lost += gone
        objects += len(bad)
        ms[verb] = took
        if leaked:
            wrong.append(f"{name}: {leaked} orders of after the moment")
    print(f"demo-cluster: rows_lost={lost} objects_wrong={objects} rewind_ms={ms.get('rewind', '-')} clone_ms={ms.get('clone', '-')} "
          f"restore_ms={ms.get('restore', '-')}")
    return not (lost or objects or wrong)


def clean(own, installed):
    if os.environ.get("KEEP"):
        return
    if own:
        run(SCRIPT, "reset", timeout=300)
        return
    for namespace in (NS, TRY):
        kubectl("delete", "namespace", namespace, "--ignore-not-found", "--timeout=120s", check=False, timeout=150)
    kubectl("delete", "protectionpolicy", POLICY, "--ignore-not-found", check=False)
    if installed:
        run("helm", "uninstall", "tidemark", "--no-hooks", "--namespace", SYSTEM, "--wait", "--timeout", "120s", check=False)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    own = installed = False
    good = False
    table = []
    with tempfile.TemporaryDirectory(prefix="tidemark-demo-") as directory:
        os.symlink(os.environ.get("TIDEMARK", f"{BUILD}/src/cli/tidemark"), f"{directory}/kubectl-tidemark")
        os.environ["PATH"] = f"{directory}:{CACHE}/bin:{os.environ['PATH']}"
        try:
            own, installed = prepare()
            begin()
            say("Load")
            load(200)
            settled()
            early = Moment()
            print(f"     an earlier moment: {early.time}, {len(early.rows)} orders")
            load(200)
            settled()
            moment = Moment()
            print(f"     just before the bad release: {moment.time}, {len(moment.rows)} orders")
            spoil()
            table.append(rewind(moment))
            attempt("clone", table, clone, early)
            attempt("restore", table, restore)
            good = finish(table)
        except Failed as e:
            print(f"FAILED: {e}")
        finally:
            clean(own, installed)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
