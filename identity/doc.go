// Package identity owns what a node is: its key, its certificate, the
// cluster's CA, join tokens, and the key that seals Secrets at rest.
package identity
