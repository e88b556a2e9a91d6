package hosts

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"conclave/test/cluster"
)

// member is a row of `conclave status`.
type member struct{ ID, Name, Address, State, Role string }

// statusOn is what conclave on a host says of the cluster.
func statusOn(t *testing.T, c *cluster.Cluster, host string) (s struct {
	Leader   string
	Members  []member
	Problems []string
}) {
	t.Helper()
	out, err := c.On(t.Context(), host, c.Binary, "status", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// roles sorts the nodes by what they do for the cluster, as one host sees it,
// once there are that many masters and, where a node is left for it, a standby:
// the masters with the leader first, the standby, and the rest.
func roles(t *testing.T, c *cluster.Cluster, host string, masters int) (voters []string, standby string, plain []string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d masters and a standby", masters), func() error {
		voters, standby, plain = nil, "", nil
		for _, m := range statusOn(t, c, host).Members {
			switch {
			case m.State != "alive":
			case m.Role == "leader":
				voters = append([]string{m.Name}, voters...)
			case m.Role == "master":
				voters = append(voters, m.Name)
			case m.Role == "standby":
				standby = m.Name
			default:
				plain = append(plain, m.Name)
			}
		}
		if standby == "" || len(voters) != masters {
			return fmt.Errorf("masters are %v, the standby is %q", voters, standby)
		}
		return nil
	})
	return voters, standby, plain
}

// connect makes the cluster's clients talk to one host.
func connect(t *testing.T, c *cluster.Cluster, host string) {
	t.Helper()
	text, err := c.On(t.Context(), host, c.Binary, "kubeconfig")
	if err == nil {
		err = os.WriteFile(c.Kubeconfig, []byte(text), 0o600)
	}
	if err == nil {
		c.Client, err = c.ClientFor("", func(*rest.Config) {})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func addressOf(t *testing.T, c *cluster.Cluster, host string) string {
	t.Helper()
	h, err := c.Host(host)
	if err != nil {
		t.Fatal(err)
	}
	return h.Address.String()
}

// wipe empties the disk of a host that is off.
func wipe(t *testing.T, c *cluster.Cluster, host string) {
	t.Helper()
	h, err := c.Host(host)
	if err == nil {
		err = os.RemoveAll(c.DataDir(h))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// wantReplicated waits until a host's own copy of the state has an object.
func wantReplicated(t *testing.T, c *cluster.Cluster, host, name string) {
	t.Helper()
	client := clientsOf(t, c, 0, host)[0]
	eventually(t, host+" has "+name, func() error {
		_, err := client.CoreV1().ConfigMaps("default").Get(t.Context(), name, metav1.GetOptions{ResourceVersion: "0"})
		return err
	})
}

// calledDead waits until a host's gossip has given up the others.
func calledDead(t *testing.T, c *cluster.Cluster, host string, gone []string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s calls %v dead", host, gone), func() error {
		for _, m := range statusOn(t, c, host).Members {
			if slices.Contains(gone, m.Name) && m.State != "dead" {
				return fmt.Errorf("%s is %s", m.Name, m.State)
			}
		}
		return nil
	})
}

// TestRecoverAfterTheMastersAreLost cuts the power of all masters of five nodes,
// and wipes the disks of two. A node that never was a master is told to
// recover; the standby goes on with every acknowledged write. The one master
// that comes back with its disk gives its log up.
func TestRecoverAfterTheMastersAreLost(t *testing.T) {
	t.Parallel()
	c := own(t, 5)
	if err := c.Import(t.Context(), "busybox"); err != nil {
		t.Fatal(err)
	}
	voters, standby, plain := roles(t, c, c.Hosts[0].Name, 3)
	apply(t, c, "default", deployment)
	wantReady(t, c, 5, 2)
	marks := writeMarks(t, c, "kept", 100)
	wantReplicated(t, c, standby, marks[len(marks)-1])
	if _, err := c.On(t.Context(), plain[0], c.Binary, "recover", "--yes"); err == nil || !strings.Contains(err.Error(), voters[0]+" leads") {
		t.Errorf("recovering a healthy cluster: %v", err)
	}
	token, err := c.On(t.Context(), plain[0], c.Binary, "token", "--bare")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.PowerOff(voters...); err != nil {
		t.Fatal(err)
	}
	if _, err := c.On(t.Context(), plain[0], c.Binary, "recover"); err == nil || !strings.Contains(err.Error(), "gossip still sees") {
		seen := 0 // gossip may have been faster than the question
		for _, m := range statusOn(t, c, plain[0]).Members {
			if slices.Contains(voters, m.Name) && m.State != "dead" {
				seen++
			}
		}
		if err == nil || !strings.Contains(err.Error(), "--yes") || seen > len(voters)/2 {
			t.Errorf("recovering while gossip sees %d of the masters: %v", seen, err)
		}
	}
	calledDead(t, c, plain[0], voters)
	calledDead(t, c, standby, voters)
	mustContain(t, "the status of the standby", strings.Join(statusOn(t, c, standby).Problems, "\n"), "no majority: 0 of 3 masters", "conclave recover")
	nothingLies(t, c, plain[0], standby, marks[7])
	if _, err := c.On(t.Context(), plain[0], c.Binary, "recover"); err == nil || !strings.Contains(err.Error(), "--yes") {
		t.Errorf("recovering without a word: %v", err)
	}
	out, err := c.On(t.Context(), plain[0], c.Binary, "recover", "--yes")
	if err != nil {
		t.Fatal(err)
	}
	t.Log(out)
	mustContain(t, "recover", out, "3 of 3 masters do not answer", standby+" has the most of the log", "Lost is what was written after revision", standby+" leads since")
	connect(t, c, standby)
	wantMarks(t, c, marks)

	// Two of the dead come back with empty disks, one with its old log.
	for i, host := range voters {
		if i < 2 {
			wipe(t, c, host)
			if err := c.Boot(host, netip.Addr{}); err != nil {
				t.Fatal(err)
			}
			if err := c.Start(host, "join", strings.TrimSpace(token), addressOf(t, c, standby)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		boot(t, c, host)
	}
	voters3, _, _ := roles(t, c, standby, 3)
	t.Logf("the masters are %v", voters3)
	if err := c.Import(t.Context(), "busybox"); err != nil { // on the disks that were wiped
		t.Fatal(err)
	}
	marks = append(marks, writeMarks(t, c, "after", 20)...)
	wantMarks(t, c, marks)
	wantReady(t, c, 5, 2)
	if problems := statusOn(t, c, standby).Problems; len(problems) > 0 {
		t.Errorf("problems: %v", problems)
	}
}

// nothingLies asks a node that is no master while no majority is there: what
// cannot be known is refused, and what may be old says so.
func nothingLies(t *testing.T, c *cluster.Cluster, host, standby, mark string) {
	t.Helper()
	connect(t, c, host)
	if out, err := c.Kubectl(t.Context(), "get", "configmap", mark); err == nil || !strings.Contains(out, "conclave recover") {
		t.Errorf("a plain read without a majority: %v: %s", err, out)
	}
	out, err := c.Kubectl(t.Context(), "get", "--raw", "/api/v1/namespaces/default/configmaps/"+mark+"?resourceVersion=0")
	if err != nil {
		t.Error(err)
	}
	mustContain(t, "a read of what may be old", out, mark, "this may be old: it is node "+standby+"'s own copy")
	out, err = c.On(t.Context(), host, c.Binary, "get", "--stale", "configmap", mark)
	if err != nil {
		t.Error(err)
	}
	mustContain(t, "get --stale", out, mark, "this may be old")
	if out, err := c.On(t.Context(), host, c.Binary, "get", "configmap", mark); err == nil || !strings.Contains(err.Error(), "conclave recover") {
		t.Errorf("a plain read of our own without a majority: %v: %s", err, out)
	}
	began := time.Now()
	_, err = c.Client.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "refused"}}, metav1.CreateOptions{})
	if !apierrors.IsServiceUnavailable(err) || !strings.Contains(err.Error(), "conclave recover") {
		t.Errorf("a write without a majority: %v", err)
	}
	t.Logf("a write was refused after %s", time.Since(began))
}

// TestReturnedMajorityIsNobody recovers from the standby of five nodes, and
// then has all three old masters come back together, with their logs.
func TestReturnedMajorityIsNobody(t *testing.T) {
	t.Parallel()
	c := own(t, 5)
	voters, standby, _ := roles(t, c, c.Hosts[0].Name, 3)
	marks := writeMarks(t, c, "kept", 20)
	wantReplicated(t, c, standby, marks[len(marks)-1])
	if err := c.PowerOff(voters...); err != nil {
		t.Fatal(err)
	}
	calledDead(t, c, standby, voters)
	for _, h := range others(c, standby) {
		if !slices.Contains(voters, h) {
			calledDead(t, c, h, voters)
		}
	}
	if _, err := c.On(t.Context(), standby, c.Binary, "recover", "--yes"); err != nil {
		t.Fatal(err)
	}
	connect(t, c, standby)
	marks = append(marks, writeMarks(t, c, "recovered", 20)...)
	for _, host := range voters {
		boot(t, c, host)
	}
	// Whatever they answer, it is the recovered cluster's state.
	for _, host := range voters {
		client := clientsOf(t, c, 0, host)[0]
		eventually(t, host+" answers", func() error {
			_, err := client.CoreV1().ConfigMaps("default").Get(t.Context(), marks[len(marks)-1], metav1.GetOptions{})
			return err
		})
	}
	roles(t, c, standby, 3)
	wantMarks(t, c, append(marks, writeMarks(t, c, "whole", 20)...))
	for _, host := range voters {
		eventually(t, host+" to see a leader", func() error {
			if s := statusOn(t, c, host); s.Leader == "" {
				return fmt.Errorf("%q", s.Problems)
			}
			return nil
		})
	}
}

// TestRecoverOneOfTwo loses the only voter of two nodes.
func TestRecoverOneOfTwo(t *testing.T) {
	t.Parallel()
	c := own(t, 2)
	voters, standby, _ := roles(t, c, c.Hosts[0].Name, 1)
	marks := writeMarks(t, c, "kept", 50)
	wantReplicated(t, c, standby, marks[len(marks)-1])
	if err := c.PowerOff(voters...); err != nil {
		t.Fatal(err)
	}
	calledDead(t, c, standby, voters)
	out, err := c.On(t.Context(), standby, c.Binary, "recover", "--yes")
	if err != nil {
		t.Fatal(err)
	}
	t.Log(out)
	connect(t, c, standby)
	wantMarks(t, c, marks)
	marks = append(marks, writeMarks(t, c, "alone", 20)...)
	// The old voter comes back: alone it would lead at once.
	boot(t, c, voters[0])
	client := clientsOf(t, c, 0, voters[0])[0]
	eventually(t, "the old voter answers", func() error {
		_, err := client.CoreV1().ConfigMaps("default").Get(t.Context(), marks[len(marks)-1], metav1.GetOptions{})
		return err
	})
	eventually(t, "it is the standby", func() error {
		for _, m := range statusOn(t, c, standby).Members {
			if m.Name == voters[0] && m.Role == "standby" {
				return nil
			}
		}
		return errors.New("it is not")
	})
	wantMarks(t, c, marks)
}
