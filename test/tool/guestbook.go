package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

// guestbook is an application of three parts: a primary that keeps entries,
// replicas that copy them, and a frontend that writes to the one and reads from
// the others. All listen on port 3000.
func guestbook(ctx context.Context, args []string) error {
	part := ""
	if len(args) > 0 {
		part = args[0]
	}
	mux := http.NewServeMux()
	book := &entries{}
	switch {
	case part == "primary" && len(args) == 1:
		mux.HandleFunc("POST /entries", func(w http.ResponseWriter, r *http.Request) {
			book.add(r.FormValue("value"))
		})
		mux.HandleFunc("GET /entries", book.serve)
	case part == "replica" && len(args) == 2:
		mux.HandleFunc("GET /entries", book.serve)
		go book.follow(ctx, args[1]) // ends with ctx, as the server does
	case part == "frontend" && len(args) == 3:
		mux.HandleFunc("POST /", func(w http.ResponseWriter, r *http.Request) {
			relay(w)(http.PostForm(args[1]+"/entries", url.Values{"value": {r.FormValue("value")}}))
		})
		mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
			relay(w)(http.Get(args[2] + "/entries"))
		})
	default:
		return errors.New("guestbook: say primary, replica PRIMARY, or frontend PRIMARY REPLICA")
	}
	server := &http.Server{Addr: ":3000", Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { server.Close() })
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// relay answers with another server's answer.
func relay(w http.ResponseWriter) func(*http.Response, error) {
	return func(answer *http.Response, err error) {
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer answer.Body.Close()
		w.WriteHeader(answer.StatusCode)
		_, _ = io.Copy(w, answer.Body) // whoever asked may be gone
	}
}

// entries are what was written, in order.
type entries struct {
	mu  sync.Mutex
	all []string
}

func (e *entries) add(entry string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, entry)
}

func (e *entries) serve(w http.ResponseWriter, _ *http.Request) {
	e.mu.Lock()
	all := slices.Clone(e.all)
	e.mu.Unlock()
	if err := json.NewEncoder(w).Encode(all); err != nil {
		fmt.Println("answer:", err)
	}
}

// follow copies the primary's entries several times a second.
func (e *entries) follow(ctx context.Context, primary string) {
	for ctx.Err() == nil {
		if answer, err := http.Get(primary + "/entries"); err == nil {
			var all []string
			if json.NewDecoder(answer.Body).Decode(&all) == nil {
				e.mu.Lock()
				e.all = all
				e.mu.Unlock()
			}
			answer.Body.Close()
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}
