// Package scheduler owns which node a pod runs on. It runs on the leader alone.
package scheduler

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"conclave/api"
)

// Config is what a Scheduler needs.
type Config struct {
	// Client reads the leader's own store and writes through its API server.
	Client api.Client
	// Suspect says that a node is doubted and gets no new pods for now. It is
	// asked for every candidate, so it answers from memory.
	Suspect func(nodeName string) bool
	Now     func() time.Time
	Log     *slog.Logger
}

// Scheduler binds pods to nodes.
type Scheduler struct {
	config Config
}

// New prepares a Scheduler; nothing runs before Run.
func New(c Config) (*Scheduler, error) {
	if c.Client == nil {
		return nil, errors.New("scheduler: a Client is needed")
	}
	return &Scheduler{config: c}, nil
}

// Run binds pods until ctx, which is leadership's, ends, and returns when all
// that it started has ended.
func (s *Scheduler) Run(ctx context.Context) error {
	<-ctx.Done()
	return context.Cause(ctx)
}
