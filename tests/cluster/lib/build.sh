# SPDX-License-Identifier: Apache-2.0
# Part of cluster.sh: the programs, from Go modules at the versions of kubernetes/go.mod and tools/go.mod, and from Debian.
# Each is built when it is not in the cache; a changed go.mod or source makes a new cache necessary: remove its program.

# The version that Kubernetes' programs report is that of the module.
kubernetes_version() { awk '$1 == "require" && $2 == "k8s.io/kubernetes" { print $3 } $1 == "k8s.io/kubernetes" { print $2 }' "$HERE/kubernetes/go.mod" | head -n 1; }

need_packages() { # PACKAGE...
    local package missing=()
    for package; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    say "installing ${missing[*]}"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=300 "${missing[@]}" \
        >>"$CACHE/log/apt.log" 2>&1 || die "apt-get install ${missing[*]} failed: see $CACHE/log/apt.log; is 'apt-get update' needed?"
}

# go_build MODULE-DIRECTORY PROGRAM PACKAGE
go_build() {
    local module=$1 program=$2 package=$3 flags="-s -w" version started path
    [[ ! -x $BIN/$program ]] || return 0
    command -v go >/dev/null || die "Go is needed to build $program: install it, or put its directory on the PATH"
    started=$(now_ms)
    version=$(kubernetes_version)
    for path in k8s.io/client-go/pkg/version k8s.io/component-base/version; do
        flags+=" -X $path.gitVersion=$version -X $path.gitMajor=1 -X $path.gitMinor=$(cut -d. -f2 <<<"$version") -X $path.gitTreeState=archive"
    done
    (cd "$HERE/$module" && CGO_ENABLED=0 GOFLAGS="-p=2 -trimpath -buildvcs=false" nice -n 5 \
        go build -tags no_btrfs,no_zfs,no_devmapper,no_aufs -ldflags "$flags" -o "$BIN/.$program" "$package") \
        >>"$CACHE/log/$program.log" 2>&1 || die "building $program failed: see $CACHE/log/$program.log"
    mv "$BIN/.$program" "$BIN/$program"
    say "built $program in $(seconds_since "$started") s, $(($(stat -c %s "$BIN/$program") / 1000000)) MB"
}

# Programs from Debian's packages, unpacked and not installed: no service is started, nothing of the host's is replaced.
build_from_debian() {
    local work package
    if [[ ! -x $BIN/runc || ! -x $BIN/cni/bridge ]]; then
        need_packages libseccomp2
        work=$(mktemp -d)
        chmod 755 "$work"
        (cd "$work" && apt-get download runc containernetworking-plugins) >>"$CACHE/log/apt.log" 2>&1 ||
            die "apt-get download runc containernetworking-plugins failed: see $CACHE/log/apt.log"
        for package in "$work"/*.deb; do
            dpkg-deb -x "$package" "$work/root" || die "unpacking $package failed"
        done
        mkdir -p "$BIN/cni"
        cp "$work"/root/usr/lib/cni/* "$BIN/cni/"
        cp "$work/root/usr/sbin/runc" "$BIN/runc"
        rm -rf "$work"
    fi
    # The first process of a node and of every pod.
    if [[ ! -x $BIN/pause ]]; then
        need_packages gcc libc6-dev
        gcc -O2 -static -s -o "$BIN/.pause" "$HERE/images/pause.c" || die "compiling pause.c failed"
        mv "$BIN/.pause" "$BIN/pause"
    fi
}

# build [api]: with "api" only what `api-up` needs.
build() {
    local started program
    started=$(now_ms)
    mkdir -p "$BIN" "$IMAGES" "$CACHE/log"
    exec 9>"$CACHE/.lock"
    flock 9 # two builds at once would only halve the cores
    touch "$CACHE/.building"
    trap 'rm -f "$CACHE/.building"' EXIT
    go_build kubernetes etcd go.etcd.io/etcd/server/v3
    for program in kube-apiserver kubectl kube-controller-manager; do
        go_build kubernetes "$program" "k8s.io/kubernetes/cmd/$program"
    done
    if [[ ${1:-} != api ]]; then
        build_the_rest
    fi
    rm -f "$CACHE/.building"
    exec 9>&- # the daemons that `up` starts must not inherit the lock
    say "everything is built after $(seconds_since "$started") s: programs $(du -sh "$BIN" | cut -f1), images $(du -sh "$IMAGES" | cut -f1)"
}

build_the_rest() {
    local program
    go_build tools csi-sanity github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity
    for program in kube-scheduler kubelet kube-proxy; do
        go_build kubernetes "$program" "k8s.io/kubernetes/cmd/$program"
    done
    for program in containerd containerd-shim-runc-v2 ctr; do
        go_build tools "$program" "github.com/containerd/containerd/v2/cmd/$program"
    done
    go_build tools coredns ./coredns
    go_build tools helm helm.sh/helm/v4/cmd/helm
    go_build tools csi-attacher github.com/kubernetes-csi/external-attacher/v4/cmd/csi-attacher
    go_build tools csi-resizer github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer
    for program in csi-provisioner node-driver-registrar csi-shared; do
        go_build tools "$program" "./$program"
    done
    build_from_debian
    build_images
}
