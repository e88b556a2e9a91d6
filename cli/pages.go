package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mappedAtRest is how many bytes of files may be mapped before unmapProgram is
// worth its while.
const mappedAtRest = 16 << 20

// unmapProgram takes the pages of the program's code and constants out of this
// process' memory. Most of them were used at its start, or by a burst, for the
// last time. They stay in the kernel's cache of files for as long as nobody
// needs the room more, which the kernel could not tell as long as we had them;
// those that are used come back from there by a fault each, sixteen at a time.
func unmapProgram() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer maps.Close()
	all, err := programPages(maps, exe)
	for _, m := range all {
		if _, _, e := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED); e != 0 {
			err = errors.Join(err, os.NewSyscallError("madvise", e))
		}
	}
	return err
}

type addresses struct{ start, end uintptr }

// programPages finds in a list of mappings (proc_pid_maps(5)) those of a file
// that cannot have been changed: to give a changed page back is to lose it.
func programPages(maps io.Reader, file string) (all []addresses, err error) {
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		// 00400000-0198b000 r-xp 00000000 fe:00 10806437      /usr/bin/conclave
		where, rest, _ := strings.Cut(lines.Text(), " ")
		protection, _, _ := strings.Cut(rest, " ")
		_, name, named := strings.Cut(rest, "/")
		if !named || "/"+name != file || protection != "r-xp" && protection != "r--p" {
			continue
		}
		from, to, _ := strings.Cut(where, "-")
		start, errStart := strconv.ParseUint(from, 16, strconv.IntSize)
		end, errEnd := strconv.ParseUint(to, 16, strconv.IntSize)
		if err := errors.Join(errStart, errEnd); err != nil {
			return nil, fmt.Errorf("read a mapping: %w", err)
		}
		all = append(all, addresses{uintptr(start), uintptr(end)})
	}
	return all, lines.Err()
}

// mappedFiles is how many bytes of files are in this process' memory.
func mappedFiles() (int64, error) {
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(statm))
	if len(fields) < 3 {
		return 0, fmt.Errorf("/proc/self/statm says %q", statm)
	}
	pages, err := strconv.ParseInt(fields[2], 10, 64)
	return pages * int64(os.Getpagesize()), err
}
