package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// reach asks many servers at once, each given as http:HOST:PORT or
// udp:HOST:PORT, and prints a line for each, in order: the name that answers,
// or "-" if nobody does for as long as an answer would never take.
func reach(ctx context.Context, targets []string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	answers := make([]string, len(targets))
	var all sync.WaitGroup
	for i, target := range targets {
		kind, address, ok := strings.Cut(target, ":")
		if !ok || kind != "http" && kind != "udp" {
			return fmt.Errorf("reach: %q is neither http:HOST:PORT nor udp:HOST:PORT", target)
		}
		all.Go(func() {
			ask := askUDP
			if kind == "http" {
				ask = askHTTP
			}
			if answer, err := ask(ctx, address); err == nil {
				answers[i] = strings.TrimSpace(answer)
			}
		})
	}
	all.Wait()
	for _, answer := range answers {
		if answer == "" {
			answer = "-"
		}
		fmt.Println(answer)
	}
	return nil
}

func askHTTP(ctx context.Context, address string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return "", err
	}
	page, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
	if err != nil {
		return "", err
	}
	defer page.Body.Close()
	body, err := io.ReadAll(page.Body)
	return string(body), err
}

func askUDP(ctx context.Context, address string) (string, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if end, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(end); err != nil {
			return "", err
		}
	}
	if _, err := io.WriteString(conn, "who"); err != nil {
		return "", err
	}
	buf := make([]byte, 1500)
	n, err := conn.Read(buf)
	return string(buf[:n]), err
}
