# SPDX-License-Identifier: Apache-2.0
# Part of cluster.sh: the network of the cluster and its nodes.
#
# A node is what `unshare` makes of this machine: namespaces of its own for network, mounts, processes, host name and IPC, and
# a cgroup. It has the paths that a node has (/var/lib/kubelet, /run, /var/lib/tidemark), each a directory below its own.
# Killing its first process is the loss of the node; nothing of it outlives that but loop devices.
#
#   netns tidemark-cp   bridge 10.250.0.10/24: etcd, API server, controllers; no route out of here
#   netns tidemark-n1   10.250.0.1, pods 10.244.1.0/24
#   netns tidemark-n2   10.250.0.2, pods 10.244.2.0/24
#   this machine        10.250.0.254, so that kubectl and tests reach the API server

NODES=(1 2)
CONTROL_IP=10.250.0.10
HOST_IP=10.250.0.254
HOST_LINK=tidemark-k8s
POD_CIDR=10.244.0.0/16
# What a node has of its own; the names are paths of the machine that are mounted over inside the node.
# Two kubelets in one /var/log/pods would each remove the logs of the other's pods.
NODE_DIRECTORIES=(/var/lib/kubelet /var/log/pods /var/log/containers /var/lib/containerd /var/lib/tidemark /var/lib/tidemark-shared)

node_ip() { echo "10.250.0.$1"; }
node_pods() { echo "10.244.$1.0/24"; }
in_control() { nsenter --net=/run/netns/tidemark-cp "$@"; } # not `ip netns exec`: that mounts another /sys

# in_node N COMMAND...: runs it in all namespaces of the node.
in_node() {
    local pid
    pid=$(pid_of "node$1") || die "node$1 does not run"
    shift
    nsenter --target "$pid" --mount --net --pid --uts --ipc "$@"
}

link_to_bridge() { # NETNS DEVICE ADDRESS BRIDGE-PORT
    ip netns exec "$1" ip link show "$2" >/dev/null 2>&1 && return 0
    ip link add "$4" type veth peer name "$2" netns "$1" && ip link set "$4" netns tidemark-cp &&
        nsenter --net="/run/netns/$1" ip addr add "$3/24" dev "$2" && nsenter --net="/run/netns/$1" ip link set "$2" up &&
        in_control ip link set "$4" master bridge up
}

network_up() {
    local n m
    if [[ ! -e /run/netns/tidemark-cp ]]; then
        ip netns add tidemark-cp && in_control ip link set lo up && in_control ip link add bridge type bridge &&
            in_control ip addr add $CONTROL_IP/24 dev bridge && in_control ip link set bridge up || die "network of the control plane"
        ip link add $HOST_LINK type veth peer name host netns tidemark-cp && ip addr add $HOST_IP/24 dev $HOST_LINK &&
            ip link set $HOST_LINK up && in_control ip link set host master bridge up || die "link to the control plane"
    fi
    for n in "${NODES[@]}"; do
        [[ -e /run/netns/tidemark-n$n ]] || ip netns add "tidemark-n$n" || die "network of node$n"
        link_to_bridge "tidemark-n$n" eth0 "$(node_ip "$n")" "node$n" || die "link of node$n"
        nsenter --net="/run/netns/tidemark-n$n" sh -c "
            ip link set lo up
            ip route replace $SERVICE_CIDR dev eth0
            for m in ${NODES[*]}; do [ \$m = $n ] || ip route replace 10.244.\$m.0/24 via 10.250.0.\$m; done
            sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
            sysctl -qw net.bridge.bridge-nf-call-iptables=1 2>/dev/null; true" || die "routes of node$n"
        # The API server calls webhooks and aggregated APIs in pods.
        in_control ip route replace "$(node_pods "$n")" via "$(node_ip "$n")"
    done
}

network_down() {
    local n
    for n in "${NODES[@]}"; do
        [[ ! -e /run/netns/tidemark-n$n ]] || ip netns del "tidemark-n$n"
    done
    [[ ! -e /run/netns/tidemark-cp ]] || ip netns del tidemark-cp
    ip link del $HOST_LINK 2>/dev/null
    return 0
}

# The hierarchies in which a node has a cgroup: all of cgroup v1, or the only one of v2.
cgroup_hierarchies() {
    if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
        echo /sys/fs/cgroup
    else
        awk '$3 == "cgroup" { print $2 }' /proc/self/mounts
    fi
}
node_cgroup_up() { # N
    local root
    for root in $(cgroup_hierarchies); do
        if [[ $root == /sys/fs/cgroup && -e $root/cgroup.subtree_control ]]; then
            mkdir -p "$root/tidemark-test"
            echo "+cpu +cpuset +memory +pids +io" >"$root/cgroup.subtree_control" 2>/dev/null
            echo "+cpu +cpuset +memory +pids +io" >"$root/tidemark-test/cgroup.subtree_control" 2>/dev/null
        fi
        mkdir -p "$root/tidemark-test/node$1/system"
        # Two whole nodes are no less than what else runs here: a cgroup that is given nothing has the share of one process.
        [[ ! -e $root/tidemark-test/cpu.shares ]] || echo 8192 >"$root/tidemark-test/cpu.shares"
        [[ ! -e $root/tidemark-test/cpu.weight ]] || echo 800 >"$root/tidemark-test/cpu.weight"
        # cgroup v1: a new cpuset is empty and takes no process
        if [[ -e $root/cpuset.cpus && ! -e $root/cgroup.controllers ]]; then
            local directory
            for directory in "$root/tidemark-test" "$root/tidemark-test/node$1" "$root/tidemark-test/node$1/system"; do
                cat "$root/cpuset.cpus" >"$directory/cpuset.cpus"
                cat "$root/cpuset.mems" >"$directory/cpuset.mems"
            done
        fi
    done
}
cgroups_down() {
    local root
    # runc makes groups in v2's hierarchy too where both are mounted.
    for root in $(awk '$3 ~ /^cgroup2?$/ { print $2 }' /proc/self/mounts); do
        [[ ! -d $root/tidemark-test ]] || find "$root/tidemark-test" -depth -type d -exec rmdir {} + 2>/dev/null
    done
    return 0
}

containerd_config() { # N
    cat >"$STATE/node$1/containerd.toml" <<EOF
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp", "io.containerd.nri.v1.nri"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "localhost/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true # lowering it needs CAP_SYS_RESOURCE, which a machine may lack
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["$BIN/cni"]
    conf_dir = "$STATE/node$1/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        BinaryName = "$BIN/runc"
        SystemdCgroup = false
EOF
    mkdir -p "$STATE/node$1/cni"
    cat >"$STATE/node$1/cni/10-bridge.conflist" <<EOF
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam", "ranges": [[{"subnet": "$(node_pods "$1")"}]],
            "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
EOF
}

kubelet_config() { # N
    # A resolver for pods with dnsPolicy Default: none answers, since there is nothing outside.
    printf 'nameserver %s\n' "$(node_ip "$1")" >"$STATE/node$1/resolv.conf"
    cat >"$STATE/node$1/kubelet.yaml" <<EOF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $PKI/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $PKI/kubelet$1.crt
tlsPrivateKeyFile: $PKI/kubelet$1.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /tidemark-test/node$1
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
readOnlyPort: 0
registerNode: true
clusterDomain: cluster.local
clusterDNS: [$SERVICE_DNS]
resolvConf: $STATE/node$1/resolv.conf
volumePluginDir: /var/lib/kubelet/flexvolume
nodeStatusUpdateFrequency: 5s
syncFrequency: 10s
shutdownGracePeriod: 0s
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
protectKernelDefaults: false
EOF
    cat >"$STATE/node$1/proxy.yaml" <<EOF
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: ${PROXY_MODE:-iptables}
clientConnection: {kubeconfig: $STATE/proxy.kubeconfig}
clusterCIDR: $POD_CIDR
hostnameOverride: node$1
bindAddress: $(node_ip "$1")
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
oomScoreAdj: 0
conntrack: {maxPerCore: 0, min: 0, tcpCloseWaitTimeout: 0s, tcpEstablishedTimeout: 0s}
EOF
}

# node_boot N: the node's namespaces; its first process is `pause`.
node_boot() {
    local n=$1 directory
    alive "node$n" && return 0
    rm -f "$RUN/containerd$n.pid" "$RUN/kubelet$n.pid" "$RUN/proxy$n.pid"
    for directory in "${NODE_DIRECTORIES[@]}"; do
        # Only an empty directory that was made for this is removed by `down`.
        [[ -d $directory ]] || { mkdir -p "$directory" && echo "$directory" >>"$STATE/made-directories"; }
        mkdir -p "$STATE/node$n/root$directory"
    done
    # /var/lib/tidemark-shared is a disk array: the same on all nodes.
    mkdir -p "$STATE/shared"
    setsid unshare --mount --propagation private --pid --fork --uts --ipc --mount-proc nsenter --net="/run/netns/tidemark-n$n" \
        bash -c '
        set -e
        n=$1 state=$2 pause=$3; shift 3
        # What a test of this machine has mounted now: the copy would keep it alive here after its end there.
        while read -r _ _ number _ point _; do
            case $number:$point in
            7:*:/tmp/* | 7:*:/var/tmp/* | 7:*:/dev/shm/* | 7:*:/var/lib/kubelet/* | 0:*:/tmp/* | 0:*:/var/tmp/* | 0:*:/dev/shm/* | 0:*:/var/lib/kubelet/*)
                umount --lazy "$(printf %b "$point")" 2>/dev/null || true ;;
            esac
        done </proc/self/mountinfo
        hostname "node$n"
        mount -t tmpfs -o mode=755 tmpfs /run
        mkdir -p /run/lock /run/containerd
        for directory; do
            source=$state/node$n/root$directory
            [ "$directory" != /var/lib/tidemark-shared ] || source=$state/shared
            mount --bind "$source" "$directory"
            # Bidirectional propagation needs a shared mount
            mount --make-rshared "$directory"
        done
        exec "$pause"' node "$n" "$STATE" "$BIN/pause" "${NODE_DIRECTORIES[@]}" >>"$LOG/node$n.log" 2>&1 </dev/null &
    local outer=$! pid=
    disown
    until [[ -n $pid && $(cat "/proc/$pid/comm" 2>/dev/null) == pause ]]; do
        pid=$(ps -o pid= --ppid "$outer" | tr -d ' ')
        kill -0 "$outer" 2>/dev/null || die "node$n: see $LOG/node$n.log"
        sleep 0.02
    done
    remember "node$n" "$pid"
}

# spawn_in_node N NAME COMMAND...: a daemon of the node, in the cgroup of its system.
spawn_in_node() {
    local n=$1 name=$2 pid='' outer groups node comm=
    shift 2
    alive "$name" && return 0
    node=$(pid_of "node$n") # not below: what finds it out would be a child of `outer` too
    groups=$(cgroup_hierarchies | sed "s|\$|/tidemark-test/node$n/system/cgroup.procs|" | tr '\n' ' ')
    setsid nsenter --target "$node" --mount --net --pid --uts --ipc bash -c '
        for file in $1; do
            echo $$ >"$file"
        done
        shift
        exec "$@"' daemon "$groups" "$@" >>"$LOG/$name.log" 2>&1 </dev/null &
    outer=$!
    disown
    # nsenter forks to enter the process namespace: the daemon is its child.
    until [[ -n $comm && $comm != bash && $comm != nsenter ]]; do
        pid=$(ps -o pid= --ppid "$outer" | tr -d ' ')
        comm=$(cat "/proc/${pid:-0}/comm" 2>/dev/null)
        [[ -n $pid ]] || kill -0 "$outer" 2>/dev/null || die "$name: see $LOG/$name.log"
        sleep 0.02
    done
    remember "$name" "$pid"
}

node_daemons_up() { # N
    local n=$1
    spawn_in_node "$n" "containerd$n" env "PATH=$BIN:$PATH" "$BIN/containerd" --config "$STATE/node$n/containerd.toml" --log-level=warn
    until_true 30 "containerd of node$n" ctr_in_node "$n" version
    import_images "$n"
    spawn_in_node "$n" "kubelet$n" env "PATH=$BIN:$PATH" "$KUBE_BIN/kubelet" "--config=$STATE/node$n/kubelet.yaml" \
        "--kubeconfig=$STATE/kubelet$n.kubeconfig" --root-dir=/var/lib/kubelet "--cert-dir=$STATE/node$n" \
        "--hostname-override=node$n" "--node-ip=$(node_ip "$n")" "--node-labels=topology.kubernetes.io/zone=zone$n"
    spawn_in_node "$n" "proxy$n" env "PATH=$BIN:$PATH" "$KUBE_BIN/kube-proxy" "--config=$STATE/node$n/proxy.yaml"
}

ctr_in_node() { # N ARGUMENT...
    local n=$1
    shift
    in_node "$n" "$BIN/ctr" --address /run/containerd/containerd.sock --namespace k8s.io "$@"
}

import_images() { # N
    local have archive name
    have=$(ctr_in_node "$1" images ls -q)
    for archive in "$IMAGES"/*.tar; do
        name=$(<"${archive%.tar}.name")
        grep -qxF "$name" <<<"$have" && continue
        ctr_in_node "$1" images import --local "$archive" >>"$LOG/import.log" 2>&1 || die "importing $archive: see $LOG/import.log"
    done
}

# A node that is stopped in order: its daemons, then everything. What the pods had mounted goes with the mount namespace.
node_down() { # N
    local n=$1 name
    for name in "proxy$n" "kubelet$n" "containerd$n"; do
        stop "$name" 15
    done
    alive "node$n" && stop "node$n" 15
    rm -f "$RUN/node$n.pid"
}

# node_kill N: the node is gone at once, as when its power fails.
node_kill() {
    kill -KILL "$(pid_of "node$1")"
    while alive "node$1"; do sleep 0.05; done
}
