package agent

import "testing"

func TestSystemOOM(t *testing.T) {
	const global = "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/system.slice/db.service,task=mysqld, 1,pid=7691,uid=105"
	for record, want := range map[string]struct {
		name string
		pid  int
	}{
		"6,1234,98765,-;" + global + "\n":                          {"mysqld, 1", 7691},
		"6,1234,98765,-;" + global + "\n SUBSYSTEM=x\n DEVICE=y\n": {"mysqld, 1", 7691},
		// Anybody's word, which has another facility.
		"14,1234,98765,-;" + global + "\n": {},
		// Of a cgroup.
		"6,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/a,task_memcg=/a/b,task=tail,pid=12,uid=0\n": {},
		"6,1,2,-;Out of memory: Killed process 7691 (mysqld) total-vm:1kB\n":                                                                         {},
		"6,1,2,-;oom-kill:constraint=CONSTRAINT_NONE,task=a,pid=x,uid=0\n":                                                                           {},
		"6,1,2,-;oom-kill:constraint=CONSTRAINT_NONE,pid=4,task=\n":                                                                                  {},
		"": {},
	} {
		name, pid, ok := systemOOM([]byte(record))
		if ok != (want.pid != 0) || ok && (name != want.name || pid != want.pid) {
			t.Errorf("%q: %q %d %v", record, name, pid, ok)
		}
	}
}
