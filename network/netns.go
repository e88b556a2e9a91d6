package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// A network namespace belongs to an OS thread, and Go moves goroutines between
// threads. So whatever happens in another namespace happens on a thread of its
// own, which never runs anything else: its goroutine stays locked to it, and
// ending without unlocking ends the thread too. Nothing has to be put back,
// so nothing can fail to be put back.

// onThread runs f on a thread of its own.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		// The first thread of a process cannot end, and /proc/self/ns and
		// /proc/net speak of it: it stays where it is. While it is held here
		// the next goroutine must get another.
		if unix.Gettid() == unix.Getpid() {
			done <- onThread(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

// inNewNamespace makes a network namespace that lives as long as the file that
// it is bound to, and runs f in it. If from is not empty it names one that
// somebody else made for this.
func inNewNamespace(path, from string, f func() error) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return fmt.Errorf("making the folder of network namespaces: %w", err)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o400)
	if err != nil {
		return fmt.Errorf("making the file of a network namespace: %w", err)
	}
	file.Close()
	if from != "" {
		if err = unix.Mount(from, path, "", unix.MS_BIND, ""); err != nil {
			err = fmt.Errorf("binding the network namespace %s to %s: %w", from, path, err)
		} else {
			err = inNamespace(path, f)
		}
		if err != nil {
			return errors.Join(err, removeNamespace(path))
		}
		return nil
	}
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making a network namespace: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("binding a network namespace to %s: %w", path, err)
		}
		return f()
	})
	if err != nil {
		return errors.Join(err, removeNamespace(path))
	}
	return nil
}

// inNamespace runs f in the namespace that a file is bound to.
func inNamespace(path string, f func() error) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("opening a network namespace: %w", err)
	}
	defer file.Close()
	return onThread(func() error {
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering the network namespace %s: %w", path, err)
		}
		return f()
	})
}

// isNamespace says whether a namespace is bound to the file. After a boot the
// file may be there without one.
func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// removeNamespace unbinds a namespace; it ends with its last process. One that
// is not there is no error.
func removeNamespace(path string) error {
	for isNamespace(path) { // twice, if a crash bound it twice
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unbinding the network namespace %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the file of a network namespace: %w", err)
	}
	return nil
}
