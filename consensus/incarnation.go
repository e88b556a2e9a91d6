package consensus

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Incarnation is the life of the cluster to which a log belongs. Where a
// majority is lost for good, one node's log becomes the first of the next
// incarnation, and all others are out of date from then on, however many
// voters they can gather. Peers of different incarnations do not talk.
type Incarnation struct {
	Number uint64 `json:"number"`
	ID     uint64 `json:"id"` // of several with the same number, the greater one counts
	// Proof is kept beside the log and means nothing here.
	Proof json.RawMessage `json:"proof,omitempty"`
}

// Compare orders incarnations: the greater one counts.
func (i Incarnation) Compare(o Incarnation) int {
	return cmp.Or(cmp.Compare(i.Number, o.Number), cmp.Compare(i.ID, o.ID))
}

func (i Incarnation) String() string { return fmt.Sprintf("%d-%016x", i.Number, i.ID) }

// ErrSuperseded says that the log of a folder is of an older incarnation than
// the cluster's.
var ErrSuperseded = errors.New("the cluster was recovered without this log")

const incarnationFile = "incarnation"

// readIncarnation is that of the log in dir; the first has no file.
func readIncarnation(dir string) (i Incarnation, err error) {
	data, err := os.ReadFile(filepath.Join(dir, incarnationFile))
	if errors.Is(err, fs.ErrNotExist) {
		return i, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &i)
	}
	if err != nil {
		return i, fmt.Errorf("reading the incarnation of the log in %s: %w", dir, err)
	}
	return i, nil
}

func writeIncarnation(dir string, i Incarnation) error {
	data, err := json.Marshal(i)
	if err != nil {
		return err
	}
	return writeSynced(filepath.Join(dir, incarnationFile), data)
}

// writeSynced replaces a file, whole or not at all.
func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// enroll makes sure that the log in dir is of the incarnation: an empty one
// takes it.
func enroll(dir string, empty bool, now Incarnation) error {
	of, err := readIncarnation(dir)
	switch {
	case err != nil:
		return err
	case of.Compare(now) == 0:
		return nil
	case empty:
		return writeIncarnation(dir, now)
	}
	return fmt.Errorf("%w: it is of incarnation %s, the cluster is in %s", ErrSuperseded, of, now)
}

// --- between peers ------------------------------------------------------------

// Before raft says anything on a connection, each end tells its incarnation:
// this text, the number and the id.
const greeting = "conclave raft\n"

type hello [len(greeting) + 16]byte

func (i Incarnation) hello() (h hello) {
	copy(h[:], greeting)
	binary.BigEndian.PutUint64(h[len(greeting):], i.Number)
	binary.BigEndian.PutUint64(h[len(greeting)+8:], i.ID)
	return h
}

// meet reads what the other end says and compares. outdated is called where
// the other end has the newer one.
func (i Incarnation) meet(c net.Conn, outdated func()) error {
	var h hello
	if _, err := io.ReadFull(c, h[:]); err != nil {
		return fmt.Errorf("reading a raft peer's greeting: %w", err)
	}
	if string(h[:len(greeting)]) != greeting {
		return errors.New("a raft peer greets in another way: it runs another version of conclave")
	}
	other := Incarnation{Number: binary.BigEndian.Uint64(h[len(greeting):]), ID: binary.BigEndian.Uint64(h[len(greeting)+8:])}
	switch d := i.Compare(other); {
	case d < 0:
		outdated()
		return fmt.Errorf("a raft peer is in incarnation %s, newer than ours, %s: %w", other, i, ErrSuperseded)
	case d > 0:
		return fmt.Errorf("a raft peer is still in incarnation %s, ours is %s", other, i)
	}
	return nil
}

// sameLife is a stream layer on which only peers of one incarnation meet.
type sameLife struct {
	raft.StreamLayer
	of       Incarnation
	outdated func()
}

func (s *sameLife) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	deadline := time.Now().Add(timeout)
	c, err := s.StreamLayer.Dial(to, timeout)
	if err != nil {
		return nil, err
	}
	h := s.of.hello()
	err = c.SetDeadline(deadline)
	if err == nil {
		_, err = c.Write(h[:])
	}
	if err == nil {
		err = s.of.meet(c, s.outdated)
	}
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (s *sameLife) Accept() (net.Conn, error) {
	c, err := s.StreamLayer.Accept()
	if err != nil {
		return nil, err
	}
	return &greeted{Conn: c, layer: s}, nil
}

// greeted is an incoming connection: its first reader sees to the greetings, so
// that nobody who accepts waits for them.
type greeted struct {
	net.Conn
	layer *sameLife
	once  sync.Once
	err   error
}

func (c *greeted) Read(b []byte) (int, error) {
	c.once.Do(func() {
		met := c.layer.of.meet(c.Conn, c.layer.outdated)
		h := c.layer.of.hello()
		_, err := c.Conn.Write(h[:]) // whoever is refused learns why
		c.err = errors.Join(met, err)
	})
	if c.err != nil {
		return 0, c.err
	}
	return c.Conn.Read(b)
}

// incarnationParameter tells in a call between peers for which incarnation it
// is meant.
const incarnationParameter = "incarnation"

// lifeCaller adds it.
type lifeCaller struct {
	Caller
	of Incarnation
}

func (c lifeCaller) Call(ctx context.Context, id, path string, body []byte) ([]byte, error) {
	return c.Caller.Call(ctx, id, path+"?"+incarnationParameter+"="+c.of.String(), body)
}
