package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a process of this machine, told apart from a later one with the
// same number by its start time (clock ticks since boot, proc(5) field 22).
type process struct {
	PID   int    `json:"pid,omitempty"`
	Start uint64 `json:"start,omitempty"`
}

// identify makes the identity of a running process.
func identify(pid int) (process, error) {
	start, _, err := stat(pid)
	return process{PID: pid, Start: start}, err
}

// stat reads the start time and the state letter of a process.
func stat(pid int) (start uint64, state byte, err error) {
	return statOf(fmt.Sprintf("/proc/%d", pid))
}

// statOf is stat of the process or thread with this folder.
func statOf(dir string) (start uint64, state byte, err error) {
	raw, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return 0, 0, err
	}
	// The command in parentheses may hold anything, so count from its end.
	fields := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:])
	if len(fields) < 20 {
		return 0, 0, fmt.Errorf("%s/stat: %d fields after the name", dir, len(fields))
	}
	start, err = strconv.ParseUint(string(fields[19]), 10, 64)
	return start, fields[0][0], err
}

func (p process) alive() bool {
	if p.PID == 0 {
		return false
	}
	start, state, err := stat(p.PID)
	return err == nil && start == p.Start && state != 'Z' && state != 'X'
}

func (p process) signal(sig unix.Signal) error {
	if !p.alive() {
		return nil
	}
	if err := unix.Kill(p.PID, sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return nil
}

func (p process) kill() { _ = p.signal(unix.SIGKILL) }

// wait returns once the process is gone.
func (p process) wait(limit time.Duration) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) || !p.alive() {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for process %d: %w", p.PID, err)
	}
	defer unix.Close(fd)
	deadline := time.Now().Add(limit)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("process %d is still there after %s", p.PID, limit)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", p.PID, err)
		}
	}
}

// initName is the name by which this binary knows that it is a host's init.
const initName = "conclave-lab-init"

// IsInit says that this process was started to be a host's init: main calls
// Init then, before it does anything else.
func IsInit() bool { return os.Args[0] == initName }

// startInit makes the namespaces of a host and waits until its init stands.
func startInit(host, logPath string) (process, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return process{}, err
	}
	defer log.Close()
	ready, tell, err := os.Pipe()
	if err != nil {
		return process{}, err
	}
	defer ready.Close()
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{initName, host},
		Dir: "/", Stdout: log, Stderr: log, ExtraFiles: []*os.File{tell},
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC,
			Setsid:     true,
		},
	}
	err = cmd.Start()
	tell.Close()
	if err != nil {
		return process{}, fmt.Errorf("make its namespaces: %w", err)
	}
	go cmd.Wait() // a zombie would be left while this process lives
	if _, err := io.ReadFull(ready, make([]byte, 1)); err != nil {
		return process{}, fmt.Errorf("its init failed, see %s", logPath)
	}
	return identify(cmd.Process.Pid)
}

// Init is the first process of a host: it completes the namespaces, then only
// reaps what is orphaned, until it is killed. It returns the exit code of main.
func Init() int {
	ready := os.NewFile(3, "ready")
	host := os.Args[1]
	steps := []struct {
		what string
		do   func() error
	}{
		{"make mounts private", func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") }},
		{"mount /proc", func() error {
			return unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
		}},
		{"set the host name", func() error { return unix.Sethostname([]byte(host)) }},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			fmt.Fprintf(os.Stderr, "host %s: %s: %v\n", host, s.what, err)
			return 1
		}
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGTERM)
	if _, err := ready.Write([]byte{1}); err != nil {
		return 1
	}
	ready.Close()
	for range children {
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if pid <= 0 || err != nil {
				break
			}
		}
	}
	return 0
}

// spawn starts a process inside the host that outlives this one.
func (h *Host) spawn(argv, env []string, output *os.File) (process, error) {
	cmd := &exec.Cmd{Path: argv[0], Args: argv, Env: env, Dir: "/", Stdout: output, Stderr: output,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true}}
	if err := h.start(cmd); err != nil {
		return process{}, err
	}
	go cmd.Wait()
	return identify(cmd.Process.Pid)
}

// exec runs a command inside the host to its end.
func (h *Host) exec(ctx context.Context, argv, env []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	path, err := lookPath(argv[0], env)
	if err != nil {
		return 0, err
	}
	dir, err := os.Getwd() // entering the host's mount namespace would change it
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, path, argv[1:]...)
	cmd.Args[0] = argv[0]
	cmd.Env, cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, dir, stdin, stdout, stderr
	cmd.WaitDelay = time.Second
	if err := h.start(cmd); err != nil {
		return 0, err
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); errors.As(err, &exit) {
		return exit.ExitCode(), ctx.Err()
	} else if err != nil {
		return 0, err
	}
	return 0, nil
}

// lookPath finds a command along the PATH that it will have, which is not this
// process's own: the lab's binary need not be installed to be typed by its name.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return exec.LookPath(name)
	}
	path := ""
	for _, e := range env {
		if value, ok := strings.CutPrefix(e, "PATH="); ok {
			path = value // the last one counts
		}
	}
	for _, dir := range filepath.SplitList(path) {
		if found, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return found, nil
		}
	}
	return "", &exec.Error{Name: name, Err: exec.ErrNotFound}
}

// start runs cmd.Start on a thread that has entered the host's namespaces. The
// thread is never used for anything else: its goroutine ends without unlocking
// it, and the Go runtime ends it then.
func (h *Host) start(cmd *exec.Cmd) error {
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		// A thread may change its mount namespace only if it shares its root
		// and working directory with no other (setns(2)).
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			failed <- fmt.Errorf("host %s: unshare: %w", h.Name, err)
			return
		}
		pidfd, err := unix.PidfdOpen(h.Init.PID, 0)
		if err != nil {
			failed <- fmt.Errorf("host %s: %w", h.Name, err)
			return
		}
		defer unix.Close(pidfd)
		if err := unix.Setns(pidfd, unix.CLONE_NEWNS|unix.CLONE_NEWPID|unix.CLONE_NEWUTS|unix.CLONE_NEWNET|unix.CLONE_NEWIPC); err != nil {
			failed <- fmt.Errorf("host %s: enter its namespaces: %w", h.Name, err)
			return
		}
		failed <- cmd.Start()
	}()
	return <-failed
}
