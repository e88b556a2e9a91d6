package hosts

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
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

// The credentials of s3Server are in the environment of every host.
func init() {
	for name, value := range map[string]string{"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "something"} {
		if err := os.Setenv(name, value); err != nil {
			panic(err)
		}
	}
}

// s3Server runs a real S3 server where a lab's hosts reach it, with a bucket
// "backups".
func s3Server(t *testing.T, c *cluster.Cluster) (endpoint string) {
	t.Helper()
	binary := filepath.Join(c.Root, "bin", "s3")
	if _, err := os.Stat(binary); err != nil {
		t.Skip("there is no S3 server to test with: run `make s3`")
	}
	address := netip.AddrPortFrom(c.Gateway(), 7070).String() // the bridge is this lab's own
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "backups"), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	server := exec.CommandContext(ctx, binary, "--access", "someone", "--secret", "something", "--port", address, "posix", "--sidecar", t.TempDir(), root)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		_ = server.Wait() // it was killed
	})
	endpoint = "http://" + address
	eventually(t, "the S3 server answers", func() error {
		answer, err := http.Get(endpoint)
		if err == nil {
			err = answer.Body.Close()
		}
		return err
	})
	return endpoint
}

// TestSnapshots saves a cluster by hand and on its schedule, loses all of it but
// one node, and restores it on a new machine.
func TestSnapshots(t *testing.T) {
	t.Parallel()
	c := own(t, 3)
	endpoint := s3Server(t, c)
	conclave := func(host string, args ...string) (string, error) {
		return c.On(t.Context(), host, append([]string{"env", "AWS_ENDPOINT_URL=" + endpoint, c.Binary}, args...)...)
	}
	must := func(host string, args ...string) string {
		t.Helper()
		out, err := conclave(host, args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	leader(t, c, 3)
	marks := writeMarks(t, c, "kept", 50)
	if _, err := c.Client.CoreV1().Secrets("default").Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "hidden"}, StringData: map[string]string{"text": "the-hidden-text"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	names := []string{c.Hosts[0].Name, c.Hosts[1].Name, c.Hosts[2].Name}
	cluster8 := strings.Fields(must(names[0], "status"))[1][:8]

	// By hand, on the machine's disk.
	file, phrase := filepath.Join(c.Dir, "by-hand"), filepath.Join(c.Dir, "passphrase")
	if err := os.WriteFile(phrase, []byte("correct horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := conclave(names[1], "snapshot", "save", file); err == nil || !strings.Contains(err.Error(), "--passphrase-file") {
		t.Errorf("saving without a passphrase: %v", err)
	}
	mustContain(t, "snapshot save", must(names[1], "snapshot", "save", "--passphrase-file", phrase, file), "saved cluster "+cluster8, "by-hand in "+c.Dir)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(raw), "kept-7") || strings.Contains(string(raw), "the-hidden-text") {
		t.Error("the file can be read without a key")
	}
	mustContain(t, "snapshot ls of a file", must(names[1], "snapshot", "ls", file), cluster8, `"revision":`)

	// On schedule, to S3. A first one with an old name makes the next overdue.
	key := filepath.Join(c.Dir, "key")
	recipient := strings.TrimSpace(must(names[2], "snapshot", "key", key))
	must(names[2], "snapshot", "save", "--recipient", recipient, fmt.Sprintf("s3://backups/edge/conclave-%s-20200101T000000Z-1.snapshot", cluster8))
	apply(t, c, "kube-system", fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: conclave-snapshot}
stringData: {AWS_ACCESS_KEY_ID: someone, AWS_SECRET_ACCESS_KEY: something}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: conclave}
data:
  snapshot.schedule: "@every 24h"
  snapshot.to: s3://backups/edge
  snapshot.keep: "1"
  snapshot.recipients: %s
  snapshot.endpoint: %s
`, recipient, endpoint))
	eventually(t, "a scheduled snapshot", func() error {
		out, err := c.Kubectl(t.Context(), "get", "events", "-n", "kube-system", "--field-selector", "involvedObject.name=conclave")
		if err == nil && !strings.Contains(out, "SnapshotSaved") {
			err = errors.New(out)
		}
		return err
	})
	var listed []string
	eventually(t, "the older one is deleted", func() error {
		listed = strings.Fields(must(names[0], "snapshot", "ls", "s3://backups/edge"))
		if len(listed) != 8 { // the head and one row
			return fmt.Errorf("it lists %v", listed)
		}
		return nil
	})
	kubectl(t, c, "patch", "configmap", "conclave", "-n", "kube-system", "--type=merge", "-p", `{"data":{"snapshot.schedule":"sometimes"}}`)
	eventually(t, "a wrong schedule is told", func() error {
		out, err := c.Kubectl(t.Context(), "get", "events", "-n", "kube-system", "--field-selector", "reason=SnapshotConfigInvalid")
		if err == nil && !strings.Contains(out, "sometimes") {
			err = errors.New(out)
		}
		return err
	})

	// A new machine. While the cluster lives, nothing is restored.
	lost := writeMarks(t, c, "later", 5)
	fresh, err := c.Add()
	if err != nil {
		t.Fatal(err)
	}
	from := "s3://backups/edge/" + listed[4]
	restore := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		return c.On(ctx, fresh.Name, append([]string{c.Binary, "snapshot", "restore", "--endpoint", endpoint}, args...)...)
	}
	damaged := filepath.Join(c.Dir, "damaged")
	raw[len(raw)/2] ^= 1
	if err := os.WriteFile(damaged, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(phrase+"-wrong", []byte("wrong horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"the snapshot is damaged":         {"--passphrase-file", phrase, damaged},
		"this key does not open":          {"--passphrase-file", phrase + "-wrong", file},
		"no such file":                    {"--passphrase-file", phrase, file + "-not"},
		"leads, and a majority":           {"--identity", key, from},
		"does not open the snapshot":      {"--identity", key, file},
		"NoSuchBucket":                    {"--identity", key, "s3://nowhere/x"},
		"`conclave snapshot ls s3://back": {"--identity", key, "s3://backups/edge/"},
	} {
		if _, err := restore(args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("restore %v: want %q: %v", args, want, err)
		}
	}
	// One master is left, with what was written since.
	if err := c.PowerOff(names...); err != nil {
		t.Fatal(err)
	}
	boot(t, c, names[2])
	eventually(t, names[2]+" has begun", func() error {
		out, err := conclave(names[2], "status")
		if err == nil && !strings.Contains(out, "no majority: 1 of 3 masters") {
			err = errors.New(out)
		}
		return err
	})
	if _, err := restore("--identity", key, from); err == nil || !strings.Contains(err.Error(), "node "+names[2]+" lives and has the cluster's state up to revision") {
		t.Fatalf("restoring beside it: %v", err)
	}
	if _, err := os.Stat(filepath.Join(c.DataDir(fresh), "raft")); err == nil {
		t.Error("a restore that was refused has left something")
	}
	if err := c.Start(fresh.Name, "snapshot", "restore", "--endpoint", endpoint, "--identity", key, "--give-up-newer", from); err != nil {
		t.Fatal(err)
	}
	// The old credentials are good at the new machine.
	client := clientsOf(t, c, 0, fresh.Name)[0]
	eventually(t, "the new machine answers with the old state", func() error {
		for _, name := range marks {
			if _, err := client.CoreV1().ConfigMaps("default").Get(t.Context(), name, metav1.GetOptions{}); err != nil {
				return err
			}
		}
		return nil
	})
	if secret, err := client.CoreV1().Secrets("default").Get(t.Context(), "hidden", metav1.GetOptions{}); err != nil || string(secret.Data["text"]) != "the-hidden-text" {
		t.Errorf("the secret is %v, %v", secret.Data, err)
	}
	if _, err := client.CoreV1().ConfigMaps("default").Get(t.Context(), lost[0], metav1.GetOptions{}); err == nil {
		t.Error("what was written after the snapshot is there")
	}
	eventually(t, "the node that lives is back by itself", func() error {
		for _, m := range statusOn(t, c, fresh.Name).Members {
			if m.Name == names[2] && m.State == "alive" && m.Role == "standby" {
				return nil
			}
		}
		return fmt.Errorf("the members are %+v", statusOn(t, c, fresh.Name).Members)
	})
	connect(t, c, names[2])
	wantMarks(t, c, append(marks, writeMarks(t, c, "restored", 5)...))
}
