package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestLogNames(t *testing.T) {
	pod := testPod()
	pod.Namespace, pod.Name, pod.UID = strings.Repeat("n", 63), strings.Repeat("p", 253), "0b1c0d7e-0000-4000-8000-000000000001"
	if name := logFolder(pod); len(name) != nameMost || !strings.HasPrefix(name, pod.Namespace+"_ppp") || !strings.HasSuffix(name, "_"+string(pod.UID)) {
		t.Errorf("the folder: %d bytes, %s", len(name), name)
	}
	if name := logLink(pod, "web", 3); len(name) != nameMost || !strings.HasSuffix(name, ".log") {
		t.Errorf("the link: %d bytes, %s", len(name), name)
	}
	pod.Namespace, pod.Name = "shop", "cart-0"
	if name := logFolder(pod); name != "shop_cart-0_"+string(pod.UID) {
		t.Errorf("the folder: %s", name)
	}
	if name, want := logLink(pod, "web", 3), "cart-0_shop_web-"+startID(pod.UID, "web", 3)+".log"; name != want || startID(pod.UID, "web", 3) == startID(pod.UID, "web", 4) {
		t.Errorf("the link: %s, not %s", name, want)
	}
}

// Logs come and go with their pod, and nothing else of the folders does.
func TestLogFolders(t *testing.T) {
	root := t.TempDir()
	a := &Agent{cfg: Config{Dir: root, RunDir: filepath.Join(root, "run")}}
	pod, other := testPod(), testPod()
	other.UID, other.Name = "another", "other"
	d, e := a.dirs(string(pod.UID)), a.dirs(string(other.UID))
	for range 2 { // a start that is tried again
		if err := d.makeLogs(pod, "web", 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.makeLogs(other, "web", 0); err != nil {
		t.Fatal(err)
	}
	for _, dirs := range []podDirs{d, e} {
		if err := os.WriteFile(dirs.log("web", 0), []byte("line\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	list := func() (names []string) {
		for _, pattern := range []string{"log/pods/*/*/*", "log/containers/*", "pods/*"} {
			found, err := filepath.Glob(filepath.Join(root, pattern))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range found {
				names = append(names, strings.TrimPrefix(f, root+"/"))
			}
		}
		return names
	}
	if names := list(); len(names) != 6 || names[0] != "log/pods/"+logFolder(pod)+"/web/0.log" && names[1] != "log/pods/"+logFolder(pod)+"/web/0.log" {
		t.Errorf("there are %q", names)
	}
	for range 2 { // after a crash
		if err := d.remove(); err != nil {
			t.Fatal(err)
		}
	}
	if names := list(); len(names) != 3 || !strings.Contains(names[0], "_other_another/") || names[2] != "pods/another" {
		t.Errorf("after one pod's end there are %q", names)
	}
	// A pod's folder of an earlier version, which has its logs in it.
	if err := os.MkdirAll(filepath.Join(d.disk, "logs", "web"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := d.remove(); err != nil {
		t.Error(err)
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func TestHostLogs(t *testing.T) {
	d := podDirs{logs: filepath.Join(t.TempDir(), "log")}
	for path, want := range map[string]string{
		"/var/log/pods": d.logs + "/pods", "/var/log/pods/": d.logs + "/pods", "/var/log/containers/x.log": d.logs + "/containers/x.log",
		"/var/log": "/var/log", "/var/log/podsx": "/var/log/podsx", "/var/log/nginx": "/var/log/nginx", "/var/log/pods/../nginx": "/var/log/nginx",
	} {
		if got := d.host(path); got != want {
			t.Errorf("%s is %s", path, got)
		}
	}
	if _, err := os.Stat(hostLogs); err != nil || os.Geteuid() != 0 {
		t.Skip("there is no folder of logs to be mounted")
	}
	for _, name := range []string{podLogs, containLinks} {
		if path := filepath.Join(hostLogs, name); !exists(path) {
			t.Cleanup(func() { _ = os.Remove(path) }) // unless somebody else has come to use it
		}
	}
	mounts, err := d.withLogs(specs.Mount{Destination: "/logs", Type: "bind", Source: hostLogs, Options: []string{"rbind", "ro"}}, func(path string) bool { return path == "/logs/pods" })
	if err != nil || len(mounts) != 2 || mounts[1].Destination != "/logs/containers" || mounts[1].Source != d.logs+"/containers" || len(mounts[1].Options) != 2 {
		t.Errorf("%+v %v", mounts, err)
	}
}
