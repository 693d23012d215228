#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Fetches Debian's cloud kernel of bookworm-backports (6.12: ublk_drv, nbd, dm-log-writes as modules) and unpacks it into
# TIDEMARK_VM_CACHE; nothing is installed, and the machine's list of package sources stays as it is. Prints the directory,
# which holds boot/vmlinuz-* and lib/modules/*. Exit status 77: it cannot be fetched here.
set -euo pipefail

cache=${TIDEMARK_VM_CACHE:-/var/cache/tidemark-vm}
mirror=${TIDEMARK_VM_MIRROR:-http://deb.debian.org/debian}

find_kernel() { compgen -G "$cache/kernel/boot/vmlinuz-*" >/dev/null; }
if ! find_kernel; then
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock 9
fi
if ! find_kernel; then
    work=$(mktemp -d "$cache/fetch.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    chmod 755 "$work"
    mkdir -p "$work"/{lists/partial,cache/archives/partial,parts,debs}
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm-backports main" >"$work/sources"
    options=(-q -o "Dir::Etc::SourceList=$work/sources" -o "Dir::Etc::SourceParts=$work/parts"
        -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root
        -o APT::Get::List-Cleanup=0 -o Acquire::Retries=3 -o Acquire::http::Timeout=60)
    apt-get "${options[@]}" update >&2 || { echo "cannot read the package list of bookworm-backports" >&2; exit 77; }
    image=$(apt-cache "${options[@]}" depends linux-image-cloud-amd64 |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*-cloud-amd64\)$/\1/p' | head -n 1)
    [[ -n $image ]] || { echo "bookworm-backports has no linux-image-cloud-amd64" >&2; exit 77; }
    (cd "$work/debs" && apt-get "${options[@]}" download "$image") >&2 ||
        { echo "cannot fetch $image" >&2; exit 77; }
    dpkg-deb -x "$work"/debs/linux-image-*.deb "$work/kernel"
    [[ -e $work/kernel/lib ]] || ln -s usr/lib "$work/kernel/lib"
    mv "$work/kernel" "$cache/kernel"
fi
echo "$cache/kernel"
