package hosts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"conclave/test/cluster"
)

// commandLine runs the built binary's lab verbs as a user types them.
type commandLine struct {
	binary, lab, dir string
	input            string
}

// run returns what the command printed on both streams and its exit status.
func (l commandLine) run(ctx context.Context, verb string, args ...string) (string, int, error) {
	cmd := exec.CommandContext(ctx, l.binary, append([]string{"lab", verb, "--lab", l.lab, "--lab-dir", l.dir}, args...)...)
	cmd.Stdin = strings.NewReader(l.input)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return string(out), exit.ExitCode(), nil
	}
	return string(out), 0, err
}

// must runs a command that has to succeed.
func (l commandLine) must(t *testing.T, verb string, args ...string) string {
	t.Helper()
	out, code, err := l.run(t.Context(), verb, args...)
	if err != nil || code != 0 {
		t.Fatalf("lab %s %s: exit status %d, %v: %s", verb, strings.Join(args, " "), code, err, out)
	}
	return out
}

// refuse runs a command that has to fail and say why in one line.
func (l commandLine) refuse(t *testing.T, why, verb string, args ...string) {
	t.Helper()
	out, code, err := l.run(t.Context(), verb, args...)
	if err != nil || code != 1 || !strings.Contains(out, why) || strings.Count(out, "\n") != 1 || !strings.HasPrefix(out, "conclave: ") {
		t.Errorf("lab %s %s: exit status %d, %v: %s\nwanted: %s", verb, strings.Join(args, " "), code, err, out, why)
	}
}

// states waits until `lab ls` shows these states, host by host.
func (l commandLine) states(t *testing.T, wanted ...string) {
	t.Helper()
	eventually(t, "lab ls", func() error {
		lines := strings.Split(strings.TrimSpace(l.must(t, "ls")), "\n")
		var got []string
		for i, line := range lines[1:] {
			f := strings.Fields(line)
			if len(f) < 3 || f[0] != fmt.Sprintf("%s-%d", l.lab, i+1) || (len(f) == 4) != (f[2] == "running") {
				t.Fatalf("lab ls: %q", line)
			}
			got = append(got, f[2])
		}
		if !strings.HasPrefix(lines[0], "HOST") || strings.Join(got, " ") != strings.Join(wanted, " ") {
			return fmt.Errorf("it shows %v, not %v", got, wanted)
		}
		return nil
	})
}

// TestLabCommands drives a lab by the command line alone.
func TestLabCommands(t *testing.T) {
	needRoot(t)
	root, err := cluster.Root()
	if err != nil {
		t.Fatal(err)
	}
	binary := os.Getenv("CONCLAVE_BINARY")
	if binary == "" {
		binary = filepath.Join(root, "bin", "conclave")
	}
	scratch, err := os.MkdirTemp("/var/tmp", "conclave-")
	if err != nil {
		t.Fatal(err)
	}
	l := commandLine{binary: binary, lab: labName("l"), dir: filepath.Join(scratch, "lab")}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if out, code, err := l.run(ctx, "down"); (err != nil || code != 0) && !strings.Contains(out, "no such lab") {
			t.Errorf("lab down: exit status %d, %v: %s", code, err, out)
		}
		if err := os.RemoveAll(scratch); err != nil {
			t.Error(err)
		}
	})

	l.refuse(t, "no such lab", "ls")
	l.refuse(t, "a lab has 1 to 200 hosts", "up", "--nodes", "0")
	l.refuse(t, "give an IPv4 network of 24 bits", "up", "--subnet", "10.0.0.0/8")
	l.refuse(t, "no such lab", "down")
	up := l.must(t, "up", "--nodes", "3")
	mustContain(t, "lab up", up, l.lab+"-1 answers", l.lab+"-2 is ready", l.lab+"-3 is ready")
	l.states(t, "running", "running", "running")
	l.refuse(t, "exists already", "up", "--nodes", "1")

	// exec: output, input, exit status, host by name or number, flags of the command's own.
	if out := l.must(t, "exec", "2", "--", "hostname"); strings.TrimSpace(out) != l.lab+"-2" {
		t.Errorf("hostname of host 2: %q", out)
	}
	typed := l
	typed.input = "hello\n"
	if out := typed.must(t, "exec", l.lab+"-3", "--", "cat", "-"); out != "hello\n" {
		t.Errorf("cat gives %q", out)
	}
	if out, code, err := l.run(t.Context(), "exec", "1", "--", "sh", "-c", "echo out; echo problem >&2; exit 7"); code != 7 || err != nil || !strings.Contains(out, "out\n") || !strings.Contains(out, "problem\n") {
		t.Errorf("exit status %d, %v: %q", code, err, out)
	}
	l.refuse(t, "needs a host and a command", "exec", "1")
	l.refuse(t, "has no host", "exec", "4", "--", "true")
	mustContain(t, "nodes", l.must(t, "exec", "1", "--", "conclave", "get", "nodes"), l.lab+"-1", l.lab+"-2", l.lab+"-3")
	mustContain(t, "kubeconfig", l.must(t, "kubeconfig"), "apiVersion: v1", "kind: Config", "https://")

	l.must(t, "kill", "3")
	l.states(t, "running", "running", "stopped")
	l.refuse(t, "does not run", "kill", "3")
	l.must(t, "start", "3")
	l.states(t, "running", "running", "running")
	l.refuse(t, "runs on host", "start", "3")
	l.must(t, "stop", "2")
	l.states(t, "running", "stopped", "running")
	l.must(t, "start", "2")

	l.must(t, "power-off", "2", "3")
	l.states(t, "running", "off", "off")
	l.refuse(t, "is off", "exec", "2", "--", "true")
	l.refuse(t, "is off", "power-off", "2")
	l.must(t, "start", "2", "3")
	l.states(t, "running", "running", "running")

	address := regexp.MustCompile(`(?m)^` + l.lab + `-2\s+(\S+)`).FindStringSubmatch(l.must(t, "ls"))[1]
	reaches := func(host string) bool {
		_, code, err := l.run(t.Context(), "exec", host, "--", "busybox", "ping", "-c", "1", "-W", "1", address)
		if err != nil {
			t.Fatal(err)
		}
		return code == 0
	}
	l.must(t, "partition", "1", l.lab+"-2,3")
	if reaches("1") || !reaches("3") {
		t.Error("after the partition host 1 reaches host 2, or host 3 does not")
	}
	l.refuse(t, "is in two groups", "partition", "1,2", "2,3")
	l.must(t, "heal")
	if !reaches("1") || !reaches("3") {
		t.Error("after the heal not everybody reaches host 2")
	}
	eventually(t, "all nodes are ready", func() error {
		out, code, err := l.run(t.Context(), "exec", "1", "--", "conclave", "get", "nodes")
		if err == nil && (code != 0 || strings.Count(out, " Ready ") != 3) {
			err = fmt.Errorf("exit status %d: %s", code, out)
		}
		return err
	})

	l.must(t, "down")
	l.refuse(t, "no such lab", "ls")
	for what, left := range machine(t, l.lab, scratch) {
		if left != "" {
			t.Errorf("%s are left:\n%s", what, left)
		}
	}
}
