package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// stamp appends a line to a file every few milliseconds, as long as it runs: a
// name of this very process, and the time since boot, which is the same for all
// hosts of a lab. The lines of several processes do not mix.
func stamp(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("name the file and who stamps")
	}
	f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for first := int64(0); ; {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
			return err
		}
		if first == 0 {
			first = now.Nano()
		}
		if _, err := fmt.Fprintf(f, "%s/%d %d\n", args[1], first, now.Nano()); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
