package consensus

import (
	"io"
	"log"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// quiet is how long the same complaint of raft is not repeated: it complains
// about a dead peer with every heartbeat.
const quiet = time.Minute

// raftLog brings raft's log to slog. What raft calls information (every
// change of state, every connection) is for debugging here.
type raftLog struct {
	log *slog.Logger

	mu   sync.Mutex
	said map[string]time.Time
}

func newRaftLog(to *slog.Logger) *raftLog {
	return &raftLog{log: to, said: make(map[string]time.Time)}
}

// fresh says whether a complaint is worth a line.
func (l *raftLog) fresh(msg string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if last, ok := l.said[msg]; ok && now.Sub(last) < quiet {
		return false
	}
	l.said[msg] = now // raft has a fixed set of messages
	return true
}

// late is raft's complaint of a follower that was silent for one leader lease,
// a third of a second, as on any busy machine. A line for each would wear an
// idle node's disk; one that stays away is told of by "failed to heartbeat to".
const late = "failed to contact"

func (l *raftLog) Log(level hclog.Level, msg string, args ...any) {
	if level >= hclog.Warn && msg != late && l.fresh(msg) {
		l.log.Warn("raft: "+msg, args...)
		return
	}
	l.log.Debug("raft: "+msg, args...)
}

func (l *raftLog) Trace(msg string, args ...any) {}
func (l *raftLog) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l *raftLog) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l *raftLog) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l *raftLog) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }
func (l *raftLog) IsTrace() bool                 { return false }
func (l *raftLog) IsDebug() bool                 { return true }
func (l *raftLog) IsInfo() bool                  { return true }
func (l *raftLog) IsWarn() bool                  { return true }
func (l *raftLog) IsError() bool                 { return true }
func (l *raftLog) ImpliedArgs() []any            { return nil }
func (l *raftLog) Name() string                  { return "raft" }
func (l *raftLog) SetLevel(hclog.Level)          {}
func (l *raftLog) GetLevel() hclog.Level         { return hclog.Debug }

func (l *raftLog) Named(string) hclog.Logger      { return l }
func (l *raftLog) ResetNamed(string) hclog.Logger { return l }
func (l *raftLog) With(args ...any) hclog.Logger  { return newRaftLog(l.log.With(args...)) }

func (l *raftLog) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(l.log.Handler(), slog.LevelDebug)
}

func (l *raftLog) StandardWriter(o *hclog.StandardLoggerOptions) io.Writer {
	return l.StandardLogger(o).Writer()
}
