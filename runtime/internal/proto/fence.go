package proto

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// FenceFile is the name of a node's fence in the engine's run folder. No pod
// has such an ID.
const FenceFile = ".fence"

// Fence is a page in memory that the engine shares with the processes of all
// fenced pods: until when the node may run what must not run twice, and the
// epoch in which it may. The epoch grows each time that the fence was down in
// between, for whatever reason nobody looked: what was started in an older
// epoch must not run on, and what was allowed in an older epoch must not start.
//
// There is one writer. It stores a new epoch before the instant that goes with
// it, and readers read them the other way round: an instant is never taken for
// an older epoch's.
type Fence struct{ page []byte }

const fenceSize = 4096

// OpenFence maps a fence, for the writer making it if it is missing: that one
// is down.
func OpenFence(path string, writer bool) (*Fence, error) {
	flags, protection := os.O_RDONLY, unix.PROT_READ
	if writer {
		flags, protection = os.O_RDWR|os.O_CREATE, unix.PROT_READ|unix.PROT_WRITE
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if writer {
		err = f.Truncate(fenceSize)
	} else if st, statErr := f.Stat(); statErr != nil || st.Size() != fenceSize {
		err = fmt.Errorf("%s is no fence", path) // reading beyond its end would be a SIGBUS
	}
	if err != nil {
		return nil, err
	}
	page, err := unix.Mmap(int(f.Fd()), 0, fenceSize, protection, unix.MAP_SHARED)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return &Fence{page}, nil
}

// Close unmaps the page.
func (f *Fence) Close() error { return unix.Munmap(f.page) }

func (f *Fence) word(i int) *uint64 { return (*uint64)(unsafe.Pointer(&f.page[8*i])) }

// Read returns until when, as time since boot, the node may run what must not
// run twice, and in which epoch.
func (f *Fence) Read() (until time.Duration, epoch uint64) {
	until = time.Duration(atomic.LoadUint64(f.word(0)))
	return until, atomic.LoadUint64(f.word(1))
}

// Up says whether the fence holds, and the epoch.
func (f *Fence) Up() (epoch uint64, up bool) {
	until, epoch := f.Read()
	return epoch, SinceBoot() < until
}

// Hold moves the fence on, in a new epoch if it was down before now. Only the
// writer calls it, one call at a time.
func (f *Fence) Hold(until time.Duration) (newEpoch bool) {
	now := SinceBoot()
	before, epoch := f.Read()
	if until <= now || until <= before {
		return false
	}
	if newEpoch = before <= now; newEpoch {
		atomic.StoreUint64(f.word(1), epoch+1)
	}
	atomic.StoreUint64(f.word(0), uint64(until))
	return newEpoch
}

// SinceBoot is CLOCK_BOOTTIME, which goes on while the machine is suspended.
func SinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("the kernel has no CLOCK_BOOTTIME: " + err.Error()) // Linux has it since 2.6.39
	}
	return time.Duration(ts.Nano())
}
