package consensus

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// alone is a node without a network, on a real disk.
func alone(t testing.TB, dir string) Config {
	return Config{
		ID: "alone", Name: "alone", Dir: dir, Stream: &listener{h: &host{id: "alone", accept: make(chan net.Conn)}, closed: make(chan struct{})},
		Addresses: &host{}, Codec: jsonCodec{}, Caller: nobody{}, PeerID: func(*http.Request) string { return "" },
		Members:        func() []Member { return []Member{{ID: "alone", Alive: true}} },
		MembersChanged: func() <-chan struct{} { return nil },
		Prepare:        func(context.Context, string) error { return errors.New("there is nobody") },
		Log:            testLog(t, "alone"),
	}
}

type nobody struct{}

func (nobody) Call(context.Context, string, string, []byte) ([]byte, error) {
	return nil, errors.New("there is nobody")
}

// run starts a node and returns what stops it.
func run(t testing.TB, c Config, bootstrap bool) (*Node, func() error) {
	t.Helper()
	n, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if bootstrap {
		if err := n.Bootstrap(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	stopped := false
	stop := func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	t.Cleanup(func() { stop() })
	return n, stop
}

// TestKilledProcess kills a process that writes, and looks for all that it
// was promised.
func TestKilledProcess(t *testing.T) {
	if dir := os.Getenv("CONSENSUS_TEST_DIR"); dir != "" {
		killMe(t, dir)
		return
	}
	dir := filepath.Join(t.TempDir(), "raft")
	want := 0
	for round := range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledProcess$", "-test.timeout=60s")
		cmd.Env = append(os.Environ(), "CONSENSUS_TEST_DIR="+dir, fmt.Sprintf("CONSENSUS_TEST_FROM=%d", want))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		promised := 0
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if _, err := fmt.Sscanf(lines.Text(), "written %d", &promised); err == nil && promised >= want+40*(round+1) {
				break
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait() // killed
		if promised == 0 {
			t.Fatal("the process wrote nothing")
		}
		if has, err := HasState(dir); !has || err != nil {
			t.Fatalf("there is no state: %v", err)
		}
		n, stop := run(t, alone(t, dir), false)
		if err := n.Sync(within(t, 20*time.Second)); err != nil {
			t.Fatal(err)
		}
		for i := range promised + 1 {
			if n.Store().Get("things", "n", fmt.Sprint(i)) == nil {
				t.Errorf("round %d: object %d of %d is lost", round, i, promised)
			}
		}
		check(t, n.Store())
		got, _ := n.Store().List("things", "n")
		want = len(got)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
}

// killMe writes until it is killed, and says what was acknowledged.
func killMe(t *testing.T, dir string) {
	from := 0
	fmt.Sscan(os.Getenv("CONSENSUS_TEST_FROM"), &from)
	n, _ := run(t, alone(t, dir), from == 0)
	for i := from; ; i++ {
		if _, err := n.Write(within(t, 20*time.Second), create("n", fmt.Sprint(i), "x")); err != nil {
			t.Fatal(err)
		}
		fmt.Println("written", i)
		if i%25 == 24 {
			if err := n.raft.Load().Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestBootstrapOnce(t *testing.T) {
	dir := filepath.Join(memoryDir(t), "raft")
	if has, err := HasState(dir); has || err != nil {
		t.Errorf("there is state in a folder that does not exist: %v", err)
	}
	n, err := New(alone(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(alone(t, dir)); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("a second opening: %v", err)
	}
	if err := n.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	if err := n.Bootstrap(); err == nil {
		t.Error("it can be bootstrapped twice")
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if has, err := HasState(dir); !has || err != nil {
		t.Errorf("there is no state: %v", err)
	}
}

func TestDamage(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, dir string){
		"log of zeros":   func(t *testing.T, dir string) { overwrite(t, filepath.Join(dir, logFile), make([]byte, 16<<10)) },
		"log of garbage": func(t *testing.T, dir string) { overwrite(t, filepath.Join(dir, logFile), []byte("garbage")) },
		"vote lost":      func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, voteFile)) },
		"vote garbled": func(t *testing.T, dir string) {
			overwrite(t, filepath.Join(dir, voteFile), []byte(strings.Repeat("x", 2*voteSlot)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(memoryDir(t), "raft")
			n, stop := run(t, alone(t, dir), true)
			if _, err := n.Write(within(t, 20*time.Second), create("n", "a", "1")); err != nil {
				t.Fatal(err)
			}
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			damage(t, dir)
			n, err := New(alone(t, dir))
			if err == nil {
				n.Close()
				t.Fatal("the damage went unnoticed")
			}
			if !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "damaged") && !strings.Contains(err.Error(), "invalid") {
				t.Errorf("the error is no help: %v", err)
			}
		})
	}
}

func overwrite(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestDamagedSnapshotIsSkipped: the older one and the log are enough.
func TestDamagedSnapshotIsSkipped(t *testing.T) {
	dir := filepath.Join(memoryDir(t), "raft")
	n, stop := run(t, alone(t, dir), true)
	for i := range 20 {
		if _, err := n.Write(within(t, 20*time.Second), create("n", fmt.Sprint(i), "1")); err != nil {
			t.Fatal(err)
		}
		if i%8 == 7 {
			if err := n.raft.Load().Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	states, err := filepath.Glob(filepath.Join(dir, snapsDir, "*", "state.bin"))
	if err != nil || len(states) != 2 {
		t.Fatal(states, err)
	}
	overwrite(t, states[1], []byte("garbage"))
	if err := os.Mkdir(filepath.Join(dir, snapsDir, "1-2-3.tmp"), 0o700); err != nil {
		t.Fatal(err)
	}
	n, _ = run(t, alone(t, dir), false)
	if err := n.Sync(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	if got, _ := n.Store().List("things", ""); len(got) != 20 {
		t.Errorf("%d objects came back", len(got))
	}
	check(t, n.Store())
	if left, _ := filepath.Glob(filepath.Join(dir, snapsDir, "*.tmp")); len(left) > 0 {
		t.Errorf("an unfinished snapshot is still there: %v", left)
	}
}

// TestUnknownEntryStops: a replica does not guess what a newer program wrote.
func TestUnknownEntryStops(t *testing.T) {
	c := alone(t, filepath.Join(memoryDir(t), "raft"))
	n, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- n.Run(t.Context()) }()
	if _, err := n.Write(within(t, 20*time.Second), create("n", "a", "1")); err != nil {
		t.Fatal(err)
	}
	n.raft.Load().Apply([]byte{entryVersion + 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}, time.Second)
	select {
	case err = <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("it goes on")
	}
	if err == nil || !strings.Contains(err.Error(), "newer conclave") {
		t.Errorf("it ends with %v", err)
	}
	if n.Store().Get("things", "n", "a") == nil {
		t.Error("reads are gone too")
	}
	check(t, n.Store())
}

// TestDiskFull fills a small file system under the log.
func TestDiskFull(t *testing.T) {
	mount := t.TempDir()
	if err := syscall.Mount("tmpfs", mount, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("a small file system is needed: mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(mount, 0); err != nil {
			t.Error(err)
		}
	})
	n, stop := run(t, alone(t, filepath.Join(mount, "raft")), true)
	if _, err := n.Write(within(t, 20*time.Second), create("n", "before", "1")); err != nil {
		t.Fatal(err)
	}
	ballast, err := os.Create(filepath.Join(mount, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(ballast, zeros{}); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	// The log has some free pages of its own.
	var last error
	for i := range 1000 {
		ctx := within(t, 20*time.Second)
		if _, last = n.Write(ctx, create("n", fmt.Sprint("big", i), strings.Repeat("x", 100_000))); last != nil {
			break
		}
	}
	if !errors.Is(last, ErrDiskFull) {
		t.Fatalf("on a full disk a write says %v", last)
	}
	if n.Store().Get("things", "n", "before") == nil {
		t.Error("reads are gone")
	}
	if !errors.Is(n.Status().DiskError, ErrDiskFull) {
		t.Error("the status does not say so")
	}
	// Space again: it goes on by itself.
	if err := errors.Join(ballast.Truncate(0), ballast.Close()); err != nil {
		t.Fatal(err)
	}
	var back error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		if _, back = n.Write(within(t, 20*time.Second), update("n", "before", "2")); !errors.Is(back, ErrDiskFull) {
			break
		}
	}
	if back != nil {
		t.Errorf("with space again a write says %v", back)
	}
	check(t, n.Store())
	if err := stop(); err != nil {
		t.Error(err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestVotesSurviveTornWrites(t *testing.T) {
	path := filepath.Join(memoryDir(t), voteFile)
	v, err := openVote(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.GetUint64([]byte("CurrentTerm")); err == nil || err.Error() != "not found" {
		t.Errorf("a new store says %v", err)
	}
	for term := range uint64(20) {
		if err := v.SetUint64([]byte("CurrentTerm"), term+1); err != nil {
			t.Fatal(err)
		}
		if err := v.Set([]byte("LastVoteCand"), []byte(fmt.Sprint("node", term))); err != nil {
			t.Fatal(err)
		}
		v.file.Close()
		// The write after this one was cut off in the middle of its slot.
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		copy(b[(v.seq+1)%2*voteSlot:][:20], "torn torn torn torn.")
		overwrite(t, path, b)
		if v, err = openVote(path); err != nil {
			t.Fatal(err)
		}
		got, err := v.GetUint64([]byte("CurrentTerm"))
		who, whoErr := v.Get([]byte("LastVoteCand"))
		if err != nil || whoErr != nil || got != term+1 || string(who) != fmt.Sprint("node", term) {
			t.Fatalf("term %d came back as %d, %s: %v, %v", term+1, got, who, err, whoErr)
		}
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.SetUint64([]byte("CurrentTerm"), 20); err != nil || v.seq == 0 {
		t.Fatal(err)
	}
	if after, err := os.Stat(path); err != nil || !after.ModTime().Equal(before.ModTime()) || after.Size() != 2*voteSlot {
		t.Errorf("writing the same term again touched the disk: %v", err)
	}
	if err := v.Set([]byte("huge"), make([]byte, voteSlot)); err == nil {
		t.Error("it wrote more than a slot")
	}
	v.file.Close()
}

var _ raft.StableStore = (*voteStore)(nil)

// TestGapBehindASnapshot: the process ended between taking a leader's snapshot
// and dropping the log that it made useless.
func TestGapBehindASnapshot(t *testing.T) {
	dir := t.TempDir()
	d, err := openDisk(dir, nil, newRaftLog(testLog(t, "n")))
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(5) {
		if err := d.log.StoreLog(&raft.Log{Index: i + 1, Term: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.vote.SetUint64([]byte("CurrentTerm"), 2); err != nil {
		t.Fatal(err)
	}
	_, trans := raft.NewInmemTransport("n")
	defer trans.Close()
	for _, index := range []uint64{3, 9} { // the first leaves the log alone
		sink, err := d.snaps.Create(raft.SnapshotVersionMax, index, 2, raft.Configuration{}, 1, trans)
		if err != nil {
			t.Fatal(err)
		}
		if err := sink.Close(); err != nil {
			t.Fatal(err)
		}
		if err := d.close(); err != nil {
			t.Fatal(err)
		}
		if d, err = openDisk(dir, nil, newRaftLog(testLog(t, "n"))); err != nil {
			t.Fatal(err)
		}
		want := uint64(5)
		if index > want {
			want = 0
		}
		if last, err := d.log.LastIndex(); err != nil || last != want {
			t.Errorf("with a snapshot at %d the log ends at %d, not %d: %v", index, last, want, err)
		}
	}
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
}

// TestEndOfTheLogStaysUntilTheNewOneIsStored: raft removes entries that
// contradict its leader's, and goes on as if they were there if those cannot be
// stored.
func TestEndOfTheLogStaysUntilTheNewOneIsStored(t *testing.T) {
	bolt, err := openBolt(filepath.Join(t.TempDir(), logFile), false)
	if err != nil {
		t.Fatal(err)
	}
	defer bolt.Close()
	var full atomic.Bool
	g, err := newGuardedLog(fullDisk{bolt, &full})
	if err != nil {
		t.Fatal(err)
	}
	store := func(term uint64, indexes ...uint64) error {
		var logs []*raft.Log
		for _, i := range indexes {
			logs = append(logs, &raft.Log{Index: i, Term: term, Type: raft.LogNoop})
		}
		return g.StoreLogs(logs)
	}
	terms := func() (all []uint64) {
		last, err := g.LastIndex()
		if err != nil {
			t.Fatal(err)
		}
		for i := uint64(1); i <= last; i++ {
			var l raft.Log
			if err := g.GetLog(i, &l); err != nil && !errors.Is(err, raft.ErrLogNotFound) {
				t.Fatal(err)
			}
			all = append(all, l.Term) // 0: not there
		}
		return all
	}
	expect := func(when string, want ...uint64) {
		t.Helper()
		if got := terms(); !slices.Equal(got, want) {
			t.Errorf("%s the terms are %v, not %v", when, got, want)
		}
	}
	remove := func(low, high uint64) {
		t.Helper()
		if err := g.DeleteRange(low, high); err != nil {
			t.Fatal(err)
		}
	}
	remove(0, 3) // there is nothing yet
	if err := store(1, 1, 2, 3, 4, 5); err != nil {
		t.Fatal(err)
	}
	full.Store(true)
	remove(4, 5)
	if err := store(2, 4); err == nil {
		t.Error("a full disk stores entries")
	}
	expect("after a failure", 1, 1, 1, 1, 1)
	remove(5, 5)
	if err := store(2, 5); err == nil {
		t.Error("a full disk stores entries")
	}
	remove(3, 5)
	if err := store(2, 3); err == nil {
		t.Error("a full disk stores entries")
	}
	expect("after three failures", 1, 1, 1, 1, 1)
	full.Store(false)
	remove(5, 5)
	if err := store(3, 5, 6); err != nil {
		t.Fatal(err)
	}
	expect("when there is room again", 1, 1, 1, 1, 3, 3)
	remove(6, 6)
	if err := store(4, 6); err != nil {
		t.Fatal(err)
	}
	remove(1, 2)
	expect("after a compaction", 0, 0, 1, 1, 3, 4)
	remove(3, 6) // a snapshot took the place of all
	if err := store(4, 10); err != nil {
		t.Fatal(err)
	}
	expect("after a snapshot", 0, 0, 0, 0, 0, 0, 0, 0, 0, 4)
}
