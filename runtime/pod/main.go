//go:build linux && cgo

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // device rules, of both versions
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // joins namespaces before Go starts
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"conclave/runtime/internal/proto"
)

func init() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		libcontainer.Init() // execs, or exits
	}
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "conclave-pod:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 3 || os.Args[1] != "serve" {
		return errors.New("this program is started by conclave, as: conclave-pod serve FOLDER")
	}
	limitMemory()
	// libcontainer warns about what we do on purpose, such as a folder of the
	// host as a mount's source; what matters comes back as an error.
	logrus.SetLevel(logrus.ErrorLevel)

	dir := os.Args[2]
	data, err := os.ReadFile(filepath.Join(dir, proto.PodFile))
	if err != nil {
		return err
	}
	var pod proto.Pod
	if err := json.Unmarshal(data, &pod); err != nil {
		return fmt.Errorf("read %s: %w", proto.PodFile, err)
	}
	f := os.NewFile(proto.ListenFD, "listener")
	l, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("take over the listener: %w", err)
	}
	f.Close()
	ul, ok := l.(*net.UnixListener)
	if !ok {
		return fmt.Errorf("the listener is a %T, not a unix socket", l)
	}
	ul.SetUnlinkOnClose(false)

	s, err := newServer(dir, pod)
	if err != nil {
		return err
	}
	return s.serve(ul)
}

// protect asks the kernel not to choose us when it is short of memory: it
// would lose the exit codes, and free next to nothing. It returns the lowest
// score that a container may ask for: a host that is a container itself may
// not lower any.
func protect() (lowest int, err error) {
	const file = "/proc/self/oom_score_adj"
	err = os.WriteFile(file, []byte("-999"), 0o644)
	if err == nil {
		return -1000, nil
	}
	if !errors.Is(err, os.ErrPermission) {
		return 0, err
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

// as does something as another user, in one thread: the sysctls of namespaces
// that belong to a pod's users are for its root, whatever we may do.
func as(user int, f func() error) error {
	if user == 0 {
		return f()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	become := func(user int) error {
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(user), ^uintptr(0)); e != 0 {
			return os.NewSyscallError("setresuid", e)
		}
		return nil
	}
	if err := become(user); err != nil {
		return err
	}
	err := f()
	return errors.Join(err, become(0))
}

// setUp makes what the containers of the pod share. The process is already in
// the pod's namespaces.
func setUp(dir string, pod proto.Pod) (pause *exec.Cmd, err error) {
	if pod.Hostname != "" {
		if err := unix.Sethostname([]byte(pod.Hostname)); err != nil {
			return nil, fmt.Errorf("set host name %q: %w", pod.Hostname, err)
		}
	}
	for k, v := range pod.Sysctls {
		// A name may have its parts separated by slashes where one holds a dot.
		name := k
		if !strings.Contains(k, "/") {
			name = strings.ReplaceAll(k, ".", "/")
		}
		write := func() error {
			return os.WriteFile(filepath.Join("/proc/sys", filepath.Clean("/"+name)), []byte(v), 0o644)
		}
		if err := as(int(pod.IDs), write); err != nil {
			return nil, fmt.Errorf("set sysctl %s: %w", k, err)
		}
	}
	if !pod.HostIPC {
		shm := filepath.Join(dir, proto.ShmDir)
		if err := os.MkdirAll(shm, 0o755); err != nil {
			return nil, err
		}
		if err := unix.Mount("shm", shm, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, fmt.Sprintf("mode=1777,size=64m,uid=%d,gid=%d", pod.IDs, pod.IDs)); err != nil {
			return nil, fmt.Errorf("mount /dev/shm of the pod: %w", err)
		}
	}
	if !pod.ShareProcesses || pod.HostPID || pod.Holder != 0 {
		return nil, nil
	}
	pause = exec.Command("/proc/self/exe", "pause")
	pause.Env = []string{proto.PauseEnv + "=1"}
	pause.Dir = "/"
	pause.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	if err := pause.Start(); err != nil {
		return nil, fmt.Errorf("start the init of the shared process namespace: %w", err)
	}
	// In the pod's cgroup, so that killing that kills it whatever became of us.
	m, err := manager.New(&cgroups.Cgroup{
		Path:      filepath.Join(pod.CgroupPath, "pause"),
		Resources: &cgroups.Resources{SkipDevices: true},
	})
	if err == nil {
		err = m.Apply(pause.Process.Pid)
	}
	if err != nil {
		_ = pause.Process.Kill() // reported: the error that made it useless
		_ = pause.Wait()
		return nil, fmt.Errorf("place the init of the shared process namespace: %w", err)
	}
	return pause, nil
}
