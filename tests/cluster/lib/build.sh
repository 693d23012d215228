# SPDX-License-Identifier: Apache-2.0
# Part of cluster.sh: the programs, from Go modules at the versions of kubernetes/go.mod, provisioner/go.mod and tools/go.mod, and from Debian.
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
go_build() { go_build_into "$BIN" "$HERE/$1" "$(kubernetes_version)" "-p=2" 5 "$2" "$3"; }

# go_build_into BIN MODULE-DIRECTORY KUBERNETES-VERSION GOFLAGS NICE PROGRAM PACKAGE
# Without -trimpath: with it, what is replaced goes by the version that it is replaced for, and what provisioner/go.mod shares with
# kubernetes/go.mod would be compiled twice.
go_build_into() {
    local bin=$1 module=$2 version=$3 goflags=$4 nice=$5 program=$6 package=$7 flags="-s -w" started path log
    [[ ! -x $bin/$program ]] || return 0
    command -v go >/dev/null || die "Go is needed to build $program: install it, or put its directory on the PATH"
    started=$(now_ms)
    log=$CACHE/log/$program${KUBE_VERSION:+-$KUBE_VERSION}.log
    for path in k8s.io/client-go/pkg/version k8s.io/component-base/version; do
        flags+=" -X $path.gitVersion=$version -X $path.gitMajor=1 -X $path.gitMinor=$(cut -d. -f2 <<<"$version") -X $path.gitTreeState=archive"
    done
    (cd "$module" && CGO_ENABLED=0 GOFLAGS="$goflags -buildvcs=false" nice -n "$nice" \
        go build -tags no_btrfs,no_zfs,no_devmapper,no_aufs -ldflags "$flags" -o "$bin/.$program" "$package") \
        >>"$log" 2>&1 || die "building $program failed: see $log"
    mv "$bin/.$program" "$bin/$program"
    say "built $program in $(seconds_since "$started") s, $(($(stat -c %s "$bin/$program") / 1000000)) MB"
}

# Another release: a module is written that has nothing but it, each of its staging modules replaced by the published one. Its sums are
# not pinned here; Go checks them by its checksum database.
other_module() { # DIRECTORY
    local mod staged
    mkdir -p "$1"
    [[ ! -s $1/go.mod ]] || return 0
    mod=$(cd "$1" && GOFLAGS=-mod=mod go mod download -json "k8s.io/kubernetes@$KUBE_VERSION" 2>>"$CACHE/log/modules-$KUBE_VERSION.log" |
        sed -n 's/^\t"GoMod": "\(.*\)",$/\1/p')
    [[ -s $mod ]] || die "there is no Kubernetes $KUBE_VERSION (TIDEMARK_KUBE_VERSION), or the Go module proxy cannot be reached: see $CACHE/log/modules-$KUBE_VERSION.log"
    staged=$(awk '$1 ~ /^k8s\.io\// && ($2 == "v0.0.0" || $3 ~ /^\.\/staging\//) { print $1 }' "$mod" | sort -u)
    {
        echo "module tidemark.io/tests/cluster/other"
        echo "go $(go env GOVERSION | sed 's/^go//; s/-.*//')"
        echo "require k8s.io/kubernetes $KUBE_VERSION"
        # Older ones read the maps of the newest Go wrongly.
        echo "require github.com/modern-go/reflect2 v1.0.3-0.20250322232337-35a7c28c31ee"
        for mod in $staged; do
            echo "replace $mod => $mod v0.${KUBE_VERSION#v1.}"
        done
    } >"$1/go.mod.new"
    mv "$1/go.mod.new" "$1/go.mod"
}

# go_build_kubernetes PROGRAM...: of the release that is asked for.
go_build_kubernetes() {
    local module=$CACHE/versions/$KUBE_VERSION/module program
    for program; do
        if [[ -z $KUBE_VERSION ]]; then
            go_build kubernetes "$program" "k8s.io/kubernetes/cmd/$program"
            continue
        fi
        mkdir -p "$KUBE_BIN"
        [[ -x $KUBE_BIN/$program ]] || other_module "$module"
        go_build_into "$KUBE_BIN" "$module" "$KUBE_VERSION" "-p=2 -mod=mod" 15 "$program" "k8s.io/kubernetes/cmd/$program"
    done
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
    local started
    started=$(now_ms)
    mkdir -p "$BIN" "$IMAGES" "$CACHE/log"
    exec 9>"$CACHE/.lock"
    flock 9 # two builds at once would only halve the cores
    touch "$CACHE/.building"
    trap 'rm -f "$CACHE/.building"' EXIT
    go_build kubernetes etcd go.etcd.io/etcd/server/v3
    go_build_kubernetes kube-apiserver kubectl kube-controller-manager
    if [[ ${1:-} != api ]]; then
        build_the_rest
    fi
    rm -f "$CACHE/.building"
    exec 9>&- # the daemons that `up` starts must not inherit the lock
    say "everything${KUBE_VERSION:+ of Kubernetes $KUBE_VERSION} is built after $(seconds_since "$started") s: programs $(du -sh "$KUBE_BIN" | cut -f1), images $(du -sh "$IMAGES" | cut -f1)"
}

# The one program here that is the project's own, and changes: a cache of before has it built anew, with the image that holds it.
forget_old_storage() {
    local sum
    sum=$(sha256sum <"$HERE/tools/csi-shared/main.go")
    [[ $(cat "$CACHE/csi-shared.sum" 2>/dev/null) == "$sum" ]] || rm -f "$BIN/csi-shared" "$IMAGES"/toolbox.{tar,name}
    echo "$sum" >"$CACHE/csi-shared.sum"
}

# What is built from upstream's module carries its version in its image's name: a cache of another version, or of before, has it built anew.
forget_other_versions() {
    local program
    for program in csi-provisioner csi-attacher csi-resizer; do
        [[ ! -s $IMAGES/$program.name || $(cat "$IMAGES/$program.name") == "$(sidecar_image "$program")" ]] || rm -f "$BIN/$program" "$IMAGES/$program".{tar,name}
    done
}

build_the_rest() {
    local program
    forget_old_storage
    forget_other_versions
    go_build tools csi-sanity github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity
    go_build_kubernetes kube-scheduler kubelet kube-proxy
    go_build provisioner csi-provisioner github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner
    for program in containerd containerd-shim-runc-v2 ctr; do
        go_build tools "$program" "github.com/containerd/containerd/v2/cmd/$program"
    done
    go_build tools coredns ./coredns
    go_build tools helm helm.sh/helm/v4/cmd/helm
    go_build tools csi-attacher github.com/kubernetes-csi/external-attacher/v4/cmd/csi-attacher
    go_build tools csi-resizer github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer
    for program in node-driver-registrar csi-shared; do
        go_build tools "$program" "./$program"
    done
    build_from_debian
    build_images
}
