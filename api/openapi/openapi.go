// Package openapi owns the OpenAPI documents of the built-in kinds, which
// kubectl reads to explain, to validate and to patch. They are made ahead of
// time from the published Go types and the table of api/kinds, and embedded
// compressed as bytes of the binary, and handed out as they are: they cost no
// memory until somebody reads them, and then none of the heap. The package runs nothing.
//
// After a change to the table of kinds or to a version of Kubernetes' modules
// (in tools/openapi/go.mod too), make them anew, at the root of the project:
//
//	go generate ./api/openapi
package openapi

//go:generate go -C ../../tools/openapi generate .

import "maps"

// V2 is the document of version 2.0 (swagger) of all groups: JSON, compressed
// with gzip. It must not be changed.
func V2() []byte { return v2 }

// V2Protobuf is the same document as gnostic's protobuf message, compressed
// with gzip: what client-go asks for.
func V2Protobuf() []byte { return v2Protobuf }

// V3 is one document of version 3.0 for each group and version, by its path
// ("api/v1", "apis/apps/v1"): JSON, compressed with gzip. They must not be
// changed.
func V3() map[string][]byte { return maps.Clone(v3) }

// V3Protobuf is the same documents as gnostic's protobuf messages, each in two
// parts: what it has for itself, and what others have too, which may be nothing.
// (Behind each other, two messages are one, and so are two streams of gzip.) There
// is none of the kinds of volume snapshots, whose group clients take for one of
// custom resources.
func V3Protobuf() map[string][2][]byte { return maps.Clone(v3Protobuf) }

// Merge is the schema by which structured-merge-diff knows the fields of all
// types that the kinds are made of: YAML, compressed with gzip.
func Merge() []byte { return merge }
