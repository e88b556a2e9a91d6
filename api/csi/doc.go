// Package csi speaks the part of the Container Storage Interface that a cluster
// needs: it writes the requests, reads the answers and calls a driver at its
// socket. The messages are those of the specification, version 1; only the
// fields that mean something to Kubernetes are known here. It is all functions:
// it keeps nothing and runs nothing.
//
// A driver is somebody else's program: nothing of what it answers is believed
// before it is parsed, and an answer may have at most 4 MiB.
package csi
