package api

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"strings"
	"sync"

	"conclave/api/custom"
	"conclave/api/openapi"
)

// The OpenAPI documents with the custom resources in them are made when somebody
// asks for them. Of each, what the definitions add is kept, compressed; the
// document of version 2 is put together anew whenever it is read.

// customDocuments are the document of version 2 with the custom resources that
// this replica serves now in it, and one of version 3 for each of their groups and
// versions; nil where there are no custom resources.
func (s *Server) customDocuments() ([]openapi.Document, error) {
	s.discovery() // drops what is of another stamp
	all, stamp := s.definitions()
	if len(all) == 0 {
		return nil, nil
	}
	c := &s.customs
	c.mu.Lock()
	docs := c.docs
	fresh := docs != nil && c.stamp == stamp
	c.mu.Unlock()
	if fresh {
		return docs, nil
	}
	docs, err := makeDocs(s, all)
	if err != nil {
		return nil, fmt.Errorf("make the OpenAPI documents of the custom resources: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stamp == stamp {
		c.docs = docs
	}
	return docs, nil
}

func makeDocs(s *Server, all []*definition) ([]openapi.Document, error) {
	models2, paths2 := map[string]any{}, map[string]any{}
	byGV := map[string][2]map[string]any{} // models and paths of version 3
	for _, d := range all {
		for _, v := range d.object.Spec.Versions {
			if !v.Served {
				continue
			}
			gv := d.object.Spec.Group + "/" + v.Name
			if _, ok := byGV[gv]; !ok {
				byGV[gv] = [2]map[string]any{{}, {}}
			}
			if err := addDocs(d.object, v.Name, true, models2, paths2); err != nil {
				return nil, err
			}
			if err := addDocs(d.object, v.Name, false, byGV[gv][0], byGV[gv][1]); err != nil {
				return nil, err
			}
		}
	}
	v2, err := document2(models2, paths2)
	if err != nil {
		return nil, err
	}
	meta, err := metaSchemas()
	if err != nil {
		return nil, err
	}
	scale, err := scaleSchemas()
	if err != nil {
		return nil, err
	}
	docs := []openapi.Document{*v2}
	for gv, parts := range byGV {
		models := map[string]any{}
		for name, m := range meta {
			models[name] = m
		}
		for name, m := range scale {
			models[name] = m
		}
		maps.Copy(models, parts[0])
		text, err := json.Marshal(map[string]any{
			"openapi": "3.0.0", "info": map[string]any{"title": "Conclave", "version": "v" + s.cfg.Version.Major + "." + s.cfg.Version.Minor},
			"paths": parts[1], "components": map[string]any{"schemas": models, "securitySchemes": map[string]any{
				"BearerToken": map[string]any{"type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header"},
			}},
			"security": []any{map[string]any{"BearerToken": []string{}}},
		})
		if err != nil {
			return nil, err
		}
		read, err := kept(text)
		if err != nil {
			return nil, err
		}
		docs = append(docs, openapi.Document{Path: "v3/apis/" + gv, Hash: openAPIHash(text), JSON: openapi.Made(read)})
	}
	return docs, nil
}

// openAPIHash names a version of a document.
func openAPIHash(parts ...[]byte) string {
	sum := sha256.New()
	for _, p := range parts {
		sum.Write(p)
	}
	return strings.ToUpper(hex.EncodeToString(sum.Sum(nil)))
}

func addDocs(d *custom.Definition, version string, v2 bool, models, paths map[string]any) error {
	own, err := custom.Models(d, version, v2)
	if err != nil {
		return err
	}
	for name, m := range own {
		models[name] = m
	}
	maps.Copy(paths, custom.Paths(d, version, v2))
	return nil
}

// scaleSchemas are the schemas of what the scale subresource speaks of.
var scaleSchemas = sync.OnceValues(func() (map[string]json.RawMessage, error) {
	return openAPISchemas("apis/apps/v1", func(name string) bool {
		return name == custom.ScaleModel || name == custom.ScaleModel+"Spec" || name == custom.ScaleModel+"Status"
	})
})

// kept keeps a text compressed, and returns what reads it.
func kept(text []byte) (func() ([]byte, error), error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(text); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	packed, size := bytes.Clone(b.Bytes()), len(text)
	return func() ([]byte, error) {
		z, err := gzip.NewReader(bytes.NewReader(packed))
		if err != nil {
			return nil, fmt.Errorf("unpack what is kept of OpenAPI: %w", err)
		}
		text := make([]byte, size)
		if _, err := io.ReadFull(z, text); err != nil {
			return nil, fmt.Errorf("unpack what is kept of OpenAPI: %w", err)
		}
		return text, nil
	}, nil
}

// document2 is the built-in document of version 2 with more models and paths.
func document2(models, paths map[string]any) (*openapi.Document, error) {
	built := openapi.Find("v2")
	morePaths, err := json.Marshal(paths)
	if err != nil {
		return nil, err
	}
	moreModels, err := json.Marshal(models)
	if err != nil {
		return nil, err
	}
	message, err := protobuf2(models)
	if err != nil {
		return nil, err
	}
	readPaths, err := kept(morePaths)
	if err != nil {
		return nil, err
	}
	readModels, err := kept(moreModels)
	if err != nil {
		return nil, err
	}
	readMessage, err := kept(message)
	if err != nil {
		return nil, err
	}
	return &openapi.Document{
		Path: "v2", Hash: openAPIHash([]byte(built.Hash), morePaths, moreModels),
		JSON: openapi.Made(func() ([]byte, error) {
			text, err := built.JSON.Read()
			if err != nil {
				return nil, err
			}
			paths, err := readPaths()
			if err != nil {
				return nil, err
			}
			models, err := readModels()
			if err != nil {
				return nil, err
			}
			return spliced(text, member{"paths", paths}, member{"definitions", models})
		}),
		// Two messages one after the other are one message of both their members.
		Protobuf: openapi.Made(func() ([]byte, error) {
			text, err := built.Protobuf.Read()
			if err != nil {
				return nil, err
			}
			more, err := readMessage()
			return append(text, more...), err
		}),
	}, nil
}

// member is what is added to a member of a document: a JSON object.
type member struct {
	name string
	more []byte
}

// spliced is a document with more in some of its members, which are in this order.
// It is not read into memory as a document, which costs tens of megabytes: what is
// added is written where a member begins.
func spliced(text []byte, members ...member) ([]byte, error) {
	size := len(text)
	for _, m := range members {
		size += len(m.more)
	}
	out := make([]byte, 0, size)
	for _, m := range members {
		mark := []byte(`"` + m.name + `":{`)
		i := topLevel(text, mark)
		if i < 0 {
			return nil, fmt.Errorf("the built-in document has no %s", m.name)
		}
		out = append(out, text[:i+len(mark)]...)
		text = text[i+len(mark):]
		if more := m.more[1 : len(m.more)-1]; len(more) > 0 {
			out = append(out, more...)
			if text[0] != '}' {
				out = append(out, ',')
			}
		}
	}
	return append(out, text...), nil
}

// topLevel is where a member of a JSON object begins, looked for from anywhere
// between two members of that object; -1 if it is not there. The members that we
// look for are objects whose names are no property of a schema written this way
// outside of a string; inside a string, quotes are escaped.
func topLevel(text, mark []byte) int {
	depth, inString := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			if !inString && depth <= 1 && bytes.HasPrefix(text[i:], mark) {
				return i
			}
			inString = !inString
		case inString:
		case c == '{', c == '[':
			depth++
		case c == '}', c == ']':
			depth--
		}
	}
	return -1
}
