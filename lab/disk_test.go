package lab

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// TestDisk fills one host's own disk, and no other's.
func TestDisk(t *testing.T) {
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip(err)
	}
	var data string
	t.Cleanup(func() { // after the lab's own
		if _, err := os.Stat(data); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the disk is left: %v", err)
		}
	})
	l := newLab(t, 0)
	if err := l.FillDisk("1"); err == nil {
		t.Error("a host that is not there was filled")
	}
	l.DiskSize = 16 << 20
	if err := l.save(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := l.Add(); err != nil {
			t.Fatal(err)
		}
	}
	data = l.DataDir(l.Hosts[0])
	write := func(host int) error {
		h := l.Hosts[host]
		return os.WriteFile(filepath.Join(l.DataDir(h), "file"), make([]byte, 1<<20), 0o600)
	}
	if err := l.FillDisk("1"); err != nil {
		t.Fatal(err)
	}
	if err := write(0); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("writing to a full disk: %v", err)
	}
	if err := write(1); err != nil {
		t.Error(err)
	}
	if err := l.FreeDisk("1"); err != nil {
		t.Fatal(err)
	}
	if err := write(0); err != nil {
		t.Error(err)
	}
	// What is on it outlives a power cut.
	if err := l.PowerOff("1"); err != nil {
		t.Fatal(err)
	}
	if err := l.Boot("1", netip.Addr{}); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(l.DataDir(l.Hosts[0]), "file")); err != nil || info.Size() != 1<<20 {
		t.Errorf("after a power cut: %v (%v)", info, err)
	}
}

func TestFillNeedsDisk(t *testing.T) {
	l := newLab(t, 1)
	if err := l.FillDisk("1"); !errors.Is(err, ErrNoDisk) {
		t.Error(err)
	}
}

// TestCorruptBolt damages the newest entry and no other.
func TestCorruptBolt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.db")
	if err := corruptBolt(path); !errors.Is(err, ErrNoLog) {
		t.Errorf("without a log: %v", err)
	}
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	const entries = 200
	entry := slices.Repeat([]byte("entry"), 100)
	key := func(i int) []byte { return []byte{0, byte(i)} }
	err = db.Update(func(tx *bbolt.Tx) error {
		logs, err := tx.CreateBucket([]byte("logs"))
		for i := range entries {
			err = errors.Join(err, logs.Put(key(i), entry))
		}
		return err
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if err := corruptBolt(path); err != nil {
		t.Fatal(err)
	}
	if db, err = bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true}); err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.View(func(tx *bbolt.Tx) error {
		for i := range entries {
			if same := slices.Equal(tx.Bucket([]byte("logs")).Get(key(i)), entry); same != (i < entries-1) {
				t.Errorf("entry %d is as it was: %v", i, same)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
