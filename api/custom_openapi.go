package api

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"maps"

	"conclave/api/custom"
)

// customDocs are the OpenAPI documents with the custom resources in them, made
// when somebody asks for them.
type customDocs struct {
	v2 *Document
	v3 map[string]Document // of the groups and versions of custom resources alone
}

// openAPI2 and openAPI3 are the documents of what this replica serves now.

func (s *Server) openAPI2() (Document, error) {
	d, err := s.customDocuments()
	if err != nil || d == nil {
		return s.cfg.OpenAPI.V2(), err
	}
	return *d.v2, nil
}

func (s *Server) openAPI3() (map[string]Document, error) {
	all := s.cfg.OpenAPI.V3()
	d, err := s.customDocuments()
	if err != nil || d == nil {
		return all, err
	}
	all = maps.Clone(all)
	for path, doc := range d.v3 {
		if _, ours := all[path]; !ours {
			all[path] = doc
		}
	}
	return all, nil
}

// customDocuments is nil where there are no custom resources.
func (s *Server) customDocuments() (*customDocs, error) {
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

func makeDocs(s *Server, all []*definition) (*customDocs, error) {
	docs := &customDocs{v3: map[string]Document{}}
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
	v2, err := spliced(s.cfg.OpenAPI.V2(), models2, paths2)
	if err != nil {
		return nil, err
	}
	docs.v2 = v2
	meta, err := metaSchemas()
	if err != nil {
		return nil, err
	}
	scale, err := scaleSchemas()
	if err != nil {
		return nil, err
	}
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
		if docs.v3["apis/"+gv], err = document3(text); err != nil {
			return nil, err
		}
	}
	return docs, nil
}

func document3(text []byte) (Document, error) {
	z, err := zip(text)
	return Document{JSON: z}, err
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
func scaleSchemas() (map[string]json.RawMessage, error) {
	return openAPISchemas("apis/apps/v1", func(name string) bool {
		return name == custom.ScaleModel || name == custom.ScaleModel+"Spec" || name == custom.ScaleModel+"Status"
	})
}

func zip(text []byte) ([]byte, error) {
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
	return b.Bytes(), nil
}

// spliced is the document of version 2 with more models and paths in it. It is
// not read into memory as a document, which costs tens of megabytes: what is
// added is written where its members begin.
func spliced(doc Document, models, paths map[string]any) (*Document, error) {
	text, err := gunzip(doc.JSON)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	rest := text
	for _, member := range []struct {
		name string
		add  map[string]any
	}{{"paths", paths}, {"definitions", models}} {
		mark := []byte(`"` + member.name + `":{`)
		i := topLevel(rest, mark)
		if i < 0 {
			return nil, fmt.Errorf("the built-in document has no %s", member.name)
		}
		out.Write(rest[:i+len(mark)])
		rest = rest[i+len(mark):]
		more, err := json.Marshal(member.add)
		if err != nil {
			return nil, err
		}
		if more = more[1 : len(more)-1]; len(more) > 0 {
			out.Write(more)
			if rest[0] != '}' {
				out.WriteByte(',')
			}
		}
	}
	out.Write(rest)
	z, err := zip(out.Bytes())
	if err != nil {
		return nil, err
	}
	more, err := protobuf2(models)
	if err != nil {
		return nil, err
	}
	// Two messages one after the other are one message of both their members;
	// and so are two compressed streams.
	return &Document{JSON: z, Protobuf: append(bytes.Clone(doc.Protobuf), more...)}, nil
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
