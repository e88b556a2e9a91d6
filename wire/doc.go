// Package wire owns the one TLS port (6443), told apart by ALPN, and dialling
// a peer by its node id.
package wire
