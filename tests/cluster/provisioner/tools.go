// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package tools names the program that is built, so that "go mod tidy" keeps what it needs.
package tools

import _ "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner"
