package cli

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"time"

	"conclave/consensus"
)

// metrics is what this node, a master, tells of itself in Prometheus' text
// format: how its part of the cluster is, and how long took what must be quick.
func (s *Server) metrics() []byte {
	var b bytes.Buffer
	m := s.master.Load()
	if m == nil {
		return nil
	}
	family := func(name, kind, help string, lines ...string) {
		fmt.Fprintf(&b, "# HELP %[1]s %[2]s\n# TYPE %[1]s %[3]s\n", name, help, kind)
		for _, line := range lines {
			fmt.Fprintf(&b, "%s%s\n", name, line)
		}
	}
	value := func(v any) string { return fmt.Sprintf(" %v", v) }
	times := func(name, help string, t consensus.Times) {
		family(name+"_seconds", "summary", help, fmt.Sprintf("_sum %g", t.Sum.Seconds()), fmt.Sprintf("_count %d", t.Count))
		family(name+"_last_seconds", "gauge", help+" The newest one.", value(t.Last.Seconds()))
	}
	status, counted := m.consensus.Status(), m.consensus.Metrics()
	leads := 0
	if status.Leader == status.ID {
		leads = 1
	}
	family("conclave_leader", "gauge", "1 on the master that leads.", value(leads))
	family("conclave_term", "gauge", "The term of the election.", value(status.Term))
	family("conclave_applied_index", "gauge", "The newest revision in this replica.", value(status.Applied))
	family("conclave_log_index", "gauge", "The newest entry of this replica's log.", value(status.Last))
	if set := status.Masters; set != nil {
		family("conclave_masters", "gauge", "The set of masters, as the leader sees it.",
			fmt.Sprintf("{part=\"working\"} %d", set.Voters), fmt.Sprintf("{part=\"target\"} %d", set.Target), fmt.Sprintf("{part=\"standby\"} %d", set.Standby))
	}
	times("conclave_election", "From the last word of the leader before until this node led.", counted.Elections)
	times("conclave_detection", "From the last sign of a node until it was called dead, while this node led.", consensus.Times(m.judge.Detections()))
	times("conclave_master_replacement", "From the first doubt about a master until there were enough again, while this node led.", counted.Replacements)
	family("conclave_master_changes_total", "counter", "Changes of the set of masters that this node made.", value(counted.Changes))
	family("conclave_writes_total", "counter", "Attempts to write that began on this node.", value(counted.Writes))
	family("conclave_writes_forwarded_total", "counter", "Of them, those that went to another node.", value(counted.Forwarded))
	family("conclave_commit_seconds", "summary", "From an entry's proposal by this node until it was applied.",
		fmt.Sprintf("_sum %g", counted.CommitTime.Seconds()), fmt.Sprintf("_count %d", counted.Commits))
	family("conclave_watch_window_events", "gauge", "Events kept for watches that resume.", value(counted.Window))
	family("conclave_watch_window_bytes", "gauge", "Their size in the log.", value(counted.WindowBytes))
	var rejected, dispatched, executing, queued, nominal, current, seats []string
	for _, l := range m.api.Fairness() {
		level := fmt.Sprintf("{priority_level=%q} ", l.Level)
		nominal = append(nominal, fmt.Sprint(level, l.Nominal))
		current = append(current, fmt.Sprint(level, l.Current))
		seats = append(seats, fmt.Sprint(level, l.Serving))
		for _, s := range l.Schemas {
			both := fmt.Sprintf("{flow_schema=%q,priority_level=%q", s.Schema, l.Level)
			dispatched = append(dispatched, fmt.Sprintf("%s} %d", both, s.Served))
			executing = append(executing, fmt.Sprintf("%s} %d", both, s.Serving))
			queued = append(queued, fmt.Sprintf("%s} %d", both, s.Waiting))
			for _, reason := range slices.Sorted(maps.Keys(s.Refused)) {
				rejected = append(rejected, fmt.Sprintf("%s,reason=%q} %d", both, reason, s.Refused[reason]))
			}
		}
	}
	const flow = "apiserver_flowcontrol_"
	family(flow+"rejected_requests_total", "counter", "Requests that priority and fairness refused.", rejected...)
	family(flow+"dispatched_requests_total", "counter", "Requests that were given a seat.", dispatched...)
	family(flow+"current_executing_requests", "gauge", "Requests that have a seat.", executing...)
	family(flow+"current_inqueue_requests", "gauge", "Requests that wait for one.", queued...)
	family(flow+"current_executing_seats", "gauge", "Seats that are taken.", seats...)
	family(flow+"nominal_limit_seats", "gauge", "Seats that are a level's own.", nominal...)
	family(flow+"current_limit_seats", "gauge", "Seats that a level has now, with those that it borrows and without those that it lends.", current...)
	if runner := m.snapshots.Load(); runner != nil {
		r := runner.Result()
		family("conclave_snapshots_total", "counter", "Scheduled snapshots since this node led.", fmt.Sprintf("{result=\"saved\"} %d", r.Saves), fmt.Sprintf("{result=\"failed\"} %d", r.Fails))
		if !r.Saved.IsZero() {
			family("conclave_snapshot_saved_seconds", "gauge", "When the newest scheduled snapshot was made, in seconds since 1970.", value(r.Saved.Unix()))
			family("conclave_snapshot_saved_bytes", "gauge", "Its size.", value(r.Size))
		}
	}
	if ready := time.Duration(s.readyAfter.Load()); ready > 0 {
		family("conclave_ready_seconds", "gauge", "From the start of this process, or from its joining, until its node was Ready.", value(ready.Seconds()))
	}
	return b.Bytes()
}
