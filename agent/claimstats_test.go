package agent

import (
	"testing"

	"github.com/moby/sys/mountinfo"
)

func TestKindOfFS(t *testing.T) {
	mounts := []*mountinfo.Info{
		{Mountpoint: "/", FSType: "ext4"}, {Mountpoint: "/data", FSType: "xfs"}, {Mountpoint: "/data/v", FSType: "tmpfs"}, {Mountpoint: "/data/v", FSType: "nfs4"},
	}
	for path, want := range map[string]string{"/": "ext4", "/etc": "ext4", "/database": "ext4", "/data": "xfs", "/data/x": "xfs", "/data/v": "nfs4", "/data/v/x": "nfs4", "/data/vx": "xfs"} {
		if got := kindOfFS(mounts, path); got != want {
			t.Errorf("%s is on %s, not %s", path, got, want)
		}
	}
}
