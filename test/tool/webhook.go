package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"time"
)

// webhook answers AdmissionReviews and ConversionReviews on :8443, each path by
// a rule of its own, with the certificate in the folder that is its argument.
func webhook(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("usage: webhook FOLDER")
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	for path, rule := range admissionRules {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) { admit(w, r, rule) })
	}
	mux.HandleFunc("POST /convert", convert)
	cert, err := tls.LoadX509KeyPair(filepath.Join(args[0], "tls.crt"), filepath.Join(args[0], "tls.key"))
	if err != nil {
		return err
	}
	server := &http.Server{
		Addr: ":8443", Handler: mux, ReadHeaderTimeout: 10 * time.Second, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.ListenAndServeTLS("", ""); ctx.Err() == nil {
		return err
	}
	return nil
}

type admissionRequest struct {
	UID       string          `json:"uid"`
	Name      string          `json:"name"`
	Operation string          `json:"operation"`
	Object    json.RawMessage `json:"object"`
	OldObject json.RawMessage `json:"oldObject"`
}

// patch is a JSON patch: operations and where.
type patch []map[string]any

func add(path string, value any) patch { return patch{{"op": "add", "path": path, "value": value}} }

// admissionRules say no, by a reason, or what to change.
var admissionRules = map[string]func(r *http.Request, in *admissionRequest) (no string, change patch){
	"/deny": func(*http.Request, *admissionRequest) (string, patch) { return "this webhook denies all requests", nil },
	// What is marked is not let in, and not let go.
	"/deny-marked": func(_ *http.Request, in *admissionRequest) (string, patch) {
		raw := in.Object
		if in.Operation == "DELETE" {
			raw = in.OldObject
		}
		if bytes.Contains(raw, []byte(`"webhook-disallow"`)) {
			return "the object contains unwanted data", nil
		}
		return "", nil
	},
	"/deny-attach": func(_ *http.Request, in *admissionRequest) (string, patch) {
		var o struct {
			Kind, Container string
			Stdin           bool
		}
		if err := json.Unmarshal(in.Object, &o); err != nil {
			return err.Error(), nil
		}
		if o.Kind == "PodAttachOptions" && in.Name == "to-be-attached" && o.Stdin && o.Container == "container1" {
			return "attaching to pod 'to-be-attached' is not allowed", nil
		}
		return "", nil
	},
	"/hang": func(r *http.Request, in *admissionRequest) (string, patch) {
		if bytes.Contains(in.Object, []byte(`"wait-forever"`)) {
			<-r.Context().Done()
		}
		return "", nil
	},
	"/slow": func(r *http.Request, _ *admissionRequest) (string, patch) {
		select {
		case <-time.After(3 * time.Second):
		case <-r.Context().Done():
		}
		return "", nil
	},
	"/first": func(_ *http.Request, in *admissionRequest) (string, patch) {
		return stage(in, "mutation-start", "mutation-stage-1")
	},
	"/second": func(_ *http.Request, in *admissionRequest) (string, patch) {
		return stage(in, "mutation-stage-1", "mutation-stage-2")
	},
	"/inject": func(*http.Request, *admissionRequest) (string, patch) {
		return "", add("/spec/initContainers", []any{map[string]any{
			"name": "webhook-added", "image": "conclave.test/tool:1", "args": []string{"get", "nothing"}, "resources": map[string]any{},
		}})
	},
	"/label": func(*http.Request, *admissionRequest) (string, patch) {
		return "", add("/metadata/labels", map[string]any{"added": "yes"})
	},
}

// stage adds to an object's data the second key where it has the first.
func stage(in *admissionRequest, have, make string) (string, patch) {
	var o struct{ Data map[string]string }
	if err := json.Unmarshal(in.Object, &o); err != nil || o.Data[have] != "yes" {
		return "", nil
	}
	return "", add("/data/"+make, "yes")
}

func admit(w http.ResponseWriter, r *http.Request, rule func(*http.Request, *admissionRequest) (string, patch)) {
	var in struct {
		APIVersion string            `json:"apiVersion"`
		Request    *admissionRequest `json:"request"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Request == nil {
		http.Error(w, fmt.Sprintf("not an AdmissionReview: %v", err), http.StatusBadRequest)
		return
	}
	no, change := rule(r, in.Request)
	response := map[string]any{"uid": in.Request.UID, "allowed": no == ""}
	if no != "" {
		response["status"] = map[string]any{"message": no}
	}
	if change != nil {
		raw, err := json.Marshal(change)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		response["patch"], response["patchType"] = raw, "JSONPatch"
	}
	reply(w, map[string]any{"apiVersion": in.APIVersion, "kind": "AdmissionReview", "response": response})
}

// convert turns a hostPort of version v1 into host and port of version v2, and
// back.
func convert(w http.ResponseWriter, r *http.Request) {
	var in struct {
		APIVersion string `json:"apiVersion"`
		Request    *struct {
			UID               string           `json:"uid"`
			DesiredAPIVersion string           `json:"desiredAPIVersion"`
			Objects           []map[string]any `json:"objects"`
		} `json:"request"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Request == nil {
		http.Error(w, fmt.Sprintf("not a ConversionReview: %v", err), http.StatusBadRequest)
		return
	}
	for _, o := range in.Request.Objects {
		o["apiVersion"] = in.Request.DesiredAPIVersion
		if whole, ok := o["hostPort"].(string); ok && strings.HasSuffix(in.Request.DesiredAPIVersion, "/v2") {
			host, port, _ := strings.Cut(whole, ":")
			delete(o, "hostPort")
			o["host"], o["port"] = host, port
		}
		if host, ok := o["host"].(string); ok && strings.HasSuffix(in.Request.DesiredAPIVersion, "/v1") {
			port, _ := o["port"].(string)
			delete(o, "host")
			delete(o, "port")
			o["hostPort"] = host + ":" + port
		}
	}
	reply(w, map[string]any{"apiVersion": in.APIVersion, "kind": "ConversionReview", "response": map[string]any{
		"uid": in.Request.UID, "convertedObjects": in.Request.Objects, "result": map[string]any{"status": "Success"},
	}})
}

func reply(w http.ResponseWriter, answer any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) // who went away need not be told
}
