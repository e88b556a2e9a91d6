// Package policy owns what admission policies make of a request: their
// expressions, compiled once for each version of a policy, whether a policy lets a
// request be, and what it changes of it (KEP-3488, KEP-3962).
//
// It knows no store and no requests: the API server finds the policies, their
// bindings and parameters, and tells what is asked for (cel.Input). What always
// holds:
//
//   - a policy and a binding are not changed once they are made, and are used by
//     any number of goroutines at once;
//   - what expressions cost is bounded, for each policy, binding and parameter
//     anew.
//
// Everything is a function of its arguments; the package runs nothing.
package policy
