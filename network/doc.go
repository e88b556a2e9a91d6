// Package network owns everything between a pod's socket and another's: pod
// addresses, the links between nodes, the rules that carry Services, and DNS.
package network
