package cli

import (
	"context"
	"log/slog"

	"k8s.io/klog/v2"
)

// quiet is a log for Kubernetes' libraries, at its lowest level whatever they
// think: to them, each client that goes away is an error.
type quiet struct{ slog.Handler }

// hushLibraries has those libraries speak to our log.
func hushLibraries(log *slog.Logger) { klog.SetSlogLogger(slog.New(quiet{log.Handler()})) }

func (q quiet) Enabled(ctx context.Context, _ slog.Level) bool {
	return q.Handler.Enabled(ctx, slog.LevelDebug)
}

func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	if r.Level = slog.LevelDebug; !q.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return q.Handler.Handle(ctx, r)
}

func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }
func (q quiet) WithGroup(name string) slog.Handler       { return quiet{q.Handler.WithGroup(name)} }
