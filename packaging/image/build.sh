#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Makes the container image of Tidemark, one for all roles, from Debian's packages and the programs of a build directory; no
# registry is asked. As root (mmdebstrap sets owners).
#   packaging/image/build.sh [-b BUILD-DIRECTORY] [-n NAME:TAG] [-o ARCHIVE]
# The archive is what `ctr images import`, `podman load`, `docker load` and `skopeo copy docker-archive:` take.
set -euo pipefail
cd "$(dirname "$0")/../.."

build=build
version=$(awk -F"'" '/^project/ { for (i = 1; i < NF; i++) if ($i ~ /version: $/) { print $(i + 1); exit } }' meson.build)
name=localhost/tidemark:$version
archive=
while getopts b:n:o: option; do
    case $option in
    b) build=$OPTARG ;;
    n) name=$OPTARG ;;
    o) archive=$OPTARG ;;
    *) sed -n '3,7s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
    esac
done
archive=$(readlink -m "${archive:-$build/tidemark-image.tar}")
command -v mmdebstrap >/dev/null || { echo "mmdebstrap is needed: apt-get install mmdebstrap" >&2; exit 1; }
[[ -x $build/src/cli/tidemark ]] || { echo "$build has no programs: run 'make' first" >&2; exit 1; }

prefix=$(meson introspect "$build" --buildoptions | python3 -c 'import json, sys; print(next(o["value"] for o in json.load(sys.stdin) if o["name"] == "prefix"))')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
# Meson takes the path of the libexec programs from the prefix that the build directory is configured with.
DESTDIR=$work/install meson install -C "$build" --no-rebuild --quiet >/dev/null
find "$work/install" -type f -perm -1 -exec strip --strip-unneeded {} +
rm -rf "$work"/install/*/*/share "$work"/install/*/share
# What the programs are linked with, by the packages that own the libraries here.
mapfile -t programs < <(find "$work/install" -type f -perm -1)
mapfile -t packages < <(ldd "${programs[@]}" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u | while read -r library; do
    # dpkg knows a file by the name it was packed with, which on a merged /usr is with or without /usr.
    real=$(readlink -f "$library")
    dpkg-query -S "$real" 2>/dev/null || dpkg-query -S "${real#/usr}"
done | sed 's/:.*//' | sort -u)
# What they run: mkfs, fsck, mount, losetup, growing of file systems; and the time zones of schedules.
packages+=(e2fsprogs xfsprogs mount util-linux ca-certificates tzdata)

mmdebstrap --quiet --mode=root --variant=essential "--include=$(IFS=,; echo "${packages[*]}")" \
    --aptopt='Apt::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-exclude=/usr/share/info/*' \
    --customize-hook="sync-in '$work/install' /" --customize-hook="'$PWD/packaging/image/shrink.sh' \"\$1\"" \
    --customize-hook="chroot \"\$1\" sh -ec '$prefix/bin/tidemark version; mkfs.ext4 -V; mkfs.xfs -V; losetup -V; blkid -V' >/dev/null 2>&1" \
    bookworm "$work/root.tar"
mkdir -p "$(dirname "$archive")"
packaging/image/mkimage.sh "$name" "$work/root.tar" "$archive" "[\"$prefix/bin/tidemark\"]" \
    "[\"PATH=$prefix/bin:/usr/sbin:/usr/bin:/sbin:/bin\",\"LANG=C.UTF-8\"]"
echo "$name: $archive, $(($(stat -c %s "$archive") / 1000000)) MB"
