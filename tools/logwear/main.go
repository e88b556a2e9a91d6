// Command logwear measures what a raft log store does to a disk: bytes that
// reach the device, flushes and time for each entry; and, with -faults, what a
// full disk and a damaged entry do to it. Every store is run on a
// fresh ext4 of its own, in a file on a tmpfs behind a loop device, so that the
// file system's journal counts and nobody else's writes do. It needs root.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	wal "github.com/hashicorp/raft-wal"
	"go.etcd.io/bbolt"
)

type store interface {
	raft.LogStore
	io.Closer
}

func bolt(options bbolt.Options, noSync bool) func(string) (store, error) {
	return func(dir string) (store, error) {
		return raftboltdb.New(raftboltdb.Options{Path: filepath.Join(dir, "log.db"), BoltOptions: &options, NoSync: noSync})
	}
}

func segments(size int) func(string) (store, error) {
	return func(dir string) (store, error) {
		return wal.Open(dir, wal.WithSegmentSize(size), wal.WithLogger(hclog.NewNullLogger()))
	}
}

var stores = []struct {
	name string
	open func(dir string) (store, error)
}{
	{"bolt, as raft-boltdb has it", bolt(bbolt.Options{}, false)},
	{"bolt, map of free pages, written", bolt(bbolt.Options{FreelistType: bbolt.FreelistMapType}, false)},
	{"bolt, map of free pages, not written (ours)", bolt(bbolt.Options{FreelistType: bbolt.FreelistMapType, NoFreelistSync: true}, false)},
	{"ours, pages of 1 KiB", bolt(bbolt.Options{FreelistType: bbolt.FreelistMapType, NoFreelistSync: true, PageSize: 1024}, false)},
	{"ours, pages of 16 KiB", bolt(bbolt.Options{FreelistType: bbolt.FreelistMapType, NoFreelistSync: true, PageSize: 16384}, false)},
	{"ours, never synced", bolt(bbolt.Options{FreelistType: bbolt.FreelistMapType, NoFreelistSync: true}, true)},
	{"raft-wal, segments of 64 MiB", segments(64 << 20)},
	{"raft-wal, segments of 8 MiB", segments(8 << 20)},
	{"raft-wal, segments of 1 MiB", segments(1 << 20)},
}

type figures struct {
	device, process int64 // bytes written
	flushes         int64
}

// load is what is written.
type load struct {
	entries, batches, size, threshold, trailing, preload int
}

func main() {
	var l load
	flag.IntVar(&l.entries, "entries", 4000, "entries that come alone")
	flag.IntVar(&l.batches, "batches", 500, "batches of 16 entries")
	flag.IntVar(&l.size, "size", 900, "bytes of an entry")
	flag.IntVar(&l.threshold, "threshold", 4096, "entries between two compactions")
	flag.IntVar(&l.trailing, "trailing", 8192, "entries that a compaction leaves")
	flag.IntVar(&l.preload, "preload", 12000, "entries that are there before")
	broken := flag.Bool("faults", false, "tell instead what each store does with a full disk and with a damaged entry")
	stage := flag.String("stage", "", "see -store")
	one := flag.Int("store", -1, "measure only this store, in -dir on -device (for this program's own use)")
	dir := flag.String("dir", "", "see -store")
	device := flag.String("device", "", "see -store")
	flag.Parse()
	var err error
	switch {
	case *one >= 0 && *broken:
		found, err := faults(*stage, stores[*one].open, *dir)
		if err != nil {
			found = "it gives up: " + err.Error() // an answer, too
		}
		fmt.Printf("%s | %s\n", stores[*one].name, found)
	case *one >= 0:
		err = l.measure(stores[*one].name, stores[*one].open, *dir, *device)
	default:
		size := "1G"
		if *broken {
			size = "160M"
		} else {
			fmt.Println("STORE | ENTRIES | DEVICE, EACH | PROCESS, EACH | FLUSHES, EACH | TIME, EACH | ON DISK")
		}
		for i := 0; i < len(stores) && err == nil; i++ {
			err = onFreshDisk(i, size, *broken)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "logwear:", err)
		os.Exit(1)
	}
}

// onFreshDisk runs one store in a process of its own, whose end closes all
// files: raft-wal's Close does not.
func onFreshDisk(i int, size string, small bool) (err error) {
	base, err := os.MkdirTemp("/dev/shm", "logwear-")
	if err != nil {
		return err
	}
	undo := func(f func() error) { err = errors.Join(err, f()) }
	defer undo(func() error { return os.RemoveAll(base) })
	image, dir := filepath.Join(base, "disk"), filepath.Join(base, "mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	device, err := run("sh", "-ec", "truncate -s "+size+" "+image+"; mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 "+image+"; losetup --find --show "+image)
	if err != nil {
		return err
	}
	defer undo(func() error { _, err := run("losetup", "-d", device); return err })
	if _, err := run("mount", "-o", "noatime", device, dir); err != nil {
		return err
	}
	defer undo(func() error { _, err := run("umount", dir); return err })
	if small {
		if _, err := run("fallocate", "-l", "8M", filepath.Join(dir, ballastFile)); err != nil {
			return err
		}
	}
	rounds := []string{""}
	if small {
		rounds = stages
	}
	for _, stage := range rounds {
		child := exec.Command("/proc/self/exe", append(os.Args[1:], "-store", strconv.Itoa(i), "-dir", dir, "-device", device, "-stage", stage)...)
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
		if err := child.Run(); err != nil {
			return err
		}
	}
	return nil
}

func (l load) measure(name string, open func(string) (store, error), dir, device string) error {
	s, err := open(dir)
	if err != nil {
		return err
	}
	random := rand.NewChaCha8([32]byte{1})
	next, first := uint64(1), uint64(1)
	add := func(n int) error {
		logs := make([]*raft.Log, n)
		for i := range logs {
			data := make([]byte, l.size)
			if _, err := random.Read(data); err != nil {
				return err
			}
			logs[i] = &raft.Log{Index: next, Term: 2, Data: data, AppendedAt: time.Now()}
			next++
		}
		if err := s.StoreLogs(logs); err != nil {
			return err
		}
		if int(next-first) <= l.trailing+l.threshold {
			return nil
		}
		keep := next - uint64(l.trailing)
		err := s.DeleteRange(first, keep-1)
		first = keep
		return err
	}
	for n := 0; n < l.preload; n += 64 {
		if err := add(64); err != nil {
			return err
		}
	}
	for _, kind := range []struct {
		name       string
		times, per int
	}{{"alone", l.entries, 1}, {"by 16", l.batches, 16}} {
		if _, err := run("sync", "-f", dir); err != nil {
			return err
		}
		before, err := look(device)
		if err != nil {
			return err
		}
		start := time.Now()
		for range kind.times {
			if err := add(kind.per); err != nil {
				return err
			}
		}
		took := time.Since(start)
		if _, err := run("sync", "-f", dir); err != nil {
			return err
		}
		after, err := look(device)
		if err != nil {
			return err
		}
		used, err := run("du", "-sk", dir)
		if err != nil {
			return err
		}
		kib, _, _ := strings.Cut(used, "\t")
		each := int64(kind.times * kind.per)
		fmt.Printf("%s | %s | %d B | %d B | %.2f | %d µs | %s KiB\n", name, kind.name, (after.device-before.device)/each,
			(after.process-before.process)/each, float64(after.flushes-before.flushes)/float64(each), took.Microseconds()/each, kib)
	}
	return s.Close()
}

// look reads what the device and this process have written so far.
func look(device string) (figures, error) {
	stat, err := os.ReadFile("/sys/block/" + filepath.Base(device) + "/stat")
	if err != nil {
		return figures{}, err
	}
	// Documentation/block/stat.rst: sectors written are the 7th field, flushes the 16th.
	f := strings.Fields(string(stat))
	if len(f) < 16 {
		return figures{}, fmt.Errorf("%s has %d fields", device, len(f))
	}
	io, err := os.ReadFile("/proc/self/io")
	if err != nil {
		return figures{}, err
	}
	_, rest, _ := strings.Cut(string(io), "\nwrite_bytes: ")
	rest, _, _ = strings.Cut(rest, "\n")
	return figures{device: 512 * number(f[6]), flushes: number(f[15]), process: number(rest)}, nil
}

func number(s string) int64 {
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	if err != nil {
		panic(err) // the kernel writes numbers here
	}
	return n
}

func run(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}
