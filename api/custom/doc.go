// Package custom owns what a CustomResourceDefinition says of its kind: it
// validates definitions, judges their names, and makes of each version that is
// served a row of the table of kinds, with pruning, defaulting, validation,
// columns, selectable fields and scale as the version's structural schema and
// its other fields say; and the OpenAPI schemas of those rows.
//
// Like package kinds, everything here is a pure function of its arguments: no
// goroutine, no clock (where a time is needed it is given), no state but what a
// row compiles of its own schema once. Objects are changed only by the functions
// whose names say so, and by those of a row that kinds.Kind allows to.
//
// Structural schemas, pruning and the rules for lists are those of
// k8s.io/apiextensions-apiserver/pkg/apiserver/schema. Of its other packages
// none is used: those for defaulting, metadata and values link feature gates and
// Prometheus, for what is a few hundred lines here. The rules in a schema are
// those of package rules, which is below this one.
package custom
