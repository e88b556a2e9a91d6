// Package kinds owns what Kubernetes says of each kind of object: its names,
// defaults, validation, what create and update must preserve, the fields that
// selectors may name, and the columns that kubectl prints. It is a table of
// rows (Kind, Builtin) that the generic API server in package api reads.
//
// Everything here is a pure function of its arguments. The package runs no
// goroutine, reads no clock and keeps no state; an object that it is given is
// changed only by the functions whose names say so (Default, Prepare…,
// SetScale). It knows nothing of other objects: whatever needs a second object
// (does the namespace exist, is the ClusterIP free) is the API server's.
//
// Field paths, kinds of errors and messages follow Kubernetes', because
// clients and their users read them.
package kinds
