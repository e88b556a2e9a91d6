package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// SeccompDefault and SeccompLocalhost are what ContainerConfig.Seccomp may
// say: the profile below, or the one in the file whose path follows.
const (
	SeccompDefault   = "runtime/default"
	SeccompLocalhost = "localhost/"
)

// allowed are the system calls that every container may make, in the families
// of man 2. What is not here, and not in the tables below, answers EPERM, or
// ENOSYS if it is newer than the filter's library: programs then fall back.
const allowed = `
	open openat openat2 creat close close_range read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2
	lseek _llseek sendfile sendfile64 copy_file_range splice tee vmsplice readahead fadvise64 fadvise64_64
	access faccessat faccessat2 stat stat64 lstat lstat64 fstat fstat64 fstatat64 newfstatat statx statfs statfs64 fstatfs fstatfs64
	statmount listmount name_to_handle_at
	chmod fchmod fchmodat fchmodat2 chown chown32 fchown fchown32 fchownat lchown lchown32 umask utime utimes futimesat utimensat utimensat_time64
	mkdir mkdirat rmdir mknod mknodat link linkat symlink symlinkat readlink readlinkat unlink unlinkat rename renameat renameat2
	getdents getdents64 getcwd chdir fchdir
	truncate truncate64 ftruncate ftruncate64 fallocate sync syncfs fsync fdatasync sync_file_range flock
	getxattr lgetxattr fgetxattr getxattrat setxattr lsetxattr fsetxattr setxattrat
	listxattr llistxattr flistxattr listxattrat removexattr lremovexattr fremovexattr removexattrat
	dup dup2 dup3 fcntl fcntl64 ioctl pipe pipe2 cachestat
	inotify_init inotify_init1 inotify_add_watch inotify_rm_watch fanotify_mark
	select _newselect pselect6 pselect6_time64 poll ppoll ppoll_time64
	epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait epoll_pwait2 eventfd eventfd2
	io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents io_pgetevents_time64 ioprio_get ioprio_set

	socketcall socketpair bind connect listen accept accept4 shutdown getsockname getpeername getsockopt setsockopt
	send sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg recvmmsg_time64

	brk mmap mmap2 munmap mremap mprotect madvise mincore msync mlock mlock2 mlockall munlock munlockall mseal remap_file_pages
	pkey_alloc pkey_free pkey_mprotect memfd_create memfd_secret membarrier map_shadow_stack process_mrelease

	fork vfork execve execveat exit exit_group wait4 waitid waitpid
	getpid getppid gettid getpgid setpgid getpgrp getsid setsid set_tid_address
	kill tkill tgkill pidfd_open pidfd_send_signal prctl ptrace process_vm_readv process_vm_writev
	getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 getresuid getresuid32 getresgid getresgid32
	setuid setuid32 setgid setgid32 setreuid setreuid32 setregid setregid32 setresuid setresuid32 setresgid setresgid32
	setfsuid setfsuid32 setfsgid setfsgid32 getgroups getgroups32 setgroups setgroups32 capget capset
	getrlimit ugetrlimit setrlimit prlimit64 getrusage getpriority setpriority times
	sched_getaffinity sched_setaffinity sched_getattr sched_setattr sched_getparam sched_setparam sched_getscheduler sched_setscheduler
	sched_get_priority_max sched_get_priority_min sched_rr_get_interval sched_rr_get_interval_time64 sched_yield getcpu
	futex futex_time64 futex_wait futex_wake futex_waitv futex_requeue get_robust_list set_robust_list rseq
	get_thread_area set_thread_area restart_syscall
	seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self
	uname sysinfo getrandom riscv_hwprobe uretprobe

	rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64
	rt_tgsigqueueinfo sigaltstack sigprocmask sigreturn signalfd signalfd4 pause
	alarm getitimer setitimer nanosleep clock_nanosleep clock_nanosleep_time64
	time gettimeofday clock_gettime clock_gettime64 clock_getres clock_getres_time64 adjtimex clock_adjtime clock_adjtime64
	timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64
	timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64

	ipc msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget
	mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink`

// allowedOn are further ones of an architecture.
var allowedOn = map[string]string{
	"amd64": "arch_prctl modify_ldt",
	"arm64": "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
}

// allowedWith are further ones of a capability, without which the kernel would
// refuse most of their uses anyway.
var allowedWith = map[string]string{
	"CAP_BPF":             "bpf",
	"CAP_DAC_READ_SEARCH": "open_by_handle_at",
	"CAP_PERFMON":         "perf_event_open",
	"CAP_SYSLOG":          "syslog",
	"CAP_SYS_ADMIN": `bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules lsm_set_self_attr
		mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare`,
	"CAP_SYS_BOOT":       "reboot",
	"CAP_SYS_CHROOT":     "chroot",
	"CAP_SYS_MODULE":     "delete_module init_module finit_module",
	"CAP_SYS_NICE":       "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
	"CAP_SYS_PACCT":      "acct",
	"CAP_SYS_PTRACE":     "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
	"CAP_SYS_RAWIO":      "iopl ioperm",
	"CAP_SYS_TIME":       "settimeofday stime clock_settime clock_settime64",
	"CAP_SYS_TTY_CONFIG": "vhangup",
}

// families are the kinds of sockets that may be opened. Left out are those of
// hardware and hypervisors (vsock reaches the host past every network
// namespace), what nobody speaks any more, and the kernel's cryptography.
var families = []uint64{
	unix.AF_NETBEUI, unix.AF_SECURITY, unix.AF_KEY, unix.AF_NETLINK, unix.AF_PACKET, unix.AF_ASH,
	unix.AF_RDS, unix.AF_SNA, unix.AF_PPPOX, unix.AF_LLC, unix.AF_IB, unix.AF_MPLS, unix.AF_CAN,
	unix.AF_TIPC, unix.AF_BLUETOOTH, unix.AF_IUCV, unix.AF_RXRPC, unix.AF_PHONET, unix.AF_IEEE802154, unix.AF_NFC, unix.AF_KCM,
	unix.AF_QIPCRTR, unix.AF_SMC, unix.AF_XDP, unix.AF_MCTP,
}

// allFamiliesBelow: the old ones are allowed as a whole.
const allFamiliesBelow = 12

// personalities are Linux' own, of 32 bits, and asking.
var personalities = []uint64{0, 0x8, 0x20000, 0x20008, 0xffffffff}

// newNamespaces are the flags of clone that make one.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP

// seccompArches are an architecture and those whose programs its kernels run.
// x32 is not among them: distributions' kernels are built without it, and its
// calls, which the filter kills, would be a third of what making it costs.
var seccompArches = map[string][]specs.Arch{
	"amd64": {specs.ArchX86_64, specs.ArchX86},
	"arm64": {specs.ArchAARCH64, specs.ArchARM},
}

// defaultSeccomp is the profile RuntimeDefault of a container with these
// capabilities: the set of system calls that container runtimes have agreed on.
func defaultSeccomp(arch string, capabilities []string) *specs.LinuxSeccomp {
	names := strings.Fields(allowed + " " + allowedOn[arch])
	for _, c := range capabilities {
		for _, name := range strings.Fields(allowedWith[c]) {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	profile := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: new(uint(unix.EPERM)), Architectures: seccompArches[arch]}
	allow := func(names []string, args ...specs.LinuxSeccompArg) {
		profile.Syscalls = append(profile.Syscalls, specs.LinuxSyscall{Names: names, Action: specs.ActAllow, Args: args})
	}
	allow(names)
	allow([]string{"socket"}, specs.LinuxSeccompArg{Value: allFamiliesBelow, Op: specs.OpLessThan})
	for _, f := range families {
		if f >= allFamiliesBelow {
			allow([]string{"socket"}, specs.LinuxSeccompArg{Value: f, Op: specs.OpEqualTo})
		}
	}
	for _, p := range personalities {
		allow([]string{"personality"}, specs.LinuxSeccompArg{Value: p, Op: specs.OpEqualTo})
	}
	if !slices.Contains(capabilities, "CAP_SYS_ADMIN") {
		allow([]string{"clone"}, specs.LinuxSeccompArg{Value: newNamespaces, Op: specs.OpMaskedEqual})
		// Its flags are behind a pointer, where no filter looks: C libraries
		// fall back to clone.
		profile.Syscalls = append(profile.Syscalls, specs.LinuxSyscall{Names: []string{"clone3"}, Action: specs.ActErrno, ErrnoRet: new(uint(unix.ENOSYS))})
	}
	return profile
}

// makeSeccomp is the filter of a container; nil is none.
func makeSeccomp(c ContainerConfig, capabilities []string) (*specs.LinuxSeccomp, error) {
	path, local := strings.CutPrefix(c.Seccomp, SeccompLocalhost)
	switch {
	case c.Privileged, c.Seccomp == "":
		return nil, nil
	case c.Seccomp == SeccompDefault:
		return defaultSeccomp(runtime.GOARCH, capabilities), nil
	case !local:
		return nil, fmt.Errorf("unknown seccomp profile %q", c.Seccomp)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot load seccomp profile %q: %w", path, err)
	}
	profile := &specs.LinuxSeccomp{}
	if err := json.Unmarshal(data, profile); err != nil {
		return nil, fmt.Errorf("decoding seccomp profile failed: %s: %w", path, err)
	}
	if profile.DefaultAction == "" { // it would be no filter at all
		return nil, fmt.Errorf("decoding seccomp profile failed: %s: %w", path, errors.New("it has no defaultAction"))
	}
	return profile, nil
}
