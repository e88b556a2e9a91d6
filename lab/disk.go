package lab

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"unsafe"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// A host's data folder is a folder of this machine, unless the lab's hosts have
// disks of a size: then it is a file system in a file, which can be full without
// that of this machine being so.

// ErrNoDisk says that the lab's hosts have no disks of their own.
var ErrNoDisk = errors.New("the hosts share this machine's disk: make the lab with --disk-size to fill one alone")

func (l *Lab) diskPath(h *Host) string { return filepath.Join(l.dir, h.Name, "disk.ext4") }

// mountDisk mounts a host's disk at its data folder, and makes it first where
// there is none. After a restart of this machine it is only mounted.
func (l *Lab) mountDisk(h *Host) error {
	if mounted, err := mountPoint(l.DataDir(h)); mounted || err != nil {
		return err
	}
	path := l.diskPath(h)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := l.makeDisk(path); err != nil {
			return errors.Join(err, os.Remove(path))
		}
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	loop, err := attach(file)
	if err != nil {
		return err
	}
	defer loop.Close()
	return unix.Mount(loop.Name(), l.DataDir(h), "ext4", unix.MS_NOATIME, "")
}

func (l *Lab) makeDisk(path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(file.Truncate(l.DiskSize), file.Close()); err != nil {
		return err
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-m", "0", path).CombinedOutput(); err != nil {
		return fmt.Errorf("make a file system: %w: %s (mkfs.ext4 is in the package e2fsprogs)", err, out)
	}
	return nil
}

// mountPoint says whether a folder is on another file system than its parent.
func mountPoint(dir string) (bool, error) {
	var own, parent unix.Stat_t
	if err := errors.Join(unix.Stat(dir, &own), unix.Stat(filepath.Dir(dir), &parent)); err != nil {
		return false, fmt.Errorf("%s: %w", dir, err)
	}
	return own.Dev != parent.Dev, nil
}

// attach makes a block device of a file. The device goes when nobody uses it any
// more.
func attach(file *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("loop devices: %w", err)
	}
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("loop device: %w", err)
		}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{Fd: uint32(file.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}})
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) { // somebody else was faster
			return nil, fmt.Errorf("%s: %w", loop.Name(), err)
		}
	}
}

func (l *Lab) removeDisk(h *Host) error {
	err := unix.Unmount(l.DataDir(h), unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // it is not mounted
		return nil
	}
	return err
}

// ballast is the file that fills a disk.
func (l *Lab) ballast(h *Host) string { return filepath.Join(l.DataDir(h), ".lab-ballast") }

// FillDisk leaves no room on a host's disk: ErrNoDisk.
func (l *Lab) FillDisk(name string) error {
	h, err := l.Host(name)
	if err != nil {
		return err
	}
	if l.DiskSize == 0 {
		return ErrNoDisk
	}
	file, err := os.OpenFile(l.ballast(h), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("host %s: fill its disk: %w", h.Name, err)
	}
	defer file.Close()
	size := int64(0)
	for chunk := l.DiskSize; chunk >= 4096; {
		switch err := unix.Fallocate(int(file.Fd()), 0, size, chunk); {
		case err == nil:
			size += chunk
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOSPC):
			chunk /= 2
		default:
			return fmt.Errorf("host %s: fill its disk: %w", h.Name, err)
		}
	}
	return nil
}

// FreeDisk takes back what FillDisk did.
func (l *Lab) FreeDisk(name string) error {
	h, err := l.Host(name)
	if err != nil {
		return err
	}
	if err := os.Remove(l.ballast(h)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("host %s: free its disk: %w", h.Name, err)
	}
	return nil
}

// ErrNoLog says that a host keeps no log: its node is no master.
var ErrNoLog = errors.New("it keeps no log: its node is no master")

// CorruptLog overwrites the newest entry of the log that a host's conclave kept,
// and what follows it to the end of its page, with noise, as a power cut may
// leave it. Conclave must not be running: ErrNoLog.
func (l *Lab) CorruptLog(name string) error {
	h, err := l.Host(name)
	if err != nil {
		return err
	}
	if h.Daemon.alive() {
		return fmt.Errorf("conclave runs on host %s: stop it before its log is damaged", h.Name)
	}
	if err := corruptBolt(filepath.Join(l.DataDir(h), "raft", "log.db")); err != nil {
		return fmt.Errorf("host %s: damage its log: %w", h.Name, err)
	}
	return nil
}

func corruptBolt(path string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return ErrNoLog
	}
	from, to, err := lastEntry(path)
	if err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	noise := make([]byte, to-from)
	_, _ = rand.Read(noise) // never fails
	_, err = file.WriteAt(noise, from)
	return errors.Join(err, file.Sync(), file.Close())
}

// lastEntry is where the log's newest entry begins in the file, and where its
// page ends.
func lastEntry(path string) (from, to int64, err error) {
	db, err := bbolt.Open(path, 0, &bbolt.Options{ReadOnly: true})
	if err != nil {
		return 0, 0, err
	}
	defer db.Close()
	err = db.View(func(tx *bbolt.Tx) error {
		logs := tx.Bucket([]byte("logs"))
		if logs == nil {
			return ErrNoLog
		}
		_, value := logs.Cursor().Last()
		if len(value) == 0 {
			return ErrNoLog
		}
		// bbolt hands out the file itself, mapped.
		from = int64(uintptr(unsafe.Pointer(unsafe.SliceData(value))) - db.Info().Data)
		page := int64(db.Info().PageSize)
		to = (from + int64(len(value)) + page - 1) / page * page
		return nil
	})
	return from, to, err
}
