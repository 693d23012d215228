# SPDX-License-Identifier: Apache-2.0
# Part of cluster.sh: the images that the nodes get; there is no registry. IMAGES/X.tar is an archive, IMAGES/X.name its name.

MKIMAGE=$HERE/../../packaging/image/mkimage.sh

# What is built from upstream's module has upstream's name, so that a chart's defaults work.
sidecar_image() { # PROGRAM
    echo "registry.k8s.io/sig-storage/$1:$(cat "$HERE"/{provisioner,tools}/go.mod |
        awk -v module="/external-${1#csi-}/" '{ sub(/^require /, "") } index($1, module) { print $2; exit }')"
}

image_exists() { [[ -s $IMAGES/$1.tar && -s $IMAGES/$1.name ]]; }
image_done() { # FILE NAME ROOT.tar [ENTRYPOINT] [ENVIRONMENT]
    local file=$1 name=$2 root=$3
    shift 3
    "$MKIMAGE" "$name" "$root" "$IMAGES/$file.tar" "$@" || die "image $name"
    echo "$name" >"$IMAGES/$file.name"
}

# program_image PROGRAM NAME: an image of one static program.
program_image() {
    local program=$1 name=$2 work
    image_exists "$program" && return 0
    work=$(mktemp -d "$IMAGES/.work.XXXXXX")
    mkdir -p "$work/root"
    cp "$BIN/$program" "$work/root/"
    tar -C "$work/root" --owner=0 --group=0 --mtime=@0 --sort=name -cf "$work/root.tar" .
    image_done "$program" "$name" "$work/root.tar" "[\"/$program\"]"
    rm -rf "$work"
}

# debian_image FILE NAME PACKAGES ENVIRONMENT [mmdebstrap option...]: from Debian's packages.
debian_image() {
    local file=$1 name=$2 packages=$3 environment=$4 work started
    shift 4
    image_exists "$file" && return 0
    need_packages mmdebstrap
    started=$(now_ms)
    work=$(mktemp -d "$IMAGES/.work.XXXXXX")
    chmod 755 "$work"
    nice -n 5 mmdebstrap --quiet --mode=root --variant=essential "--include=$packages" --aptopt='Apt::Install-Recommends "false"' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' "$@" bookworm "$work/root.tar" >>"$CACHE/log/$file.log" 2>&1 ||
        die "image $name: see $CACHE/log/$file.log"
    image_done "$file" "$name" "$work/root.tar" null "$environment"
    rm -rf "$work"
    say "made the image $name in $(seconds_since "$started") s, $(($(stat -c %s "$IMAGES/$file.tar") / 1000000)) MB"
}

build_images() {
    local program
    mkdir -p "$IMAGES"
    program_image pause localhost/pause:1
    program_image coredns localhost/coredns:1
    for program in csi-provisioner csi-attacher csi-resizer; do
        program_image "$program" "$(sidecar_image "$program")"
    done
    program_image node-driver-registrar localhost/node-driver-registrar:1
    debian_image toolbox localhost/toolbox:1 \
        e2fsprogs,xfsprogs,util-linux,mount,procps,iproute2,curl,netcat-openbsd,fio,libc-bin,ca-certificates \
        '["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]' --customize-hook="copy-in '$BIN/csi-shared' /usr/bin" # it needs mkfs, losetup, mount
    debian_image postgres localhost/postgres:15 postgresql-15 \
        '["PATH=/usr/lib/postgresql/15/bin:/usr/sbin:/usr/bin:/sbin:/bin","PGDATA=/data/pg","LANG=C.UTF-8"]' \
        --dpkgopt='path-exclude=*/libLLVM*' --dpkgopt='path-exclude=*/postgresql/15/lib/bitcode/*' \
        --customize-hook='rm -rf "$1"/var/lib/postgresql/15'
}
