package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// NFS is mounted by the kernel's own client. What the program mount.nfs does
// besides (find the server's address, agree on a version) is done here, so that
// the host needs no such program.

const (
	nfsPort = "2049"
	nfsWait = 10 * time.Second
)

// nfsVersions are tried in this order where the options name none.
var nfsVersions = []string{"4.2", "4.1", "4.0", "3"}

// mountFlags are the options that are flags of mount(2), not text for the
// file system: what each sets, and what it clears.
var mountFlags = map[string]struct{ set, clear uintptr }{
	"ro": {unix.MS_RDONLY, 0}, "rw": {0, unix.MS_RDONLY},
	"nosuid": {unix.MS_NOSUID, 0}, "suid": {0, unix.MS_NOSUID},
	"nodev": {unix.MS_NODEV, 0}, "dev": {0, unix.MS_NODEV},
	"noexec": {unix.MS_NOEXEC, 0}, "exec": {0, unix.MS_NOEXEC},
	"sync": {unix.MS_SYNCHRONOUS, 0}, "async": {0, unix.MS_SYNCHRONOUS}, "dirsync": {unix.MS_DIRSYNC, 0},
	"noatime": {unix.MS_NOATIME, 0}, "atime": {0, unix.MS_NOATIME},
	"nodiratime": {unix.MS_NODIRATIME, 0}, "diratime": {0, unix.MS_NODIRATIME},
	"relatime": {unix.MS_RELATIME, 0}, "norelatime": {0, unix.MS_RELATIME}, "strictatime": {unix.MS_STRICTATIME, 0},
	"mand": {unix.MS_MANDLOCK, 0}, "nomand": {0, unix.MS_MANDLOCK}, "defaults": {0, 0},
}

// nfsMount is one call of mount(2).
type nfsMount struct {
	source string
	flags  uintptr
	data   string
}

// nfsMounts are the calls to try, one after the other.
func nfsMounts(v *corev1.NFSVolumeSource, options []string, server netip.Addr) []nfsMount {
	host := v.Server
	if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
		host = "[" + host + "]"
	}
	var flags uintptr
	var text []string
	versions := nfsVersions
	for _, list := range options {
		for option := range strings.SplitSeq(list, ",") {
			if f, ok := mountFlags[option]; ok {
				flags = flags&^f.clear | f.set
				continue
			}
			if version, ok := cutAny(option, "vers=", "nfsvers="); ok {
				versions = []string{version}
			} else if option != "" {
				text = append(text, option)
			}
		}
	}
	if v.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	var mounts []nfsMount
	for _, version := range versions {
		data := append(slices.Clone(text), "vers="+version, "addr="+server.String())
		if strings.HasPrefix(version, "3") {
			// Locks of version 3 need a daemon on this host, and the kernel asks
			// the server for the mount itself.
			data = append(data, "mountaddr="+server.String())
			if !slices.ContainsFunc(text, func(o string) bool { return o == "lock" || o == "nolock" || strings.HasPrefix(o, "local_lock=") }) {
				data = append(data, "nolock")
			}
		}
		mounts = append(mounts, nfsMount{host + ":" + v.Path, flags, strings.Join(data, ",")})
	}
	return mounts
}

func cutAny(s string, prefixes ...string) (string, bool) {
	for _, p := range prefixes {
		if rest, ok := strings.CutPrefix(s, p); ok {
			return rest, true
		}
	}
	return "", false
}

// setUpNFS mounts an export at a folder.
func setUpNFS(ctx context.Context, v *corev1.NFSVolumeSource, options []string, dir string) error {
	if there, err := mountinfo.Mounted(dir); err == nil && there {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, nfsWait)
	defer cancel()
	// The kernel's client would wait for minutes for a server that is away.
	port := nfsPort
	for _, o := range options {
		if p, ok := strings.CutPrefix(o, "port="); ok {
			port = p
		}
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(v.Server, port))
	if err != nil {
		return fmt.Errorf("mount failed: the NFS server %s does not answer: %w", v.Server, err)
	}
	server := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	conn.Close()
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	return mountFirst(nfsMounts(v, options, server), dir, func(m nfsMount) error {
		return unix.Mount(m.source, dir, "nfs", m.flags, m.data)
	})
}

// mountFirst makes the first of the mounts that the server and the kernel can.
func mountFirst(mounts []nfsMount, dir string, mount func(nfsMount) error) (err error) {
	for _, m := range mounts {
		err = mount(m)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.ENODEV):
			return errors.New("mount failed: this host's kernel has no NFS client: load the module nfs, or install a kernel that has it")
		}
		err = fmt.Errorf("mount failed: mount %s at %s with options %s: %w", m.source, dir, m.data, err)
		if !errors.Is(err, unix.EPROTONOSUPPORT) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPROTO) {
			return err
		}
	}
	return err
}
