//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// identity is who a container's program runs as.
type identity struct {
	uid, gid uint32
	groups   []uint32 // with gid among them
	home     string
}

// lookUpUser resolves "", "name", "uid" or either with ":group" by the files of
// a root filesystem, in which nothing runs yet. With only, the groups that the
// files give the user do not count.
func lookUpUser(root, spec string, extra []uint32, only bool) (identity, error) {
	passwd, err := openInRoot(root, "/etc/passwd")
	if err != nil {
		return identity{}, err
	}
	defer passwd.Close()
	group, err := openInRoot(root, "/etc/group")
	if err != nil {
		return identity{}, err
	}
	defer group.Close()
	u, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, reader(passwd), reader(group))
	if err != nil {
		return identity{}, fmt.Errorf("user %q of the image: %w", spec, err)
	}
	out := identity{uid: uint32(u.Uid), gid: uint32(u.Gid), home: u.Home}
	if out.home == "" {
		out.home = "/"
	}
	out.groups = append(out.groups, out.gid)
	for _, g := range u.Sgids {
		if !only {
			out.groups = append(out.groups, uint32(g))
		}
	}
	out.groups = append(out.groups, extra...)
	slices.Sort(out.groups)
	out.groups = slices.Compact(out.groups)
	return out, nil
}

// openInRoot opens a regular file of a root filesystem, nil if there is none.
func openInRoot(root, path string) (*os.File, error) {
	full, err := securejoin.SecureJoin(root, path)
	if err != nil {
		return nil, err
	}
	// A fifo must not block, nor a device be opened to any effect.
	f, err := os.OpenFile(full, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_NOCTTY, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s of the image is not a file", path)
	}
	return f, nil
}

// reader keeps a missing file a nil interface, which the parser understands.
func reader(f *os.File) io.Reader {
	if f == nil {
		return nil
	}
	return f
}
