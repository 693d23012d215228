#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Prints the Secrets by which controller and nodes know each other: a new CA and a certificate for either.
#   certificates.sh NAMESPACE | kubectl apply -f -
set -euo pipefail

namespace=${1:?usage: certificates.sh NAMESPACE}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }
key ca
openssl req -x509 -new -key ca.key -sha256 -days 3650 -subj /CN=tidemark -addext keyUsage=critical,keyCertSign,cRLSign -out ca.crt
for role in controller node; do
    key $role
    openssl req -new -key $role.key -subj "/CN=tidemark-$role" -out $role.csr
    usage=$([[ $role == node ]] && echo serverAuth || echo clientAuth) # a node's opens no other node
    printf 'subjectAltName=DNS:tidemark-%s,DNS:tidemark-%s.%s.svc,IP:127.0.0.1\nextendedKeyUsage=%s\n' \
        $role $role "$namespace" $usage >$role.ext
    openssl x509 -req -in $role.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -sha256 -extfile $role.ext \
        -out $role.crt 2>/dev/null
    cat <<EOF
---
apiVersion: v1
kind: Secret
metadata: {name: tidemark-$role-tls, namespace: $namespace}
type: kubernetes.io/tls
data:
  ca.crt: $(base64 -w0 ca.crt)
  tls.crt: $(base64 -w0 $role.crt)
  tls.key: $(base64 -w0 $role.key)
EOF
done
