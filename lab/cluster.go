package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// Ask runs `conclave VERB` on the hosts in turn until one answers.
func (l *Lab) Ask(ctx context.Context, verb ...string) (string, error) {
	err := errors.New("the lab has no host that runs")
	for _, s := range l.Status() {
		if s.State != "running" {
			continue
		}
		var out, problems bytes.Buffer
		code, failed := l.Exec(ctx, s.Name, append([]string{l.Binary}, verb...), nil, &out, &problems)
		if failed == nil && code == 0 {
			return out.String(), nil
		}
		if failed == nil {
			failed = errors.New(strings.TrimPrefix(strings.TrimSpace(problems.String()), "conclave: "))
		}
		err = fmt.Errorf("host %s: %w", s.Name, failed)
	}
	return "", err
}

// Form runs `conclave up` on the first host and `join` on the others, and
// returns when every node is ready. It tells say what it has seen.
func (l *Lab) Form(ctx context.Context, say func(format string, args ...any)) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	first := l.Hosts[0]
	if err := l.Start(first.Name, "up"); err != nil {
		return err
	}
	var token string
	if err := l.until(ctx, first, func() (err error) {
		token, err = l.Ask(ctx, "token", "--bare")
		return err
	}); err != nil {
		return err
	}
	say("%s answers", first.Name)
	var names []string
	for _, h := range l.Hosts {
		names = append(names, h.Name)
	}
	for _, name := range names[1:] {
		if err := l.Start(name, "join", strings.TrimSpace(token)); err != nil {
			return err
		}
	}
	failed := make([]error, len(names))
	var waiting sync.WaitGroup
	for i, name := range names {
		waiting.Go(func() {
			h, err := l.Host(name)
			if err == nil {
				err = l.until(ctx, h, func() error { return l.ready(h) })
			}
			if failed[i] = err; err == nil {
				say("%s is ready", name)
			}
		})
	}
	waiting.Wait()
	return errors.Join(failed...)
}

// ready says whether a host has told that its node is ready.
func (l *Lab) ready(h *Host) error {
	raw, err := os.ReadFile(l.LogPath(h))
	if err != nil {
		return err
	}
	if !bytes.Contains(raw, []byte("node "+h.Name+" is ready")) {
		return fmt.Errorf("node %s is not ready", h.Name)
	}
	return nil
}

// until tries until it succeeds; it gives up when the host's conclave has ended.
func (l *Lab) until(ctx context.Context, h *Host, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		for _, s := range l.Status() {
			if s.Name == h.Name && s.State != "running" {
				raw, _ := os.ReadFile(l.LogPath(h))
				lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
				return fmt.Errorf("conclave ended on host %s: %s", h.Name, lines[len(lines)-1])
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; see %s", err, l.LogPath(h))
		case <-time.After(20 * time.Millisecond):
		}
	}
}
