#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""An earlier moment of a database application, with its data, in another namespace, while the original runs: exactly the rows that were
acknowledged before the point, before they are copied; nothing of the original touched, and nothing left once the clone's namespace is deleted. The
history of the original goes too, when the time that the policy keeps it is over and no clone needs it any more.

Environment: as test_rewind.py."""
import json
import subprocess
import sys
import threading

import test_rewind as base
from test_rewind import NAMESPACE, SYSTEM, Failed, condition, expect, get, kubectl, recover, status, within

CLONE = NAMESPACE + "-clone"
RECORDS = "tidemark.io/volume-record"
SQL = "SELECT count(*), min(id), max(id), (SELECT count(*) FROM orders WHERE id > 200) FROM orders"


def query(sql, namespace):
    return kubectl("-n", namespace, "exec", "db-0", "-c", "db", "--", "psql", "-qAtU", "postgres", "-c", sql).strip()


class Writer(threading.Thread):
    """Rows from 1001 on into the original, until told to stop."""

    def __init__(self):
        super().__init__()
        self.stop = threading.Event()
        self.last = 1000
        self.error = None

    def run(self):
        try:
            session = base.Session()
            while not self.stop.is_set():
                session.ask(f"INSERT INTO orders VALUES ({self.last + 1}) RETURNING id")
                self.last += 1
            session.close()
        except (Failed, OSError, subprocess.SubprocessError) as e:
            self.error = e


def records():
    """{handle: record}, with the claim's namespace."""
    found = json.loads(kubectl("-n", SYSTEM, "get", "configmaps", "-l", f"{RECORDS}=true", "-o", "json"))["items"]
    return {item["metadata"]["name"]: json.loads(item["data"]["record"]) for item in found}


def volumes_of(namespace):
    return [v for v in json.loads(kubectl("get", "persistentvolumes", "-o", "json"))["items"]
            if v["spec"].get("claimRef", {}).get("namespace") == namespace]


def streams_of_nodes():
    """{stream: (pod of its data plane, what that says of it)}"""
    found = {}
    pods = json.loads(kubectl("-n", SYSTEM, "get", "pods", "-l", "app.kubernetes.io/component=data", "-o", "json"))["items"]
    for pod in pods:
        name = pod["metadata"]["name"]
        text = kubectl("-n", SYSTEM, "exec", name, "--", "tidemark", "status", "-o", "json", "--socket", "/run/tidemark/data.sock")
        found |= {application["name"]: (name, application) for application in json.loads(text)["applications"]}
    return found


def filled(name, namespace=NAMESPACE):
    """The condition's status and reason, and how many bytes are left."""
    now = status(name, namespace)
    one = next((c for c in now.get("conditions", []) if c["type"] == "Filled"), {})
    return one.get("status"), one.get("reason"), now.get("filling", {}).get("leftBytes")


def check_status():
    """What the nodes say of the streams is in the application's status."""
    def told():
        now = (get("papp", NAMESPACE) or {}).get("status", {})
        streams = now.get("streams", [])
        return now if len(streams) == 1 and streams[0].get("state") == "protected" and now.get("oldestTime") and "rpoMs" in now else None
    now = within(90, "the application's status has its stream", told)
    expect("each volume says its stream and node", all(v.get("stream") == now["streams"][0]["stream"] and v.get("node") for v in now["volumes"]) or
           within(60, "(soon)", lambda: all(v.get("stream") for v in get("papp", NAMESPACE)["status"]["volumes"])))


def check_dry_run(point):
    recover("dry", point, mode="clone", targetNamespace=CLONE, dryRun=True)

    def planned():
        now = status("dry")
        if now.get("phase") == "Failed":
            raise Failed(json.dumps(now))
        return now if now.get("phase") == "Planned" else None
    plan = within(60, "the clone is planned", planned)["plan"]
    expect("the plan says how much is copied", sorted(v["claim"] for v in plan["volumes"]) == ["data-db-0", "wal-db-0"]
           and all(0 < v["changedBytes"] for v in plan["volumes"]), json.dumps(plan["volumes"]))
    expect("and that the copy is not waited for", status("dry")["streams"][0].get("atOnce") is True and "notes" not in plan, json.dumps(status("dry")))
    expect("nothing was made", get("namespace", CLONE) is None)


def check_clone(point):
    before = get("pod", "db-0")
    recover("clone", point, mode="clone", targetNamespace=CLONE, isolated=True)
    done = base.completed("clone")
    left = filled("clone")
    expect("it is used before it is copied", left[:2] == ("False", "Filling") and left[2] > 0, f"{left} {json.dumps(done)}")
    expect("all rows that were acknowledged before the point are in the clone, and none after", query(SQL, CLONE) == "200|1|200|0",
           query(SQL, CLONE))
    expect("the clone's volumes are its own", {v["metadata"]["name"] for v in volumes_of(CLONE)}.isdisjoint(
        v["metadata"]["name"] for v in volumes_of(NAMESPACE)) and len(volumes_of(CLONE)) == 2)
    expect("it is cut off the network", get("networkpolicy", "tidemark-isolated", CLONE) is not None)
    now = get("pod", "db-0")
    expect("the original's pod is the same", now["metadata"]["uid"] == before["metadata"]["uid"]
           and now["status"]["containerStatuses"][0]["restartCount"] == 0)
    timings = done["timings"]
    copy = done["streams"][0]["newStream"]
    expect("it is thrown away while it is copied", streams_of_nodes()[copy][1]["copied_from"] == done["streams"][0]["stream"])
    print(f"clone: rows_lost=0 clone_ms={done['rtoMs']} data_ms={timings['dataMs']} opened_ms={timings['openedMs']} "
          f"ready_ms={timings['readyMs']} copied_bytes={sum(s['changedBytes'] for s in done['streams'])}", flush=True)


def check_apart(writer):
    query("INSERT INTO orders VALUES (100000)", CLONE)
    expect("a row of the clone is not in the original", query("SELECT count(*) FROM orders WHERE id = 100000", NAMESPACE) == "0")
    expect("the original has gone on", writer.error is None and writer.is_alive(), str(writer.error))
    writer.stop.set()
    writer.join(60)
    expect("no acknowledged row of the original is lost",
           query("SELECT count(*) FROM orders WHERE id > 1000", NAMESPACE) == str(writer.last - 1000), str(writer.error))


def check_thrown_away():
    streams = {r["stream"] for r in records().values() if r["claim_namespace"] == CLONE}
    expect("the clone has a stream of its own", len(streams) == 1 and streams <= set(streams_of_nodes()))
    kubectl("delete", "namespace", CLONE, "--wait", "--timeout=450s")
    within(120, "its persistent volumes are gone", lambda: not volumes_of(CLONE))
    within(120, "its volumes' records are gone", lambda: not [r for r in records().values() if r["claim_namespace"] == CLONE])
    expect("its stream is gone from the node", streams.isdisjoint(streams_of_nodes()))
    expect("the original runs", condition("pod", "db-0", "Ready").get("status") == "True")


def check_refusals(point):
    recover("early", "2001-01-01T00:00:00Z", mode="clone", targetNamespace=CLONE)
    within(60, "a point before the history is refused", lambda: status("early").get("phase") == "Failed")
    expect("with a reason", condition("recovery", "early", "Ready").get("reason") == "PointNotAvailable", json.dumps(status("early")))
    expect("and nothing was made", get("namespace", CLONE) is None)
    # Cancelled before it ends: what was copied goes.
    recover("cancelled", point, mode="clone", targetNamespace=CLONE)
    kubectl("-n", NAMESPACE, "annotate", "recovery", "cancelled", "tidemark.io/cancel=true")
    within(120, "a clone that is cancelled ends", lambda: status("cancelled").get("phase") in ("Cancelled", "Completed"))
    kubectl("delete", "namespace", CLONE, "--wait", "--timeout=450s", "--ignore-not-found")
    within(120, "nothing is left of it", lambda: not [r for r in records().values() if r.get("recovery") == f"{NAMESPACE}/cancelled"]
           and not volumes_of(CLONE))


def kill_engine(stream):
    pod, before = streams_of_nodes()[stream]
    kubectl("-n", SYSTEM, "exec", pod, "--", "sh", "-c", f"kill -9 {before['engine_pid']}")
    within(30, "its engine is back", lambda: streams_of_nodes()[stream][1]["engine_pid"] not in (None, before["engine_pid"]))


def kept_because():
    """Why history is still there of the original's volumes, whose time is over."""
    found = json.loads(kubectl("-n", SYSTEM, "get", "configmaps", "-l", f"{RECORDS}=true", "-o", "json"))["items"]
    return [i["data"].get("kept", "") for i in found if json.loads(i["data"]["record"])["claim_namespace"] == NAMESPACE]


def check_purge(point):
    """The original is deleted while a clone is copied, whose engine is killed: that loses nothing, and what it reads goes when it has it."""
    streams = {r["stream"] for r in records().values() if r["claim_namespace"] == NAMESPACE}
    kubectl("create", "namespace", base.OTHER)
    recover("outlives", point, namespace=base.OTHER, mode="clone", sourceNamespace=NAMESPACE, targetNamespace=CLONE)
    copy = base.completed("outlives", base.OTHER)["streams"][0]["newStream"]
    query("INSERT INTO orders SELECT generate_series(200001, 200100)", CLONE)
    kill_engine(copy)
    kubectl("delete", "namespace", NAMESPACE, "--wait", "--timeout=450s")
    left = filled("outlives", base.OTHER)
    expect("the clone is still being copied", left[0] == "False" and left[2] > 0, str(left))
    within(60, "why the history of the original is kept is told", lambda: (why := kept_because()) and all("still being copied" in w for w in why))
    expect("the clone is whole", query(SQL, CLONE) == "300|1|200100|100", query(SQL, CLONE))
    pod, told = streams_of_nodes()[copy]
    kubectl("-n", SYSTEM, "exec", "-i", pod, "--", "tidemark", "apply", "-f", "-", "--socket", "/run/tidemark/data.sock", text=json.dumps(
        {"apiVersion": "tidemark.io/v1alpha1", "kind": "ProtectionPolicy", "metadata": {"name": told["policy"]}, "spec": {}}))  # as fast as it can
    within(180, "the clone is copied", lambda: filled("outlives", base.OTHER) == ("True", "Filled", 0))
    within(150, "what was kept of the original is removed when nothing needs it",
           lambda: not [r for r in records().values() if r["claim_namespace"] == NAMESPACE])
    expect("with its streams", streams.isdisjoint(streams_of_nodes()))
    kubectl("-n", CLONE, "delete", "pod", "db-0", "--wait")
    within(120, "the clone's database starts again", lambda: condition_of(CLONE, "pod", "db-0", "Ready") == "True")
    expect("with all rows", query(SQL, CLONE) == "300|1|200100|100", query(SQL, CLONE))


def condition_of(namespace, kind, name, wanted):
    found = (get(kind, name, namespace) or {}).get("status", {}).get("conditions", [])
    return next((c["status"] for c in found if c["type"] == wanted), None)


def main():
    failure = None
    writer = Writer()
    try:
        base.install()
        kubectl("create", "namespace", NAMESPACE)
        kubectl("annotate", "namespace", NAMESPACE, f"tidemark.io/policy={base.POLICY}")
        kubectl("apply", "-f", "-", text=base.APPLICATION.replace("spec: {}", "spec: {onDelete: {keep: 5s}, journal: {seedRate: 1Mi}}", 1))
        within(180, "the database runs", lambda: condition("pod", "db-0", "Ready").get("status") == "True")
        within(60, "its volumes are captured", lambda: condition("papp", NAMESPACE, "Protected").get("reason") == "AllVolumesCaptured")
        within(60, "its objects are journaled", lambda: condition("papp", NAMESPACE, "Ready").get("status") == "True")
        check_status()
        # More than is copied at 1 MiB a second until the test has seen what it looks for.
        query("CREATE TABLE bulk AS SELECT id, repeat(md5(id::text), 40) AS text FROM generate_series(1, 80000) AS id", NAMESPACE)
        point = base.write_rows()
        writer.start()
        check_dry_run(point)
        check_clone(point)
        check_apart(writer)
        check_thrown_away()
        check_refusals(point)
        check_purge(point)
    except (Failed, subprocess.TimeoutExpired) as e:
        failure = e
        base.show()
    finally:
        writer.stop.set()
        for namespace in (CLONE, base.OTHER, NAMESPACE):
            kubectl("delete", "namespace", namespace, "--wait", "--timeout=360s", "--ignore-not-found", check=False)
        kubectl("delete", "protectionpolicy", base.POLICY, check=False)
        base.uninstall()
    if failure:
        print(f"NOT OK: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
