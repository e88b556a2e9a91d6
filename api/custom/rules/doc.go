// Package rules owns what the CEL rules of a structural schema
// (x-kubernetes-validations: KEP-2876, transitions and ratcheting: KEP-4008) say:
// of a schema, whether they compile and what they may cost, and of an object,
// which of them it breaks.
//
// A Judge goes through a definition's schema as it is written; Rules are those
// of one schema made ready, and are read-only: any number of goroutines may check
// objects with them. No goroutine is started, no clock is read, and what a check
// may cost is bounded in CEL's units, not in time.
//
// Types of CEL, and values as CEL sees them, are those of
// k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel/model and
// k8s.io/apiserver/pkg/cel/common. The packages beside them that compile and
// validate are not used: they link feature gates and Prometheus.
package rules
