#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The chart: values that make no sense are refused, the plain manifests are what it makes, and an installed one serves a volume
# (`helm test`), keeps its certificates when it is upgraded, and goes without a trace.
set -euo pipefail
cd "$(dirname "$0")"
source lib/test.sh

chart=../../packaging/helm/tidemark
refused() { ! helm template tidemark $chart "$@" >/dev/null 2>&1; }
expect "lint" helm lint --quiet $chart
expect "a misspelt value is refused" refused --set data.tolerationz=1
expect "an unknown log level is refused" refused --set logLevel=loud
expect "two controllers without a volume are refused" refused --set controller.replicas=2
expect "two controllers with one make sense" not refused --set controller.replicas=2 --set controller.storage.className=any
expect "one Secret without the other is refused" refused --set tls.nodeSecret=mine
expect "the plain manifests are current" ../../packaging/manifests/generate.sh --check
rendered() { helm template tidemark $chart --set tls.nodeSecret=a --set tls.controllerSecret=b "$@" 2>/dev/null; }
same() { diff <(rendered) <(rendered); }
expect "the same values give the same manifests" same
asks() { rendered "$@" | grep uninstall-check >/dev/null; }
expect "uninstalling asks before" asks
expect "but not when it is forced" not asks --set uninstall.force=true
monitored() { rendered "$@" | grep ServiceMonitor >/dev/null; }
expect "a ServiceMonitor is made where it is wanted" monitored --set metrics.serviceMonitor.enabled=true
expect "and not elsewhere" not monitored

archive=${TIDEMARK_IMAGE:-../../${TIDEMARK_BUILD:-build}/tidemark-image.tar}
expect "there is an image (make image)" test -s "$archive"
load() { [[ -n ${TIDEMARK_IMAGE_LOADED:-} ]] || ./cluster.sh import "$archive" 2>/dev/null; }
expect "the nodes have it" load
NAMESPACE=tidemark-system
release() { # VERB OPTION...
    helm "$1" tidemark $chart --namespace $NAMESPACE --set sidecars.registrar=localhost/node-driver-registrar:1 "${@:2}" >/dev/null
}
clean() {
    status=$?
    if ((status)); then
        kubectl -n $NAMESPACE get pods,pvc,events -o wide >&2 || true
        for pod in $(kubectl -n $NAMESPACE get pods -o name); do
            kubectl -n $NAMESPACE logs "$pod" --all-containers --prefix --tail=20 >&2 || true
        done
    fi
    kubectl delete namespace chart-user --timeout=270s >/dev/null 2>&1 || true
    helm uninstall tidemark --namespace $NAMESPACE --no-hooks --wait --timeout 270s >/dev/null 2>&1 || true
    kubectl delete namespace $NAMESPACE --wait --timeout=270s >/dev/null 2>&1 || true
    exit $status
}
trap clean EXIT
all_nodes_have_it() {
    [[ $(kubectl get csinodes -o json | jq '[.items[] | select(any(.spec.drivers[]?; .name == "csi.tidemark.io"))] | length') == \
        $(kubectl get nodes -o name | wc -l) ]]
}
kinds_are_served() { kubectl get protectedapplications -A >/dev/null 2>&1; }
expect "it installs" release install --create-namespace --wait --timeout 360s
expect "its kinds are served" within 30 kinds_are_served
expect "the driver is on every node" within 60 all_nodes_have_it
certificate() { kubectl -n $NAMESPACE get secret tidemark-node-tls -o jsonpath='{.data.tls\.crt}'; }
before=$(certificate)
tested() { helm test tidemark --namespace $NAMESPACE --timeout 360s >/dev/null; }
expect "helm test passes" tested
data_pods() { kubectl -n $NAMESPACE get pods -l app.kubernetes.io/component=data -o jsonpath='{.items[*].metadata.uid}'; }
data_before=$(data_pods)
# Without --wait: that would wait for the data pods, which an upgrade does not replace.
# The sidecars need none of the rights that the history of objects takes: the claim below is provisioned without.
expect "it upgrades" release upgrade --set logLevel=debug --set rbac.captureObjects=false
expect "the node agents are replaced" kubectl -n $NAMESPACE rollout status daemonset/tidemark-node --timeout=270s
expect "the controller is replaced" kubectl -n $NAMESPACE rollout status deployment/tidemark-controller --timeout=270s
expect "the data pods are left alone" test "$(data_pods)" = "$data_before"
expect "with the same certificates" test "$(certificate)" = "$before"
# Claims that use its volumes are in the way, until they are gone.
make_user() {
    kubectl create namespace chart-user &&
        kubectl -n chart-user apply -f - <<'YAML'
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {storageClassName: tidemark, accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: user}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: "localhost/pause:1", volumeMounts: [{name: v, mountPath: /data}]}]
  volumes: [{name: v, persistentVolumeClaim: {claimName: data}}]
YAML
}
refused_uninstall() { ! helm uninstall tidemark --namespace $NAMESPACE --timeout 360s >/dev/null 2>&1; }
expect "a claim uses it" make_user
expect "it is bound" kubectl -n chart-user wait --for=jsonpath='{.status.phase}'=Bound pvc/data --timeout=180s
content() { # SIDECAR
    local text
    text=$(kubectl -n $NAMESPACE logs deployment/tidemark-controller -c "$1") && [[ -n $text ]] && ! grep -iE 'forbidden|deprecated|will be removed|unrecognized' <<<"$text"
}
for sidecar in provisioner attacher resizer; do
    expect "the $sidecar was refused nothing, and has no argument that is going away" content $sidecar
done
expect "it does not uninstall under it" refused_uninstall
says_why() { kubectl -n $NAMESPACE logs job/tidemark-uninstall-check 2>&1 | grep chart-user/data >/dev/null; }
expect "and says why" says_why
remedy() { kubectl -n $NAMESPACE logs job/tidemark-uninstall-check 2>&1 | grep 'kubectl tidemark release' >/dev/null; }
expect "and what to do" remedy
revision=$(helm history tidemark --namespace $NAMESPACE -o json | jq '.[-1].revision')
expect "a rollback keeps it" helm rollback tidemark "$revision" --namespace $NAMESPACE
as_it_was() { helm get values tidemark --namespace $NAMESPACE | grep 'logLevel: debug' >/dev/null; }
expect "as it was" as_it_was
expect "the claim is deleted" kubectl delete namespace chart-user --timeout=270s
no_volumes() { [[ -z $(kubectl get pv -o json | jq -r '.items[] | select(.spec.csi.driver == "csi.tidemark.io") | .metadata.name') ]]; }
expect "and its volume" within 180 no_volumes
expect "it uninstalls" helm uninstall tidemark --namespace $NAMESPACE --wait --timeout 360s
nothing_left() { [[ -z $(kubectl get csidriver,clusterrole,clusterrolebinding,storageclass,mutatingwebhookconfiguration,validatingwebhookconfiguration,validatingadmissionpolicy,validatingadmissionpolicybinding -l app.kubernetes.io/instance=tidemark -o name) ]]; }
expect "nothing of it is left" within 30 nothing_left
