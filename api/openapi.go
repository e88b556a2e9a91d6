package api

import (
	"net/http"
	"strconv"
	"strings"

	"conclave/api/openapi"
)

const (
	mediaOpenAPI2 = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
	mediaOpenAPI3 = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf"
	// Clients ask by these names, which are no proper media types and so must
	// not be answered with.
	askOpenAPI2 = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
	askOpenAPI3 = "application/com.github.proto-openapi.spec.v3@v1.0+protobuf"
)

// openAPI answers with the documents that describe the kinds.
func (x *exchange) openAPI(path string) error {
	custom, err := x.s.customDocuments()
	if err != nil {
		return err
	}
	path = strings.TrimPrefix(path, "/openapi/")
	if at, ok := strings.CutPrefix(path, "v3"); ok {
		if o := x.s.remoteAt(at); o != nil && at == "/apis/"+o.Spec.Group+"/"+o.Spec.Version {
			return x.askRemote(o, aggregator, "/openapi/"+path)
		}
	}
	if path == "v3" {
		x.s.lookBehind(x.r.Context())
		others, _ := x.s.behindUs()
		type entry struct {
			URL string `json:"serverRelativeURL"`
		}
		index := map[string]entry{}
		for _, all := range [][]openapi.Document{custom, openapi.All()} { // those that are built in win
			for _, d := range all {
				if name, ok := strings.CutPrefix(d.Path, "v3/"); ok {
					index[name] = entry{"/openapi/" + d.Path + "?hash=" + d.Hash}
				}
			}
		}
		for _, b := range others {
			if b.openAPI != "" && !b.stale {
				index["apis/"+b.gv().String()] = entry{b.openAPI}
			} else {
				delete(index, "apis/"+b.gv().String())
			}
		}
		return x.json(map[string]any{"paths": index})
	}
	d := openapi.Find(path)
	for i := range custom {
		if custom[i].Path == path && (d == nil || path == "v2") {
			d = &custom[i]
		}
	}
	if d == nil {
		return errNoSuchPath
	}
	if path == "v2" {
		return x.openAPIDocument(d, mediaOpenAPI2, askOpenAPI2)
	}
	if hash := x.query.Get("hash"); hash != "" {
		if d.Hash != hash {
			x.w.Header().Set("Location", "/openapi/"+path+"?hash="+d.Hash)
			x.w.WriteHeader(http.StatusMovedPermanently)
			return nil
		}
		x.w.Header().Set("Cache-Control", "public, immutable")
	}
	return x.openAPIDocument(d, mediaOpenAPI3, askOpenAPI3)
}

// openAPIDocument answers with a document in the first form that the client
// takes, compressed if it takes that.
func (x *exchange) openAPIDocument(d *openapi.Document, protoMedia, protoAlias string) error {
	h := x.w.Header()
	etag := `"` + d.Hash + `"`
	h.Set("ETag", etag)
	h.Add("Vary", "Accept")
	h.Add("Vary", "Accept-Encoding")
	if h.Get("Cache-Control") == "" {
		h.Set("Cache-Control", "no-cache, private")
	}
	if x.r.Header.Get("If-None-Match") == etag {
		x.w.WriteHeader(http.StatusNotModified)
		return nil
	}
	media, text := mediaJSON, d.JSON
	for _, a := range parseAccept(x.r.Header.Get("Accept")) {
		switch a.media {
		case mediaJSON, "*/*", "application/*":
		case protoMedia, protoAlias:
			if d.Protobuf == nil {
				continue // those of custom resources have none
			}
			media, text = protoMedia, d.Protobuf
		default:
			continue
		}
		break
	}
	read := text.Read
	if x.zips() {
		read = text.Zipped
	}
	body, err := read()
	if err != nil {
		return err
	}
	if x.zips() {
		h.Set("Content-Encoding", "gzip")
	}
	h.Set("Content-Type", media)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	x.w.WriteHeader(http.StatusOK)
	if x.r.Method != http.MethodHead {
		_, _ = x.w.Write(body)
	}
	return nil
}
