package hosts

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/test/cluster"
)

// refused runs conclave on a host, which must fail with one line that contains
// these words and with exit status 1.
func refused(t *testing.T, c *cluster.Cluster, host string, words []string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	code, err := c.Exec(ctx, host, append([]string{c.Binary}, args...), nil, &out, &errs)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(errs.String()), "\n")
	last := lines[len(lines)-1]
	if code != 1 || !strings.HasPrefix(last, "conclave: ") {
		t.Errorf("conclave %s: exit status %d, %q", strings.Join(args, " "), code, errs.String())
	}
	for _, w := range words {
		if !strings.Contains(last, w) {
			t.Errorf("conclave %s says %q, which lacks %q", strings.Join(args, " "), last, w)
		}
	}
}

// TestBadInput tries what must be refused, each with a clear message.
func TestBadInput(t *testing.T) {
	t.Parallel()
	c := own(t, 2)
	spare, err := c.Add() // a third host, on which nothing runs
	if err != nil {
		t.Fatal(err)
	}
	first, second := c.Hosts[0], c.Hosts[1]
	token, err := c.Ask(t.Context(), "token", "--bare")
	if err != nil {
		t.Fatal(err)
	}
	token = strings.TrimSpace(token)

	t.Run("WrongToken", func(t *testing.T) {
		refused(t, c, spare.Name, []string{"token"}, "join", "conclave1.AAAA")
		refused(t, c, spare.Name, []string{"token"}, "join", token[:len(token)-6]+"AAAAAA")
	})
	t.Run("SecondUp", func(t *testing.T) {
		refused(t, c, first.Name, []string{"runs already", c.DataDir(first)}, "up")
		refused(t, c, second.Name, []string{"runs already"}, "join", token)
	})
	t.Run("NameOfALiveNode", func(t *testing.T) {
		refused(t, c, spare.Name, []string{"name", first.Name}, "join", "--name", first.Name, token)
		if out := kubectl(t, c, "get", "nodes", "-o", "name"); strings.Count(out, "node/") != 2 {
			t.Errorf("the nodes are now %s", out)
		}
	})
	t.Run("NotRoot", func(t *testing.T) {
		cmd := exec.CommandContext(t.Context(), "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/proc/self/fd/3", "up", "--data-dir", "/nonexistent")
		binary, err := os.Open(c.Binary)
		if err != nil {
			t.Fatal(err)
		}
		defer binary.Close()
		cmd.ExtraFiles = []*os.File{binary}
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "root") {
			t.Errorf("up without root: %v: %s", err, out)
		}
	})
	t.Run("NoOverlayfs", func(t *testing.T) {
		// A data folder that lies on an overlay itself cannot carry another: the
		// same failure as on a kernel that has no overlayfs.
		dir := filepath.Join(c.Dir, "nested")
		script := fmt.Sprintf("mkdir -p %[1]s/lower %[1]s/upper %[1]s/work %[1]s/data && mount -t overlay -o lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work none %[1]s/data", dir)
		if _, err := c.On(t.Context(), spare.Name, "sh", "-c", script); err != nil {
			t.Fatal(err)
		}
		refused(t, c, spare.Name, []string{"overlayfs"}, "up", "--data-dir", filepath.Join(dir, "data"))
	})
	t.Run("Manifests", func(t *testing.T) {
		for _, bad := range []struct{ what, manifest, want string }{
			{"invalid", "apiVersion: v1\nkind: Pod\nmetadata: {name: Upper_Case}\nspec: {containers: []}\n", "spec.containers: Required value"},
			{"unknown field", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndatum: {a: b}\n", `unknown field "datum"`},
			{"not YAML", "apiVersion: v1\nkind: [", "error"},
			{"unknown kind", "apiVersion: example.com/v1\nkind: Nothing\nmetadata: {name: x}\n", `no matches for kind "Nothing"`},
			{"selector", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {c: d}}, spec: {containers: [{name: a, image: b}]}}}\n", "`selector` does not match template `labels`"},
		} {
			_, err := c.KubectlInput(t.Context(), bad.manifest, "apply", "-f", "-")
			if err == nil || !strings.Contains(err.Error(), bad.want) {
				t.Errorf("%s: %v", bad.what, err)
			}
		}
	})
	t.Run("TwoMiBObject", func(t *testing.T) {
		_, err := c.Client.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: "big"}, Data: map[string]string{"a": strings.Repeat("x", 2<<20)}}, metav1.CreateOptions{})
		if err == nil || !strings.Contains(err.Error(), "Too long") && !strings.Contains(err.Error(), "too large") && !strings.Contains(err.Error(), "limit") {
			t.Errorf("a 2 MiB object: %v", err)
		}
		if _, err := c.Client.CoreV1().ConfigMaps("default").Get(t.Context(), "big", metav1.GetOptions{}); err == nil {
			t.Error("it was kept")
		}
	})
	t.Run("NoSuchImage", func(t *testing.T) {
		apply(t, c, "default", "apiVersion: v1\nkind: Pod\nmetadata: {name: none}\nspec: {containers: [{name: a, image: '127.0.0.1:1/none:1'}]}\n")
		eventually(t, "the pod says why it waits", func() error {
			reason := kubectl(t, c, "get", "pod", "none", "-o", "jsonpath={.status.containerStatuses[0].state.waiting.reason}")
			if reason != "ErrImagePull" && reason != "ImagePullBackOff" {
				return fmt.Errorf("the reason is %q", reason)
			}
			return nil
		})
		mustContain(t, "its events", kubectl(t, c, "describe", "pod", "none"), "Failed to pull image", "127.0.0.1:1/none:1")
		kubectl(t, c, "delete", "pod", "none", "--force", "--grace-period=0")
	})
	t.Run("ClimbingTar", func(t *testing.T) {
		outside := filepath.Join(c.Dir, "outside")
		evil := filepath.Join(c.Dir, "evil.tar")
		if err := os.WriteFile(evil, climbingImage(t, "../../../../../../../../.."+outside), 0o644); err != nil {
			t.Fatal(err)
		}
		refused(t, c, first.Name, []string{"import", "outside"}, "image", "import", evil)
		if _, err := os.Stat(outside); err == nil {
			t.Error("the image wrote outside its root")
		}
		out, err := c.On(t.Context(), first.Name, c.Binary, "image", "ls")
		if err != nil || strings.Contains(out, "evil") {
			t.Errorf("the image is listed: %v: %s", err, out)
		}
	})
	t.Run("FullDisk", func(t *testing.T) { fullDisk(t) })
}

// climbingImage is a docker-archive whose layer holds a file with this name.
func climbingImage(t *testing.T, name string) []byte {
	t.Helper()
	archive := func(files map[string][]byte, order ...string) []byte {
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		for _, n := range order {
			if err := w.WriteHeader(&tar.Header{Name: n, Mode: 0o644, Size: int64(len(files[n]))}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(files[n]); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	layer := archive(map[string][]byte{name: []byte("out")}, name)
	config := []byte(`{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:` + sha(layer) + `"]}}`)
	manifest := []byte(`[{"Config":"config.json","RepoTags":["conclave.test/evil:1"],"Layers":["layer.tar"]}]`)
	return archive(map[string][]byte{"layer.tar": layer, "config.json": config, "manifest.json": manifest}, "layer.tar", "config.json", "manifest.json")
}

// fullDisk gives a host a small disk, fills it, and frees it again.
func fullDisk(t *testing.T) {
	c, err := cluster.New(t.Context(), cluster.Config{Name: labName("f"), Hosts: 1, Bare: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			dumpLogs(t, c)
		}
		if err := c.Down(); err != nil {
			t.Error(err)
		}
	})
	host := c.Hosts[0]
	data := c.DataDir(host)
	disk := filepath.Join(c.Dir, "disk.img")
	if _, err := c.On(t.Context(), host.Name, "sh", "-c", fmt.Sprintf("truncate -s 128M %[1]s && mkfs.ext4 -q %[1]s && mount -o loop %[1]s %[2]s", disk, data)); err != nil {
		t.Skipf("no loop devices here: %v", err)
	}
	if err := c.Form(t.Context(), func(string, ...any) {}); err != nil {
		t.Fatal(err)
	}
	if err := c.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	marks := writeMarks(t, c, "before", 5)
	filler := filepath.Join(data, "filler")
	if _, err := c.On(t.Context(), host.Name, "sh", "-c", "cat /dev/zero > "+filler+" 2>/dev/null; true"); err != nil {
		t.Fatal(err)
	}
	var refusal error
	for i := 0; i < 200 && refusal == nil; i++ { // the log has some room in pages that it owns already
		_, refusal = c.Client.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("fill-%d", i)}, Data: map[string]string{"a": strings.Repeat("x", 1<<19)}}, metav1.CreateOptions{})
	}
	if refusal == nil {
		t.Fatal("100 MiB were written to a full disk")
	}
	if !strings.Contains(refusal.Error(), "disk") && !strings.Contains(refusal.Error(), "leader") {
		t.Errorf("a write to a full disk: %v", refusal)
	}
	if _, err := c.On(t.Context(), host.Name, "rm", filler); err != nil {
		t.Fatal(err)
	}
	eventually(t, "writes succeed once there is room", func() error {
		_, err := c.Client.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "after-"}}, metav1.CreateOptions{})
		return err
	})
	wantMarks(t, c, marks)
}
