#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Makes an image archive of one layer, which `ctr images import`, `podman load`, `docker load` and `skopeo` take.
#   mkimage.sh NAME ROOT.tar OUT.tar [ENTRYPOINT-JSON] [ENVIRONMENT-JSON]
# The same input gives the same image: no time is recorded.
set -euo pipefail

name=$1 layer=$2 out=$3 entrypoint=${4:-null}
environment=${5:-'["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]'}
case $(uname -m) in
x86_64) architecture=amd64 ;;
aarch64) architecture=arm64 ;;
*) architecture=$(uname -m) ;;
esac
work=$(mktemp -d "$(dirname "$out")/.image.XXXXXX")
trap 'rm -rf "$work"' EXIT
cp --reflink=auto "$layer" "$work/layer.tar"
digest=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
cat >"$work/config.json" <<EOF
{"architecture":"$architecture","os":"linux","created":"1970-01-01T00:00:00Z","config":{"Entrypoint":$entrypoint,"Env":$environment},"rootfs":{"type":"layers","diff_ids":["sha256:$digest"]},"history":[{"created":"1970-01-01T00:00:00Z","created_by":"mkimage.sh"}]}
EOF
echo "[{\"Config\":\"config.json\",\"RepoTags\":[\"$name\"],\"Layers\":[\"layer.tar\"]}]" >"$work/manifest.json"
tar -C "$work" --owner=0 --group=0 --mtime=@0 -cf "$out.new" manifest.json config.json layer.tar
mv "$out.new" "$out"
