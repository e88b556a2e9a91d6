package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A volume in mode Block is a file, and in use a loop device of it: attached when
// it is staged and detached when it is unstaged, by whichever process of this
// driver there is then. A device is known by the file that is behind it.

const (
	loopMajor    = 7
	controlMajor = 10
	controlMinor = 237
)

// node is the path of a device node, made where there is none: a container's
// /dev has the devices that there were when it began.
func node(name string, kind uint32, major, minor int) (string, error) {
	path := filepath.Join("/dev", name)
	err := unix.Mknod(path, kind|0o660, int(unix.Mkdev(uint32(major), uint32(minor))))
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("make the device node %s: %w", path, err)
	}
	return path, nil
}

func loopNode(n int) (string, error) {
	return node(fmt.Sprintf("loop%d", n), unix.S_IFBLK, loopMajor, n)
}

// loopOf finds the device of a file; it is empty if there is none.
func loopOf(file string) (device string, err error) {
	var of unix.Stat_t
	if err := unix.Stat(file, &of); err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	all, err := filepath.Glob("/sys/block/loop*/loop") // those in use
	if err != nil {
		return "", err
	}
	for _, dir := range all {
		var n int
		if _, err := fmt.Sscanf(filepath.Base(filepath.Dir(dir)), "loop%d", &n); err != nil {
			continue
		}
		path, err := loopNode(n)
		if err != nil {
			return "", err
		}
		if info, err := statusOf(path); err == nil && info.Device == of.Dev && info.Inode == of.Ino { // it may have gone meanwhile
			return path, nil
		}
	}
	return "", nil
}

func statusOf(device string) (*unix.LoopInfo64, error) {
	f, err := os.Open(device)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return unix.IoctlLoopGetStatus64(int(f.Fd()))
}

// attach makes a device of a file, once.
func attach(file string, readonly bool) error {
	if device, err := loopOf(file); device != "" || err != nil {
		return err
	}
	control, err := node("loop-control", unix.S_IFCHR, controlMajor, controlMinor)
	if err != nil {
		return err
	}
	mode, flags := os.O_RDWR, uint32(0)
	if readonly {
		mode, flags = os.O_RDONLY, unix.LO_FLAGS_READ_ONLY
	}
	backing, err := os.OpenFile(file, mode, 0)
	if err != nil {
		return err
	}
	defer backing.Close()
	for {
		n, err := free(control)
		if err != nil {
			return fmt.Errorf("find a free loop device: %w", err)
		}
		path, err := loopNode(n)
		if err != nil {
			return err
		}
		device, err := os.OpenFile(path, mode, 0)
		if err != nil {
			return err
		}
		err = unix.IoctlLoopConfigure(int(device.Fd()), &unix.LoopConfig{Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{Flags: flags}})
		device.Close()
		if !errors.Is(err, unix.EBUSY) { // somebody else was faster
			return err
		}
	}
}

func free(control string) (int, error) {
	f, err := os.OpenFile(control, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return unix.IoctlRetInt(int(f.Fd()), unix.LOOP_CTL_GET_FREE)
}

// detach takes the device of a file away, and resize makes it as large as the
// file has become. A file without one needs neither.
func detach(file string) error { return control(file, unix.LOOP_CLR_FD) }
func resize(file string) error { return control(file, unix.LOOP_SET_CAPACITY) }

func control(file string, request uint) error {
	path, err := loopOf(file)
	if errors.Is(err, fs.ErrNotExist) || path == "" && err == nil {
		return nil
	}
	if err != nil {
		return err
	}
	device, err := os.Open(path)
	if err != nil {
		return err
	}
	defer device.Close()
	return unix.IoctlSetInt(int(device.Fd()), request, 0)
}

// flush brings what was written to the device of a file into the file.
func flush(file string) error {
	path, err := loopOf(file)
	if err != nil || path == "" {
		return err
	}
	device, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(device.Sync(), device.Close())
}
