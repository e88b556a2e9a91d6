package consensus

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// A replica that begins with nothing may have had a log before, which a disk or a
// removal took from it: entries were committed because it had stored them, and it
// does not know of them any more. Whoever asks for its vote by an old configuration,
// and misses those entries too, must not get it: with it there could be a majority
// that has forgotten what another one has promised. raft has no notion of this, and
// a server that has no configuration votes for anybody.
//
// So such a replica is silent: it asks for no votes and gives none, until it has
// all that was committed anywhere when a leader that a majority followed was
// asked, which is more than it can have had. That it is silent is a file
// (silentFile), so that it is silent again after a restart in between. What it
// stores counts as ever: it never says to have what it has not.
type silence struct {
	path string
	on   atomic.Bool
}

const silentFile = "silent"

// openSilence reads whether the replica in dir is silent.
func openSilence(dir string) (*silence, error) {
	s := &silence{path: filepath.Join(dir, silentFile)}
	_, err := os.Stat(s.path)
	s.on.Store(err == nil)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return s, err
}

// begin is for a replica that has nothing.
func (s *silence) begin() error {
	f, err := os.OpenFile(s.path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	s.on.Store(true)
	return errors.Join(f.Close(), syncDir(filepath.Dir(s.path)))
}

func (s *silence) end() error {
	err := os.Remove(s.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := syncDir(filepath.Dir(s.path)); err != nil {
		return err
	}
	s.on.Store(false)
	return nil
}

var errSilent = errors.New("this node began with no log, and has no vote until it has all that the others have")

// speak ends the silence as soon as it may end, or returns with ctx.
func (n *Node) speak(ctx context.Context, r *raft.Raft) {
	for n.disk.silent.on.Load() {
		err := n.catchUp(ctx, r)
		if err == nil {
			err = n.disk.silent.end()
		}
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryWait):
		}
	}
}

// catchUp returns once the log here has all that the leader's had when a majority
// still followed it.
func (n *Node) catchUp(ctx context.Context, r *raft.Raft) error {
	at, err := n.reach(ctx)
	if err != nil {
		return err
	}
	if last := r.LastIndex(); last < at.last { // of what is no write
		return fmt.Errorf("the log ends at entry %d, the leader's ended at %d", last, at.last)
	}
	return nil
}
