package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"sync"
	"time"
)

// watchPage fetches a page every 20 ms, each time by a new connection that has
// a quarter of a second, until its standard input ends, and prints what it saw
// as JSON: watch URL.
func watchPage(ctx context.Context, args []string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	client := http.Client{Timeout: 250 * time.Millisecond, Transport: &http.Transport{DisableKeepAlives: true}}
	var mu sync.Mutex
	var seen struct {
		Answered, Failed int
		LastFailure      time.Time // when the newest fetch that failed was begun
	}
	var fetches sync.WaitGroup
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case begun := <-tick.C:
			fetches.Go(func() {
				page, err := client.Get(args[0])
				if err == nil {
					_, err = io.Copy(io.Discard, page.Body)
					page.Body.Close()
				}
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					seen.Answered++
					return
				}
				seen.Failed++
				if begun.After(seen.LastFailure) {
					seen.LastFailure = begun
				}
			})
		}
	}
	fetches.Wait()
	return json.NewEncoder(os.Stdout).Encode(seen)
}
