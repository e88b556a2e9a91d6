// Package images makes container images without a registry on the internet:
// from Debian's packages and from static Go programs, for the demo, the examples
// and the tests. It holds no state and starts nothing that outlives a call.
package images

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Recipe says what an image is made of.
type Recipe struct {
	Name       string   // as pods name it: "conclave.test/nginx:1"
	Packages   []string // Debian packages; the shared libraries that they need come along
	GoProgram  string   // import path of a program to build static as /NAME
	GoModule   string   // folder of a module of its own, whose program is the same
	Built      string   // program that `make bin/NAME` leaves there, as /NAME
	Busybox    bool     // a shell and its tools in /bin, from busybox-static
	Files      map[string]string
	Entrypoint []string
	Cmd        []string
	Env        []string
	User       string
	WorkingDir string
	Ports      []string // "80/tcp"
}

// Sources is a pattern of the files, below the project's folder, of which the
// program in the image is made: an image that is older than one is made again.
func (r Recipe) Sources() string {
	switch {
	case r.GoProgram != "":
		return path.Join(strings.TrimPrefix(r.GoProgram, "conclave/"), "*.go")
	case r.GoModule != "":
		return path.Join(r.GoModule, "*.go")
	case r.Built != "":
		return path.Join("bin", r.Built)
	}
	return ""
}

// Recipes are the images that the examples, the demo and the tests use.
var Recipes = map[string]Recipe{
	"busybox": {Name: "conclave.test/busybox:1", Busybox: true, Cmd: []string{"sh"}},
	"web": {
		Name: "conclave.test/web:1", GoProgram: "conclave/examples/web", Busybox: true,
		Entrypoint: []string{"/web"}, Ports: []string{"8080/tcp"},
	},
	"tool": {
		Name: "conclave.test/tool:1", GoProgram: "conclave/test/tool", Busybox: true,
		Entrypoint: []string{"/tool"},
	},
	"csi-hostpath": {
		Name: "conclave.test/csi-hostpath:1", GoModule: "examples/csi-hostpath", Busybox: true,
		Entrypoint: []string{"/csi-hostpath"},
	},
	"etcd": {
		Name: "conclave.test/etcd:1", Packages: []string{"etcd-server"}, Files: map[string]string{"tmp/": ""},
		Entrypoint: []string{"/usr/bin/etcd", "--data-dir", "/tmp/etcd"},
		Env:        []string{"ETCD_UNSUPPORTED_ARCH=" + runtime.GOARCH}, // Debian's is of before it knew others than amd64
	},
	"sample-apiserver": {
		Name: "conclave.test/sample-apiserver:1", Built: "sample-apiserver", Files: map[string]string{"tmp/": ""},
		Entrypoint: []string{"/sample-apiserver"},
	},
	"said": {
		Name: "conclave.test/said:1", Busybox: true, Entrypoint: []string{"/bin/echo", "entrypoint"}, Cmd: []string{"cmd"},
	},
	"nginx": {
		Name: "conclave.test/nginx:1", Packages: []string{"nginx", "nginx-common"}, Busybox: true,
		Files: map[string]string{
			"etc/nginx/nginx.conf": "user root;\nworker_processes 1;\npid /tmp/nginx.pid;\nerror_log /dev/stderr;\n" +
				"events { worker_connections 256; }\nhttp {\n  access_log /dev/stdout;\n  include /etc/nginx/mime.types;\n" +
				"  server { listen 80; root /usr/share/nginx/html; }\n}\n",
			"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/false\n",
			"etc/group":  "root:x:0:\nwww-data:x:33:\n",
			"tmp/":       "", "var/lib/nginx/": "", "var/log/nginx/": "",
		},
		Entrypoint: []string{"/usr/sbin/nginx", "-g", "daemon off;"}, Ports: []string{"80/tcp"},
	},
	"postgres": {
		Name: "conclave.test/postgres:1", Packages: []string{"postgresql"}, Busybox: true,
		Files: map[string]string{
			"etc/passwd": "root:x:0:0:root:/root:/bin/sh\npostgres:x:999:999::/var/lib/postgresql:/bin/sh\n",
			"etc/group":  "root:x:0:\npostgres:x:999:\n", "tmp/": "", "var/lib/postgresql/data/": "",
			"bin/psql": psql("psql"), "bin/pg_isready": psql("pg_isready"),
			// A volume's own folder may hold more than the database, and belong
			// to somebody else: the database is a folder in it. It is made under
			// another name first, so that half a database is never taken for one.
			"start.sh": `set -e
export PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
data=/var/lib/postgresql/data/pgdata
if [ ! -s $data/PG_VERSION ]; then
  rm -rf $data.new
  initdb -D $data.new -U postgres -A trust --no-instructions
  echo 'host all all all trust' >> $data.new/pg_hba.conf
  mv $data.new $data
fi
chmod 0700 $data
exec postgres -D $data -c listen_addresses='*' -c unix_socket_directories=/tmp "$@"
`,
		},
		Entrypoint: []string{"/bin/sh", "/start.sh"}, User: "999", Env: []string{"PGHOST=/tmp", "PGUSER=postgres"}, Ports: []string{"5432/tcp"},
	},
	"redis": {
		Name: "conclave.test/redis:1", Packages: []string{"redis-server", "redis-tools"}, Busybox: true,
		Files: map[string]string{
			"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nredis:x:999:999::/data:/bin/false\n",
			"etc/group":  "root:x:0:\nredis:x:999:\n", "data/": "", "tmp/": "",
		},
		Entrypoint: []string{"/usr/bin/redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/data"},
		Ports:      []string{"6379/tcp"}, WorkingDir: "/data",
	},
}

// psql runs a program of the one version of PostgreSQL that there is.
func psql(name string) string {
	return "#!/bin/sh\nexec /usr/lib/postgresql/*/bin/" + name + " \"$@\"\n"
}

// Unpack lays out the files of a recipe's image below a folder. It runs
// `go build` and `apt-get download` as the recipe asks.
func Unpack(ctx context.Context, r Recipe, root string) error {
	for _, s := range []struct {
		wanted bool
		do     func() error
	}{
		{true, func() error { return os.MkdirAll(root, 0o755) }},
		{len(r.Packages) > 0, func() error { return unpackDebian(ctx, root, r.Packages) }},
		{r.Busybox, func() error { return addBusybox(ctx, root) }},
		{r.GoProgram != "", func() error { return addProgram(ctx, root, r.GoProgram) }},
		{r.GoModule != "", func() error { return addModule(ctx, root, r.GoModule) }},
		{r.Built != "", func() error { return addBuilt(ctx, root, r.Built) }},
		{true, func() error { return addFiles(root, r.Files) }},
	} {
		if s.wanted {
			if err := s.do(); err != nil {
				return fmt.Errorf("image %s: %w", r.Name, err)
			}
		}
	}
	return nil
}

// Build makes the image of a recipe.
func Build(ctx context.Context, r Recipe) (v1.Image, error) {
	root, err := os.MkdirTemp("", "conclave-image-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(root)
	if err := Unpack(ctx, r, root); err != nil {
		return nil, err
	}
	var layer bytes.Buffer
	if err := writeTar(&layer, root); err != nil {
		return nil, fmt.Errorf("image %s: %w", r.Name, err)
	}
	opened, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(layer.Bytes())), nil
	})
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, opened)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	file.Config = v1.Config{
		Entrypoint: r.Entrypoint, Cmd: r.Cmd, User: r.User, WorkingDir: r.WorkingDir,
		Env: append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, r.Env...),
	}
	for _, p := range r.Ports {
		if file.Config.ExposedPorts == nil {
			file.Config.ExposedPorts = map[string]struct{}{}
		}
		file.Config.ExposedPorts[p] = struct{}{}
	}
	return mutate.ConfigFile(img, file)
}

// Save writes an image as a tar that `conclave image import` and `docker load` read.
func Save(img v1.Image, ref, file string) error {
	tag, err := name.NewTag(ref)
	if err != nil {
		return err
	}
	return tarball.WriteToFile(file, tag, img)
}

// Push sends an image to a registry, by plain HTTP.
func Push(ctx context.Context, img v1.Image, ref string) error {
	tag, err := name.NewTag(ref, name.Insecure)
	if err != nil {
		return err
	}
	return remote.Write(tag, img, remote.WithContext(ctx))
}

func run(ctx context.Context, dir string, env []string, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out, errs bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, append(os.Environ(), env...), &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

func addProgram(ctx context.Context, root, importPath string) error {
	_, err := run(ctx, "", []string{"CGO_ENABLED=0"}, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(root, path.Base(importPath)), importPath)
	return err
}

// project is the folder of this module.
func project(ctx context.Context) (string, error) {
	here, err := run(ctx, "", nil, "go", "list", "-m", "-f", "{{.Dir}}", "conclave")
	return strings.TrimSpace(here), err
}

// addBuilt takes a program that is too costly to be built for an image alone.
func addBuilt(ctx context.Context, root, program string) error {
	here, err := project(ctx)
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(filepath.Join(here, "bin", program))
	if err != nil {
		return fmt.Errorf("%w: run `make bin/%s` first", err, program)
	}
	return os.WriteFile(filepath.Join(root, program), raw, 0o755)
}

// addModule builds the program of a module of ours, below the root of this one.
func addModule(ctx context.Context, root, folder string) error {
	here, err := project(ctx)
	if err != nil {
		return err
	}
	dir := filepath.Join(here, folder)
	_, err = run(ctx, dir, []string{"CGO_ENABLED=0"}, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(root, path.Base(folder)), ".")
	return err
}

// addBusybox links every applet to one static busybox.
func addBusybox(ctx context.Context, root string) error {
	source, err := exec.LookPath("busybox")
	if err != nil {
		return errors.New("busybox is missing: apt-get install busybox-static")
	}
	raw, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	bin := filepath.Join(root, "bin")
	if target, err := os.Readlink(bin); err == nil { // merged /usr
		bin = filepath.Join(root, target)
	}
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(bin, "busybox"), raw, 0o755); err != nil {
		return err
	}
	applets, err := run(ctx, "", nil, source, "--list")
	if err != nil {
		return err
	}
	for _, applet := range strings.Fields(applets) {
		err := os.Symlink("busybox", filepath.Join(bin, applet))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

func addFiles(root string, files map[string]string) error {
	for file, content := range files {
		to := filepath.Join(root, file)
		if strings.HasSuffix(file, "/") {
			if err := os.MkdirAll(to, 0o777); err != nil {
				return err
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if strings.HasPrefix(content, "#!") {
			mode = 0o755
		}
		if err := os.WriteFile(to, []byte(content), mode); err != nil {
			return err
		}
	}
	return nil
}

// followed are the packages that a package is no use without, and left those of
// them that it merely can use: a compiler of 100 MB.
var (
	followed = regexp.MustCompile(`^(lib|zlib|tzdata$|postgresql(-client)?-\d)`)
	left     = regexp.MustCompile(`^libllvm`)
)

// unpackDebian unpacks packages, and the shared libraries that they depend on,
// without running any of their scripts.
func unpackDebian(ctx context.Context, root string, packages []string) error {
	wanted := slices.Clone(packages)
	for i := 0; i < len(wanted); i++ {
		out, err := run(ctx, "", nil, "apt-cache", "depends", "--important", wanted[i])
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			dependency, ok := strings.CutPrefix(strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), "|")), "Depends: ")
			if ok && followed.MatchString(dependency) && !left.MatchString(dependency) && !slices.Contains(wanted, dependency) {
				wanted = append(wanted, dependency)
			}
		}
	}
	debs, err := os.MkdirTemp("", "conclave-debs-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(debs)
	if err := os.Chmod(debs, 0o777); err != nil { // apt downloads as its own user
		return err
	}
	download := append([]string{"apt-get", "download", "-qq"}, wanted...)
	if _, err := run(ctx, debs, nil, download...); err != nil {
		// The lists of packages may be older than the archive.
		if _, err := run(ctx, "", nil, "apt-get", "update", "-qq"); err != nil {
			return err
		}
		if _, err := run(ctx, debs, nil, download...); err != nil {
			return err
		}
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	for _, deb := range files {
		if _, err := run(ctx, "", nil, "dpkg-deb", "-x", deb, root); err != nil {
			return err
		}
	}
	// Packages built for a merged /usr may still carry /lib64 beside it.
	for _, bulk := range []string{"usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian"} {
		if err := os.RemoveAll(filepath.Join(root, bulk)); err != nil {
			return err
		}
	}
	return nil
}

// writeTar packs a folder, owned by root, in the order of names and without
// times, so that the same content is the same layer.
func writeTar(w io.Writer, root string) error {
	out := tar.NewWriter(w)
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil || file == root {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		link := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if link, err = os.Readlink(file); err != nil {
				return err
			}
		}
		header, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		header.Name, header.Uid, header.Gid, header.Uname, header.Gname = rel, 0, 0, "", ""
		if info.IsDir() {
			header.Name += "/"
		}
		header.ModTime, header.AccessTime, header.ChangeTime = zero, zero, zero
		if err := out.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
			return err
		}
		in, err := os.Open(file)
		if err != nil {
			return err
		}
		defer in.Close()
		_, err = io.Copy(out, in)
		return err
	})
	if err != nil {
		return err
	}
	return out.Close()
}

var zero = time.Unix(0, 0)
