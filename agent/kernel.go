package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// watchKernel tells of each process that the kernel has ended because the whole
// node had no memory left, by an event of the Node's, until ctx ends. What ends
// for its container's own limit, that container's status tells.
func (a *Agent) watchKernel(ctx context.Context) {
	f, err := os.OpenFile(a.cfg.KernelLog, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		a.log.Debug("the kernel's log cannot be read, nobody is told of its killing processes for want of memory", "err", err)
		return
	}
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	if _, err := f.Seek(0, io.SeekEnd); err != nil {
		return
	}
	record := make([]byte, 2<<10) // one for each read; a longer one is none of ours
	for {
		n, err := f.Read(record)
		switch {
		case err == nil:
			if name, pid, ok := systemOOM(record[:n]); ok {
				a.node.event(corev1.EventTypeWarning, "SystemOOM", fmt.Sprintf("System OOM encountered, victim process: %s, pid: %d", name, pid))
			}
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EINVAL): // overwritten before it was read, or too long
		default:
			return
		}
	}
}

// systemOOM reads a record of /dev/kmsg that says whom the kernel has killed for
// want of memory in no group in particular. Anybody may write to that log, but
// not in the kernel's name.
func systemOOM(record []byte) (name string, pid int, ok bool) {
	head, text, _ := bytes.Cut(record, []byte(";"))
	text, _, _ = bytes.Cut(text, []byte("\n"))
	priority, _, _ := bytes.Cut(head, []byte(","))
	const kernel, levels = 0, 3 // the facility is above the level's three bits
	if p, err := strconv.Atoi(string(priority)); err != nil || p>>levels != kernel {
		return "", 0, false
	}
	if !bytes.HasPrefix(text, []byte("oom-kill:constraint=CONSTRAINT_NONE,")) {
		return "", 0, false
	}
	at, end := bytes.LastIndex(text, []byte(",task=")), bytes.LastIndex(text, []byte(",pid="))
	if at < 0 || end < at {
		return "", 0, false
	}
	number, _, _ := bytes.Cut(text[end+len(",pid="):], []byte(","))
	pid, err := strconv.Atoi(string(number))
	return string(text[at+len(",task=") : end]), pid, err == nil
}
