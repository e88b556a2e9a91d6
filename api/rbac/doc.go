// Package rbac owns what Roles, ClusterRoles and their bindings mean: who may do
// what (Index), which rights a set of rules lacks (Missing), what an aggregated
// ClusterRole gathers (Aggregate), and which roles and bindings every cluster
// has (Roles, Bindings).
//
// Everything here is a pure function of its arguments: no goroutine, no clock, no
// state. An Index is immutable and shares the rules of the objects that it was
// made of; a new one is made of the one before and of what changed.
//
// What rules mean and the words of messages are Kubernetes', because clients,
// and the people who read a refusal, know them.
package rbac
