package hosts

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"conclave/consensus"
)

// TestDamagedLog turns the newest entry of a master's log into noise while its
// process is dead. The master must not go on with that log, nor stay away: it
// gets another from the others, and says so. One that is alone says what to do.
func TestDamagedLog(t *testing.T) {
	t.Parallel()
	c := own(t, 3)
	hurt := c.Hosts[1]
	awaitSet(t, c, c.Hosts[0].Name, "three masters", func(s masterSet) bool { return s.Masters.Working == 3 })
	kubectl(t, c, "create", "configmap", "kept", "--from-literal=a=b")
	spoil := func() {
		t.Helper()
		for _, step := range []func(string) error{c.Kill, c.CorruptLog} {
			if err := step(hurt.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	spoil()
	if err := c.Start(hurt.Name, "up"); err != nil {
		t.Fatal(err)
	}
	aside := consensus.Damaged(filepath.Join(c.DataDir(hurt), "raft"))
	eventually(t, "the damaged log is set aside", func() error { _, err := os.Stat(aside); return err })
	// The leader may first have to notice that the vote is lost.
	awaitSet(t, c, hurt.Name, "three masters again", func(s masterSet) bool {
		return s.Masters.Working == 3 && strings.Contains(s.String(), hurt.Name)
	})
	eventually(t, "an event tells", func() error {
		said := kubectl(t, c, "get", "events", "--field-selector", "reason=MasterLogDamaged,involvedObject.name="+hurt.Name)
		if !strings.Contains(said, aside) {
			return fmt.Errorf("the events are %s", said)
		}
		return nil
	})
	if said := kubectl(t, c, "--server", "https://"+hurt.Address.String()+":6443", "get", "configmap", "kept", "-o", "jsonpath={.data.a}"); said != "b" {
		t.Errorf("the new log holds %q", said)
	}
}
