//go:build linux

package main

import (
	"errors"

	"golang.org/x/sys/unix"
)

// readFD reads once from a non-blocking descriptor. A terminal whose other
// side has closed answers EIO: that is its end.
func readFD(fd int, buf []byte) (int, error) {
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EIO):
			return 0, nil
		case err != nil:
			return 0, err
		}
		return n, nil
	}
}

func again(err error) bool {
	return errors.Is(err, unix.EAGAIN)
}
