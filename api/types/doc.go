// Package types owns the Go types of those kinds whose published package we do
// not link: a package of k8s.io/api brings all its kinds, with the code that was
// generated for them, and that of k8s.io/api/admissionregistration/v1 is 0.46 MB
// of the binary for the two kinds that we serve. Of k8s.io/api/certificates/v1 we
// serve one of three; that of k8s.io/api/flowcontrol/v1 is the like of the first, and
// the code of k8s.io/api/autoscaling/v2's one kind is 0.2 MB. That of APIServices is in a module
// (k8s.io/kube-aggregator) that brings a whole API server with it.
//
// The types have the published fields, JSON names and protobuf numbers. What is
// generated there, is done here by reflection over the fields' tags: protobuf
// (proto.go) and deep copies (copy.go). These objects are few and seldom read,
// so that its being slower does not count.
//
// Everything is a pure function of its arguments; the package runs nothing.
package types
