package agent

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

func TestNFSMounts(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")
	for name, test := range map[string]struct {
		volume  corev1.NFSVolumeSource
		options []string
		server  netip.Addr
		source  string
		flags   uintptr
		data    []string
	}{
		"all versions": {corev1.NFSVolumeSource{Server: "nas.example.com", Path: "/export"}, nil, v4, "nas.example.com:/export", 0, []string{
			"vers=4.2,addr=192.0.2.7", "vers=4.1,addr=192.0.2.7", "vers=4.0,addr=192.0.2.7", "vers=3,addr=192.0.2.7,mountaddr=192.0.2.7,nolock"}},
		"one version": {corev1.NFSVolumeSource{Server: "nas", Path: "/", ReadOnly: true}, []string{"nfsvers=4.1", "hard", "noatime,timeo=600"}, v4, "nas:/", unix.MS_RDONLY | unix.MS_NOATIME, []string{
			"hard,timeo=600,vers=4.1,addr=192.0.2.7"}},
		"version 3 with locks": {corev1.NFSVolumeSource{Server: "nas", Path: "/a"}, []string{"vers=3", "lock", "nosuid", "suid"}, v4, "nas:/a", 0, []string{
			"lock,vers=3,addr=192.0.2.7,mountaddr=192.0.2.7"}},
		"IPv6": {corev1.NFSVolumeSource{Server: "2001:db8::7", Path: "/a"}, []string{"vers=4.2"}, v6, "[2001:db8::7]:/a", 0, []string{"vers=4.2,addr=2001:db8::7"}},
	} {
		t.Run(name, func(t *testing.T) {
			var data []string
			for _, m := range nfsMounts(&test.volume, test.options, test.server) {
				if m.source != test.source || m.flags != test.flags {
					t.Errorf("mounts %+v", m)
				}
				data = append(data, m.data)
			}
			if !slices.Equal(data, test.data) {
				t.Errorf("options are\n%s\nwant\n%s", strings.Join(data, "\n"), strings.Join(test.data, "\n"))
			}
		})
	}
}

func TestMountFirst(t *testing.T) {
	mounts := nfsMounts(&corev1.NFSVolumeSource{Server: "nas", Path: "/a"}, nil, netip.MustParseAddr("192.0.2.7"))
	for name, test := range map[string]struct {
		errs  []error
		tries int
		want  string
	}{
		"at once":           {[]error{nil}, 1, ""},
		"an old server":     {[]error{unix.EPROTONOSUPPORT, unix.EINVAL, nil}, 3, ""},
		"refused":           {[]error{unix.EACCES}, 1, "mount failed: mount nas:/a at /x with options vers=4.2,addr=192.0.2.7: permission denied"},
		"no client":         {[]error{unix.ENODEV}, 1, "this host's kernel has no NFS client"},
		"no version at all": {[]error{unix.EPROTONOSUPPORT, unix.EPROTONOSUPPORT, unix.EPROTONOSUPPORT, unix.EPROTONOSUPPORT}, 4, "vers=3"},
	} {
		t.Run(name, func(t *testing.T) {
			tries := 0
			err := mountFirst(mounts, "/x", func(nfsMount) error { tries++; return test.errs[tries-1] })
			if tries != test.tries || (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("after %d tries: %v", tries, err)
			}
		})
	}
}
