#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A real Kubernetes of two nodes on this machine, for tests and for trying. As root.
#   cluster.sh build              builds what is not in the cache (TIDEMARK_CLUSTER_CACHE, /var/cache/tidemark-cluster)
#   cluster.sh up                 starts what does not run, builds first; prints the KUBECONFIG; FRESH=1 begins with an empty cluster
#   cluster.sh down               stops everything; the next `up` finds the cluster as it was
#   cluster.sh reset              down, and removes the cluster's data
#   cluster.sh status             what runs; exit status 3 when the cluster is down
#   cluster.sh kubectl ARGUMENT...
#   cluster.sh node N COMMAND...  runs a command in the namespaces of node N
#   cluster.sh node-kill N        node N is gone at once, with all that ran on it; `up` boots it again
#   cluster.sh node-down N        node N is shut down in order
#   cluster.sh kubelet-stop N | kubelet-start N
#   cluster.sh import ARCHIVE...  imports image archives on both nodes
#   cluster.sh api-up DIRECTORY PORT, api-down DIRECTORY
#                                 an API server alone, without nodes, on 127.0.0.1:PORT; writes DIRECTORY/kubeconfig
# TIDEMARK_KUBE_VERSION=v1.28.15: all of that release of Kubernetes, its programs in the cache beside the others. A cluster stays at the
# release that it was begun with: FRESH=1 begins another.
# docs/cluster-tests.md has more.
set -uo pipefail
source "$(dirname "$(readlink -f "$0")")/lib/common.sh"
source "$HERE/lib/build.sh"
source "$HERE/lib/images.sh"
source "$HERE/lib/control-plane.sh"
source "$HERE/lib/nodes.sh"

API_PORT=6443
STATE=${TIDEMARK_CLUSTER_STATE:-/var/lib/tidemark-cluster}
PKI=$STATE/pki
RUN=$STATE/run
LOG=$STATE/log
ENTER=(nsenter --net=/run/netns/tidemark-cp)
CONTROL_PLANE=(kube-scheduler kube-controller-manager kube-apiserver etcd)
SYSCTLS=(vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops kernel.keys.root_maxkeys kernel.keys.root_maxbytes)

kubectl() { "$KUBE_BIN/kubectl" "--kubeconfig=$STATE/kubeconfig" "$@"; }

configure() {
    local n server=https://$CONTROL_IP:$API_PORT
    mkdir -p "$STATE" "$RUN" "$LOG"
    control_pki $CONTROL_IP
    make_cert proxy /CN=system:kube-proxy
    make_kubeconfig "$STATE/kubeconfig" admin $server
    make_kubeconfig "$STATE/controller-manager.kubeconfig" controller-manager $server
    make_kubeconfig "$STATE/scheduler.kubeconfig" scheduler $server
    make_kubeconfig "$STATE/proxy.kubeconfig" proxy $server
    for n in "${NODES[@]}"; do
        mkdir -p "$STATE/node$n"
        make_cert "kubelet$n" "/O=system:nodes/CN=system:node:node$n" "DNS:node$n,IP:$(node_ip "$n"),IP:127.0.0.1"
        make_kubeconfig "$STATE/kubelet$n.kubeconfig" "kubelet$n" $server
        containerd_config "$n"
        kubelet_config "$n"
    done
}

# After a restart the API server still says what the node said before: a heartbeat since then is asked for.
node_is_ready() { # N SINCE
    local condition
    condition=$(kubectl get node "node$1" \
        -o jsonpath='{.status.conditions[?(@.type=="Ready")].status} {.status.conditions[?(@.type=="Ready")].lastHeartbeatTime}') || return 1
    [[ $condition == True* && ! ${condition#* } < $2 ]] && [[ -z $(kubectl get node "node$1" -o jsonpath='{.spec.taints[*].key}') ]]
}
dns_is_ready() { [[ $(kubectl -n kube-system get deployment coredns -o jsonpath='{.status.readyReplicas}') -ge 1 ]]; }

control_plane_up() {
    start_etcd 2379
    start_apiserver 2379 --bind-address=0.0.0.0 "--advertise-address=$CONTROL_IP" "--secure-port=$API_PORT" \
        --default-not-ready-toleration-seconds=5 --default-unreachable-toleration-seconds=5
    # A node that says nothing for ten seconds counts as lost: tests wait for it.
    start_controller_manager "$STATE/controller-manager.kubeconfig" "--cluster-cidr=$POD_CIDR" \
        "--service-cluster-ip-range=$SERVICE_CIDR" --node-monitor-grace-period=12s --node-monitor-period=2s
    spawn kube-scheduler "${ENTER[@]}" "$KUBE_BIN/kube-scheduler" "--kubeconfig=$STATE/scheduler.kubeconfig" \
        "--authentication-kubeconfig=$STATE/scheduler.kubeconfig" "--authorization-kubeconfig=$STATE/scheduler.kubeconfig" \
        --bind-address=127.0.0.1 --leader-elect=false
}

up() {
    local started since n
    started=$(now_ms)
    ((EUID == 0)) || die "a cluster needs root"
    need_commands
    [[ ${FRESH:-0} != 1 ]] || reset
    build
    configure
    [[ -s $STATE/sysctl.saved ]] || sysctl "${SYSCTLS[@]}" >"$STATE/sysctl.saved" 2>/dev/null
    network_up
    since=$(date -u +%Y-%m-%dT%H:%M:%SZ)
    control_plane_up
    for n in "${NODES[@]}"; do
        node_cgroup_up "$n"
        node_boot "$n"
        node_daemons_up "$n"
    done
    kubectl apply -f "$HERE/manifests" >/dev/null || die "the cluster's own objects were refused"
    for n in "${NODES[@]}"; do
        until_true 90 "node$n" node_is_ready "$n" "$since"
    done
    until_true 60 "the cluster's DNS" dns_is_ready
    until_true 30 "the default service account" kubectl get serviceaccount default
    say "up after $(seconds_since "$started") s: export KUBECONFIG=$STATE/kubeconfig"
}

need_commands() {
    mkdir -p "$CACHE/log"
    need_packages iptables conntrack iproute2 util-linux openssl curl procps
}

# Loop devices outlive their node. Ours are those of a file that has a path of a node and is not what this machine has there (a
# Tidemark of the machine's own is left alone), and those of a FUSE file system that is mounted nowhere any more.
detach_loops() {
    local device inode number file
    while read -r device inode number file; do
        case $file in
        "$STATE"/*) ;;
        /var/lib/kubelet/* | /var/lib/tidemark/* | /var/lib/tidemark-shared/*)
            [[ $(stat -c %i "$file" 2>/dev/null) != "$inode" ]] || continue
            ;;
        /vol)
            [[ $number == 0:* ]] || continue
            ! cat /proc/[0-9]*/mountinfo 2>/dev/null | awk -v number="$number" '$3 == number { found = 1 } END { exit !found }' || continue
            ;;
        *) continue ;;
        esac
        losetup --detach "$device"
    done < <(losetup --noheadings --output NAME,BACK-INO,BACK-MAJ:MIN,BACK-FILE)
}

down() {
    local started n name directory
    started=$(now_ms)
    for n in "${NODES[@]}"; do
        node_down "$n"
    done
    for name in "${CONTROL_PLANE[@]}"; do
        stop "$name" 15
    done
    if [[ -d $STATE ]]; then
        detach_loops
    fi
    network_down
    cgroups_down
    if [[ -s $STATE/made-directories ]]; then
        while read -r directory; do rmdir "$directory" 2>/dev/null; done <"$STATE/made-directories"
        rm -f "$STATE/made-directories"
    fi
    if [[ -s $STATE/sysctl.saved ]]; then
        sysctl -q -p "$STATE/sysctl.saved" >/dev/null 2>&1
        rm -f "$STATE/sysctl.saved"
    fi
    say "down after $(seconds_since "$started") s"
}

reset() {
    down
    rm -rf --one-file-system "$STATE"
}

status() {
    local name pid found=3
    for name in "${CONTROL_PLANE[@]}" node1 containerd1 kubelet1 proxy1 node2 containerd2 kubelet2 proxy2; do
        if alive "$name"; then
            pid=$(pid_of "$name")
            printf '%-24s pid %-7s rss %5d MiB\n' "$name" "$pid" "$(awk '/VmRSS/ { print int($2 / 1024) }' "/proc/$pid/status")"
        else
            printf '%-24s down\n' "$name"
        fi
    done
    if alive kube-apiserver; then
        kubectl get nodes -o wide
        kubectl get pods -A -o wide
        found=0
    fi
    return $found
}

command=${1:-}
shift
case $command in
build) build "$@" ;;
up) up ;;
down) down ;;
reset) reset ;;
status) status ;;
kubectl) kubectl "$@" ;;
node) in_node "$@" ;;
node-kill) node_kill "$1" ;;
node-down) node_down "$1" ;;
kubelet-stop) stop "kubelet$1" 15 ;;
kubelet-start) node_daemons_up "$1" ;;
import) # a node has another working directory
    for archive; do for n in "${NODES[@]}"; do ctr_in_node "$n" images import --local "$(readlink -f "$archive")" || exit 1; done; done
    ;;
api-up) api_up "$@" ;;
api-down) api_down "$@" ;;
*)
    sed -n '3,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
    ;;
esac
