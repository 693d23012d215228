#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A database whose volumes are carried by somebody else's raw block volumes moves from node to node, and takes its history along: all
rows are there after the move, it is rewound to what was tagged on the other node, nothing stays on the node that it left, volumes
grow, and a controller that is killed in the middle of a move hinders nothing. What is attached nowhere is brought to a node by a
recovery: a stopped application is rewound and cloned, and a namespace that was deleted is restored, with its pods on another node than that.

TIDEMARK_IMAGE: the image's archive. The cluster needs two nodes and a class of raw block volumes that can be attached to either
(TIDEMARK_BACKING_CLASS, `shared`)."""
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import test_rewind as base
from test_rewind import NAMESPACE, POLICY, SYSTEM, Failed, expect, get, kubectl, query, within

BACKING = os.environ.get("TIDEMARK_BACKING_CLASS", "shared")
CLASS = f"tidemark-{BACKING}"
CLONE = NAMESPACE + "-clone"
# xfs: the kernel lets it grow without CAP_SYS_RESOURCE, which a cluster in a container has not.
APPLICATION = base.APPLICATION.replace("storageClassName: tidemark,", f"storageClassName: {CLASS},").replace("storage: 256Mi", "storage: 320Mi")


def items(kind, *arguments):
    return json.loads(kubectl("get", kind, "-o", "json", *arguments))["items"]


def node():
    """None: the pod is not there, or not bound yet."""
    return (get("pod", "db-0") or {"spec": {}})["spec"].get("nodeName")


def ready():
    return base.condition("pod", "db-0", "Ready").get("status") == "True"


def attachments():
    """Node -> names of the pods that hold streams there."""
    found = {}
    for pod in items("pods", "-n", SYSTEM, "-l", "app.kubernetes.io/component=attachment"):
        found.setdefault(pod["spec"].get("nodeName"), []).append(pod["metadata"]["name"])
    return found


def handle(claim):
    volume = get("persistentvolumeclaim", claim)["spec"]["volumeName"]
    return json.loads(kubectl("get", "persistentvolume", volume, "-o", "json"))["spec"]["csi"]["volumeHandle"]


def attached_to(claims):
    """The nodes to which the volumes behind claims of the driver's namespace are attached."""
    volumes = {get("persistentvolumeclaim", c, SYSTEM)["spec"]["volumeName"] for c in claims}
    return sorted(a["spec"]["nodeName"] for a in items("volumeattachments") if a["spec"]["source"].get("persistentVolumeName") in volumes)


def move(meanwhile=lambda: None):
    """The pod leaves its node, which takes no new ones."""
    before = node()
    kubectl("cordon", before)
    try:
        kubectl("-n", NAMESPACE, "delete", "pod", "db-0", "--wait=false")
        meanwhile()
        within(240, "the pod runs on another node", lambda: node() not in (None, before) and ready())
    finally:
        kubectl("uncordon", before)
    return before


def seeded():
    streams = (get("papp", NAMESPACE) or {}).get("status", {}).get("streams", [])
    return len(streams) == 1 and streams[0]["state"] == "protected" and streams[0]


def tag(name):
    kubectl("create", "-f", "-", text=json.dumps({"apiVersion": "tidemark.io/v1alpha1", "kind": "Checkpoint",
                                                 "metadata": {"name": name, "namespace": NAMESPACE}, "spec": {"application": NAMESPACE}}))
    within(60, f"the moment is tagged {name}", lambda: base.condition("checkpoint", name, "Ready").get("status") == "True")


def write_and_move(backing):
    session = base.Session()
    session.ask("CREATE TABLE orders (id int PRIMARY KEY, at timestamptz DEFAULT clock_timestamp()); SELECT 0")
    for i in range(1, 201):
        session.ask(f"INSERT INTO orders VALUES ({i}) RETURNING id")
    tag("good")
    for i in range(201, 221):
        session.ask(f"INSERT INTO orders VALUES ({i}) RETURNING id")
    session.close()
    first = node()
    expect("what carries them is attached to the pod's node", set(attached_to(backing)) == {first}, str(attached_to(backing)))
    left = move()
    expect("nothing of it is attached to the node that it left", left not in attached_to(backing) and left not in attachments(),
           f"{attached_to(backing)} {attachments()}")
    expect("all rows that were acknowledged on the other node are there", base.rows() == "220|1|220|20", base.rows())


def rewind():
    within(90, "the stream is told where it is", lambda: seeded() and seeded()["node"] == node())
    base.recover("back", "tag:good")
    base.completed("back")
    expect("it is as it was when it was tagged on the other node", base.rows() == "200|1|200|0", base.rows())


def grow(backing):
    """While it is used."""
    within(120, "it may grow", seeded)
    kubectl("-n", NAMESPACE, "patch", "persistentvolumeclaim", "data-db-0", "-p",
            '{"spec":{"resources":{"requests":{"storage":"400Mi"}}}}')
    within(180, "the claim has grown",
           lambda: get("persistentvolumeclaim", "data-db-0")["status"]["capacity"]["storage"] in ("400Mi", str(400 << 20)))
    expect("and what carries it", get("persistentvolumeclaim", backing[0], SYSTEM)["status"]["capacity"]["storage"] in ("400Mi", str(400 << 20)))
    size = int(kubectl("-n", NAMESPACE, "exec", "db-0", "-c", "db", "--", "df", "--output=size", "-k", "/data").split()[-1])
    expect("and its file system", size > 300 << 10, str(size))  # xfs keeps 64 MiB for its log
    expect("and nothing is lost", base.rows() == "200|1|200|0", base.rows())


def kill_controller():
    kubectl("-n", SYSTEM, "delete", "pod", "-l", "app.kubernetes.io/component=controller", "--grace-period=0", "--force")


def stop_and_start(backing):
    kubectl("-n", NAMESPACE, "scale", "statefulset", "db", "--replicas=0")
    within(180, "a stopped application has nothing attached", lambda: not attachments() and not attached_to(backing))
    expect("its data stay", all(get("persistentvolumeclaim", c, SYSTEM) for c in backing))
    kubectl("-n", NAMESPACE, "scale", "statefulset", "db", "--replicas=1")
    within(240, "it runs again", ready)
    expect("with all rows", base.rows() == "230|1|230|30", base.rows())


def drained(backing):
    """A drain goes through, and waits for the volumes."""
    before = node()
    try:
        kubectl("drain", before, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=180s", "--pod-selector", "app!=nothing")
        expect("a drained node has nothing of it", before not in attachments(), str(attachments()))
        within(240, "the pod runs on another node", lambda: node() not in (None, before) and ready())
        expect("all rows are there", base.rows() == "230|1|230|30", base.rows())
    finally:
        kubectl("uncordon", before)


def test():
    kubectl("create", "namespace", NAMESPACE)
    kubectl("annotate", "namespace", NAMESPACE, f"tidemark.io/policy={POLICY}")
    kubectl("apply", "-f", "-", text=APPLICATION)
    within(240, "the database runs", ready)
    within(60, "its volumes are captured", lambda: base.condition("papp", NAMESPACE, "Protected").get("reason") == "AllVolumesCaptured")
    within(120, "what they held is in the history", seeded)
    expect("both volumes are one stream", len(sum(attachments().values(), [])) == 1, str(attachments()))
    backing = [handle("data-db-0"), handle("wal-db-0")]
    backing.append(seeded()["stream"] + "-journal")
    write_and_move(backing)
    rewind()
    grow(backing)
    query("INSERT INTO orders SELECT generate_series(201, 230)")
    move(kill_controller)
    expect("all rows are there", base.rows() == "230|1|230|30", base.rows())
    stop_and_start(backing)
    drained(backing)
    rewind_stopped(backing)
    clone()
    restore_namespace(backing)


def attached_nowhere(backing):
    return not attachments() and not attached_to(backing)


def rewind_stopped(backing):
    """Put back to when it ran, it runs."""
    tag("rested")
    query("INSERT INTO orders SELECT generate_series(231, 240)")
    kubectl("-n", NAMESPACE, "scale", "statefulset", "db", "--replicas=0")
    within(180, "a stopped application has nothing attached", lambda: attached_nowhere(backing))
    base.recover("look", "tag:rested", dryRun=True)

    def planned():
        now = base.status("look")
        if now.get("phase") == "Failed":
            raise Failed(json.dumps(now))
        return now.get("phase") == "Planned" and now
    plan = within(120, "a dry run has its history attached and says what it would do", planned)["plan"]
    expect("how much of which volume", sorted(v["claim"] for v in plan["volumes"]) == ["data-db-0", "wal-db-0"], json.dumps(plan))
    within(120, "and leaves it as it was", lambda: attached_nowhere(backing))
    base.recover("awake", "tag:rested")
    base.completed("awake")
    expect("a stopped application is as it was when it was tagged", base.rows() == "230|1|230|30", base.rows())


def clone():
    point = query("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
    query("INSERT INTO orders SELECT generate_series(231, 240)")
    base.recover("clone", point, mode="clone", targetNamespace=CLONE)
    stream = base.completed("clone")["streams"][0]
    expect("the copy was waited for, and it says why", not stream["atOnce"] and "backing class" in stream["copiedFirst"], json.dumps(stream))
    rows = kubectl("-n", CLONE, "exec", "db-0", "-c", "db", "--", "psql", "-qAtU", "postgres", "-c", "SELECT count(*), max(id) FROM orders").strip()
    expect("a clone has the rows of the point", rows == "230|230", rows)
    expect("the original has its own", base.rows() == "240|1|240|40", base.rows())
    kubectl("delete", "namespace", CLONE, "--wait", "--timeout=450s")


def restore_namespace(backing):
    """The pods have to run on a node that takes no new ones but theirs: so the recovery needs another one."""
    theirs = node()
    kubectl("-n", NAMESPACE, "patch", "statefulset", "db", "-p", json.dumps({"spec": {"template": {"spec": {
        "nodeSelector": {"kubernetes.io/hostname": theirs},
        "tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]}}}}))
    kubectl("-n", NAMESPACE, "rollout", "status", "statefulset/db", "--timeout=600s")
    query("INSERT INTO orders SELECT generate_series(241, 250)")
    point = query("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
    query("INSERT INTO orders SELECT generate_series(251, 260)")
    kubectl("create", "namespace", base.OTHER)
    kubectl("delete", "namespace", NAMESPACE, "--wait", "--timeout=450s")
    within(180, "nothing of a deleted namespace is attached", lambda: attached_nowhere(backing))
    expect("what carried it is kept", all(get("persistentvolumeclaim", c, SYSTEM) for c in backing))
    held = set()
    kubectl("cordon", theirs)
    try:
        base.recover("restored", point, namespace=base.OTHER, mode="restore", sourceNamespace=NAMESPACE, targetNamespace=NAMESPACE)

        def done():
            held.update(n for n in attachments() if n)
            now = base.status("restored", base.OTHER)
            if now.get("phase") in ("Failed", "Cancelled"):
                raise Failed(json.dumps(now, indent=1))
            return now.get("phase") == "Completed" and now
        timings = within(300, "the namespace is restored", done)["timings"]
    finally:
        kubectl("uncordon", theirs)
    expect("all rows that were acknowledged before the point are there, and none after", base.rows() == "250|1|250|50", base.rows())
    expect("its pods run where they have to", node() == theirs and set(attached_to(backing)) == {theirs}, f"{node()} {attached_to(backing)}")
    expect("while its history was read elsewhere", held - {theirs}, str(held))
    print(f"restore of backing class: rows_lost=0 opened_ms={timings['openedMs']} data_ms={timings['dataMs']} ready_ms={timings['readyMs']}", flush=True)
    within(90, "it is protected again", seeded)


def main():
    if len(items("nodes")) < 2:
        print("skipped: needs two nodes")
        return 0
    failure = None
    try:
        base.install("--set", f"backingClasses[0].class={BACKING}", "--set", "backingClasses[0].fsType=xfs",
                     "--set", "backingClasses[0].journalSize=512Mi")
        test()
    except (Failed, subprocess.SubprocessError) as e:
        failure = e
        base.show()
        print(kubectl("-n", SYSTEM, "get", "pods,pvc,events", "-o", "wide", check=False), file=sys.stderr)
        print(kubectl("get", "volumeattachments", check=False), file=sys.stderr)
        print(kubectl("-n", SYSTEM, "logs", "daemonset/tidemark-data", "--tail=40", check=False), file=sys.stderr)
    finally:
        for namespace in (CLONE, NAMESPACE, base.OTHER):
            kubectl("delete", "namespace", namespace, "--wait", "--timeout=360s", "--ignore-not-found", check=False)
        kubectl("delete", "protectionpolicy", POLICY, check=False)
        base.uninstall()
    if failure:
        print(f"NOT OK: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
