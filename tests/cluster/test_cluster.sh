#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The cluster itself: what the other tests take for granted. Two nodes, pods that reach each other by address, service and
# name, exec, logs, tokens with rights, and foreign storage whose raw block volume moves from node to node.
set -euo pipefail
cd "$(dirname "$0")"
source lib/test.sh

namespace_for_test cluster

quoted() { jq -n --arg text "$1" '$text'; }

# pod NAME NODE COMMAND: a pod of the toolbox on a node.
pod() {
    kubectl apply -f - >/dev/null <<EOF
apiVersion: v1
kind: Pod
metadata: {name: $1, namespace: $NAMESPACE, labels: {app: $1}}
spec:
  nodeName: $2
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: localhost/toolbox:1, imagePullPolicy: IfNotPresent, command: [sh, -c, $(quoted "$3")]}
EOF
}

read -r node1 node2 _ <<<"$(kubectl get nodes -o jsonpath='{.items[*].metadata.name}')"
expect "there are two nodes" test -n "$node2"

pod server "$node1" 'echo listening; while true; do printf "HTTP/1.0 200 OK\r\n\r\nhello\n" | nc -l -p 8080 -q 1; done'
pod client "$node2" 'sleep 3600'
kubectl -n "$NAMESPACE" expose pod server --port=80 --target-port=8080 >/dev/null
kubectl -n "$NAMESPACE" wait --for=condition=Ready pod/server pod/client --timeout=180s >/dev/null
address=$(kubectl -n "$NAMESPACE" get pod server -o jsonpath='{.status.podIP}')

in_client() { kubectl -n "$NAMESPACE" exec client -- "$@"; }
fetched() { [[ $(in_client curl -fs --max-time 5 "$1") == hello ]]; }
expect "exec runs in the pod" test "$(in_client hostname)" = client
expect "logs are served" grep -q listening <(kubectl -n "$NAMESPACE" logs server)
expect "a pod reaches a pod on the other node" within 20 fetched "http://$address:8080"
service=$(kubectl -n "$NAMESPACE" get service server -o jsonpath='{.spec.clusterIP}')
expect "a pod reaches the service's address" within 20 fetched "http://$service"
expect "a pod reaches the service by name" within 20 fetched "http://server.$NAMESPACE.svc.cluster.local"

as_itself() { in_client sh -c 'curl -s -o /dev/null -w "%{http_code}" --cacert $1/ca.crt -H "Authorization: Bearer $(cat $1/token)" https://kubernetes.default.svc$2' \
    sh /var/run/secrets/kubernetes.io/serviceaccount "$1"; }
expect "a service account may not read secrets" test "$(as_itself "/api/v1/namespaces/$NAMESPACE/secrets")" = 403
expect "and the API server knows it" test "$(as_itself /version)" = 200
expect "no traffic leaves the cluster" not in_client curl -s --max-time 2 http://192.0.2.1

# Foreign storage: a raw block volume is written on one node and read on the other.
if kubectl get storageclass shared >/dev/null 2>&1; then
    kubectl apply -f - >/dev/null <<EOF
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: raw, namespace: $NAMESPACE}
spec: {storageClassName: shared, volumeMode: Block, accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
EOF
    on_node() { # NAME NODE COMMAND
        kubectl apply -f - >/dev/null <<EOF
apiVersion: v1
kind: Pod
metadata: {name: $1, namespace: $NAMESPACE}
spec:
  nodeSelector: {kubernetes.io/hostname: $2}
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: localhost/toolbox:1, command: [sh, -c, $(quoted "$3")], volumeDevices: [{name: raw, devicePath: /dev/raw0}]}
  volumes: [{name: raw, persistentVolumeClaim: {claimName: raw}}]
EOF
        kubectl -n "$NAMESPACE" wait --for=jsonpath='{.status.phase}'=Succeeded "pod/$1" --timeout=270s >/dev/null
    }
    expect "a raw block volume is written on one node" on_node writer "$node1" "echo moved | dd of=/dev/raw0 bs=4096 conv=sync,fsync"
    kubectl -n "$NAMESPACE" delete pod writer >/dev/null
    expect "it is attached to the other node" on_node reader "$node2" "dd if=/dev/raw0 bs=4096 count=1 | grep -a moved"
    kubectl -n "$NAMESPACE" delete pod reader >/dev/null
    kubectl -n "$NAMESPACE" delete pvc raw >/dev/null
    none_left() { [[ -z $(kubectl get pv -o jsonpath="{.items[?(@.spec.claimRef.namespace=='$NAMESPACE')].metadata.name}") ]]; }
    expect "its volume goes with the claim" within 60 none_left
fi
