package lab

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The wall clock has no namespace. But a program asks for it by a function that
// the kernel maps into its memory (the vDSO), and this process may write there:
// it puts another function in that one's place, which asks the kernel by a
// system call and adds the host's skew to the wall clock, and to no other clock.
// What this does not reach: the host's pods, times that the kernel itself puts
// on files, and programs that never ask the vDSO.

// askClock is that function, by architecture; the skew in seconds follows it at
// an address divisible by 8.
var askClock = map[string][]byte{
	"amd64": {
		0xb8, 0xe4, 0, 0, 0, // mov $228, %eax (clock_gettime)
		0x0f, 0x05, // syscall
		0x85, 0xff, // test %edi, %edi (0 is CLOCK_REALTIME)
		0x75, 0x0a, // jne to the end
		0x48, 0x8b, 0x15, 0x0e, 0, 0, 0, // mov 14(%rip), %rdx (the skew, at 32)
		0x48, 0x01, 0x16, // add %rdx, (%rsi)
		0xc3, // ret
		0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc,
	},
}

// ErrNoSkew says that this machine cannot make a host's clock wrong.
var ErrNoSkew = errors.New("wall clocks can only be made wrong on amd64")

// CanSkew says whether Skew works on this machine.
func CanSkew() bool { return askClock[runtime.GOARCH] != nil }

// Skew makes the wall clock of a host's conclave wrong by whole seconds, from
// now on and when it is started again; zero makes it right. The steady clocks go
// on as they are, as when somebody sets a machine's time: ErrNoSkew.
func (l *Lab) Skew(name string, by time.Duration) error {
	if !CanSkew() {
		return ErrNoSkew
	}
	return l.update(func() error {
		h, err := l.Host(name)
		if err != nil {
			return err
		}
		h.Skew = int64(by / time.Second)
		if !h.Daemon.alive() {
			return nil
		}
		return h.applySkew()
	})
}

// applySkew gives the host's conclave the host's wall clock.
func (h *Host) applySkew() error {
	if err := h.Daemon.skew(h.Skew); err != nil {
		return fmt.Errorf("host %s: set the clock: %w", h.Name, err)
	}
	return nil
}

const skewTries = 100

// skew changes the process while none of its threads is in the vDSO.
func (p process) skew(seconds int64) error {
	_, state, err := stat(p.PID)
	if err != nil {
		return err
	}
	if state != 'T' { // else it is paused, and stays so
		defer p.signal(unix.SIGCONT)
	}
	for range skewTries {
		if err := p.signal(unix.SIGSTOP); err != nil {
			return err
		}
		at, err := p.standsAt()
		if err != nil {
			return err
		}
		// Only now: one that was just started may have had another memory.
		first, last, err := p.vdso()
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(at, func(a uint64) bool { return a >= first && a < last }) {
			return p.writeClock(first, last, seconds)
		}
		if err := p.signal(unix.SIGCONT); err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return errors.New("its threads never leave the clock alone")
}

// vdso is where the kernel's own functions are in the process's memory.
func (p process) vdso() (first, last uint64, err error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", p.PID))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(raw)) {
		if !strings.HasSuffix(strings.TrimSpace(line), "[vdso]") {
			continue
		}
		if _, err := fmt.Sscanf(line, "%x-%x", &first, &last); err != nil {
			return 0, 0, fmt.Errorf("the memory map's line %q: %w", line, err)
		}
		return first, last, nil
	}
	return 0, 0, errors.New("the kernel maps no clock into its memory")
}

// standsAt waits until all threads stand still, and returns where.
func (p process) standsAt() (at []uint64, err error) {
	for range 10_000 {
		still := true
		at = at[:0]
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", p.PID))
		if err != nil || len(tasks) == 0 {
			return nil, errors.Join(err, errors.New("the process has ended"))
		}
		for _, task := range tasks {
			raw, err := os.ReadFile(filepath.Join(task, "syscall"))
			fields := strings.Fields(string(raw))
			if err != nil || len(fields) == 0 || fields[0] == "running" {
				still = false
				break
			}
			instruction, err := strconv.ParseUint(fields[len(fields)-1], 0, 64)
			if err != nil {
				return nil, fmt.Errorf("%s/syscall: %w", task, err)
			}
			at = append(at, instruction)
			if _, state, err := statOf(task); err != nil || state != 'T' {
				still = false
				break
			}
		}
		if still {
			return at, nil
		}
		time.Sleep(time.Millisecond)
	}
	return nil, errors.New("it does not stop")
}

// writeClock puts our function in the place of the kernel's.
func (p process) writeClock(first, last uint64, seconds int64) error {
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", p.PID), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer memory.Close()
	image := make([]byte, last-first)
	if _, err := memory.ReadAt(image, int64(first)); err != nil {
		return fmt.Errorf("read its clock function: %w", err)
	}
	file, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return fmt.Errorf("its clock function: %w", err)
	}
	symbols, err := file.DynamicSymbols()
	if err != nil {
		return fmt.Errorf("its clock function: %w", err)
	}
	for _, s := range symbols {
		if s.Name != "__vdso_clock_gettime" {
			continue
		}
		code := append([]byte(nil), askClock[runtime.GOARCH]...)
		code = binary.LittleEndian.AppendUint64(code, uint64(seconds))
		if s.Size < uint64(len(code)) {
			return fmt.Errorf("its clock function has only %d bytes", s.Size)
		}
		if _, err := memory.WriteAt(code, int64(first+s.Value)); err != nil {
			return fmt.Errorf("write its clock function: %w", err)
		}
		return nil
	}
	return errors.New("it has no clock function that we know")
}
