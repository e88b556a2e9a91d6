package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"
)

const (
	flunderGroup   = "wardle.example.com"
	flunderVersion = flunderGroup + "/v1alpha1"
	flunderRoot    = "/apis/" + flunderVersion
)

// flunders is an API server that stands behind the cluster's: it keeps flunders in
// memory and serves them on :8443, with the certificate in the folder that is its
// first argument, to whoever the folder that is its second says may speak for
// users (the data of ConfigMap extension-apiserver-authentication).
func flunders(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("usage: flunders CERTIFICATE AUTHENTICATION")
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(args[0], "tls.crt"), filepath.Join(args[0], "tls.key"))
	if err != nil {
		return err
	}
	s := &flunderServer{objects: map[string]flunder{}, changed: make(chan struct{}), roots: x509.NewCertPool()}
	ca, err := os.ReadFile(filepath.Join(args[1], "requestheader-client-ca-file"))
	if err != nil {
		return err
	}
	if !s.roots.AppendCertsFromPEM(ca) {
		return errors.New("requestheader-client-ca-file holds no certificate")
	}
	names, err := os.ReadFile(filepath.Join(args[1], "requestheader-allowed-names"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(names, &s.names); err != nil {
		return err
	}
	server := &http.Server{
		Addr: ":8443", Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert},
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.ListenAndServeTLS("", ""); ctx.Err() == nil {
		return err
	}
	return nil
}

// flunder is an object: its metadata and whatever else there is.
type flunder map[string]any

func (f flunder) meta() map[string]any { m, _ := f["metadata"].(map[string]any); return m }

type flunderServer struct {
	roots *x509.CertPool
	names []string

	mu      sync.Mutex
	version int
	objects map[string]flunder // by namespace/name
	events  []flunderEvent
	changed chan struct{} // closed at the next event
}

type flunderEvent struct {
	Type    string  `json:"type"`
	Object  flunder `json:"object"`
	version int
}

func (s *flunderServer) handler() http.Handler {
	mux := http.NewServeMux()
	get := func(path string, answer any) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { reply(w, answer) })
	}
	get(flunderRoot, map[string]any{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": flunderVersion, "resources": []any{map[string]any{
		"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "shortNames": []string{"fl"},
		"verbs": []string{"create", "delete", "deletecollection", "get", "list", "watch"},
	}}})
	get("/openapi/v3", map[string]any{"paths": map[string]any{flunderRoot[1:]: map[string]any{"serverRelativeURL": "/openapi/v3" + flunderRoot + "?hash=1"}}})
	get("/openapi/v3"+flunderRoot, flunderDocument)
	const all, one = "/namespaces/{namespace}/flunders", "/namespaces/{namespace}/flunders/{name}"
	mux.HandleFunc("GET "+flunderRoot+"/flunders", s.list)
	mux.HandleFunc("GET "+flunderRoot+all, s.list)
	mux.HandleFunc("POST "+flunderRoot+all, s.create)
	mux.HandleFunc("DELETE "+flunderRoot+all, s.remove)
	mux.HandleFunc("GET "+flunderRoot+one, s.get)
	mux.HandleFunc("DELETE "+flunderRoot+one, s.remove)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/readyz" {
			fmt.Fprintln(w, "ok")
			return
		}
		if err := s.known(r.TLS); err != nil {
			failure(w, http.StatusUnauthorized, "Unauthorized", err.Error())
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// known says who may speak for users.
func (s *flunderServer) known(conn *tls.ConnectionState) error {
	if conn == nil || len(conn.PeerCertificates) == 0 {
		return errors.New("no certificate is shown")
	}
	leaf := conn.PeerCertificates[0]
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: s.roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return err
	}
	if !slices.Contains(s.names, leaf.Subject.CommonName) {
		return fmt.Errorf("%s may not speak for others", leaf.Subject.CommonName)
	}
	return nil
}

func failure(w http.ResponseWriter, code int, reason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message, "code": code})
}

// change records an event; s.mu is held.
func (s *flunderServer) change(kind string, f flunder) {
	s.version++
	f.meta()["resourceVersion"] = strconv.Itoa(s.version)
	s.events = append(s.events, flunderEvent{kind, f, s.version})
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *flunderServer) create(w http.ResponseWriter, r *http.Request) {
	var f flunder
	if err := json.NewDecoder(r.Body).Decode(&f); err != nil || f.meta() == nil {
		failure(w, http.StatusBadRequest, "BadRequest", fmt.Sprintf("not a Flunder: %v", err))
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := fmt.Sprint(r.PathValue("namespace"), "/", f.meta()["name"])
	if s.objects[key] != nil {
		failure(w, http.StatusConflict, "AlreadyExists", key+" already exists")
		return
	}
	maps.Copy(f.meta(), map[string]any{
		"namespace": r.PathValue("namespace"), "uid": fmt.Sprintf("00000000-0000-4000-8000-%012d", s.version+1), "creationTimestamp": time.Now().UTC().Format(time.RFC3339),
		"annotations": map[string]any{"wardle.example.com/created-by": r.Header.Get("X-Remote-User")},
	})
	s.objects[key] = f
	s.change("ADDED", f)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(f)
}

func (s *flunderServer) get(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.objects[r.PathValue("namespace")+"/"+r.PathValue("name")]
	if f == nil {
		failure(w, http.StatusNotFound, "NotFound", fmt.Sprintf("flunders.%s %q not found", flunderGroup, r.PathValue("name")))
		return
	}
	reply(w, f)
}

// remove deletes one, or all of a namespace.
func (s *flunderServer) remove(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	namespace, name := r.PathValue("namespace"), r.PathValue("name")
	if name != "" && s.objects[namespace+"/"+name] == nil {
		failure(w, http.StatusNotFound, "NotFound", fmt.Sprintf("flunders.%s %q not found", flunderGroup, name))
		return
	}
	for _, key := range slices.Sorted(maps.Keys(s.objects)) {
		if f := s.objects[key]; f.meta()["namespace"] == namespace && (name == "" || f.meta()["name"] == name) {
			delete(s.objects, key)
			gone := flunder(maps.Clone(f))
			gone["metadata"] = maps.Clone(f.meta())
			s.change("DELETED", gone)
		}
	}
	reply(w, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Success"})
}

func (s *flunderServer) list(w http.ResponseWriter, r *http.Request) {
	in := func(f flunder) bool {
		return r.PathValue("namespace") == "" || f.meta()["namespace"] == r.PathValue("namespace")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if q := r.URL.Query(); q.Get("watch") == "true" || q.Get("watch") == "1" {
		after, _ := strconv.Atoi(q.Get("resourceVersion")) // none: from the beginning
		s.watch(w, r, after, in)
		return
	}
	items := []any{}
	for _, key := range slices.Sorted(maps.Keys(s.objects)) {
		if in(s.objects[key]) {
			items = append(items, s.objects[key])
		}
	}
	reply(w, map[string]any{"kind": "FlunderList", "apiVersion": flunderVersion, "metadata": map[string]any{"resourceVersion": strconv.Itoa(s.version)}, "items": items})
}

// watch streams what happens after a version. s.mu is held but while it waits.
func (s *flunderServer) watch(w http.ResponseWriter, r *http.Request, after int, in func(flunder) bool) {
	w.Header().Set("Content-Type", "application/json")
	out, flush := json.NewEncoder(w), http.NewResponseController(w)
	for {
		for _, e := range s.events {
			if e.version <= after {
				continue
			}
			after = e.version
			if in(e.Object) && out.Encode(e) != nil {
				return
			}
		}
		_ = flush.Flush() // the next write tells who went away
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-r.Context().Done():
		}
		s.mu.Lock()
		if r.Context().Err() != nil {
			return
		}
	}
}

// flunderDocument describes flunders, for who asks what they are.
var flunderDocument = map[string]any{
	"openapi": "3.0.0", "info": map[string]any{"title": "Wardle", "version": "v1alpha1"},
	"paths": map[string]any{flunderRoot + "/namespaces/{namespace}/flunders": map[string]any{"get": map[string]any{
		"operationId": "listFlunders", "responses": map[string]any{"200": map[string]any{"description": "OK"}}, "x-kubernetes-action": "list",
		"x-kubernetes-group-version-kind": map[string]any{"group": flunderGroup, "version": "v1alpha1", "kind": "Flunder"},
	}}},
	"components": map[string]any{"schemas": map[string]any{"com.example.wardle.v1alpha1.Flunder": map[string]any{
		"description": "Flunder is what this server keeps.", "type": "object",
		"properties":                      map[string]any{"spec": map[string]any{"type": "object", "description": "Spec is whatever you like."}},
		"x-kubernetes-group-version-kind": []any{map[string]any{"group": flunderGroup, "version": "v1alpha1", "kind": "Flunder"}},
	}}},
}
