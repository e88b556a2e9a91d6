package cli

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"conclave/agent"
)

const (
	hostAsked  = 5 * time.Second        // to be told whether the host goes down
	tellMargin = 500 * time.Millisecond // for the last word to the API
)

// hostGoesDown says whether this process is being ended because its host is:
// systemd says so. Where there is no systemd nobody does.
func hostGoesDown(ctx context.Context) bool {
	systemctl, err := exec.LookPath("systemctl")
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, hostAsked)
	defer cancel()
	// It exits with an error in all states but one.
	out, _ := exec.CommandContext(ctx, systemctl, "is-system-running").Output()
	return strings.TrimSpace(string(out)) == "stopping"
}

// endPods ends this node's pods in order if the host goes down and somebody
// has asked for that: pods outlive this process, and so it alone is no reason.
func (s *Server) endPods() {
	within := time.Duration(0)
	for _, p := range s.config.Shutdown {
		within += p.Grace
	}
	if within <= 0 || !hostGoesDown(context.Background()) {
		return
	}
	s.log.Info("the host goes down: this node's pods are ended", "within", within)
	ctx, cancel := context.WithTimeout(s.agentCtx, within+tellMargin)
	defer cancel()
	s.agent.Shutdown(ctx, s.config.Shutdown)
}

// readShutdown reads what pods get to end when the host goes down: a period for
// each of some priorities, or one with a part that is kept for critical pods.
func readShutdown(grace, critical time.Duration, byPriority string) ([]agent.ShutdownPeriod, error) {
	if byPriority == "" {
		if critical < 0 || grace < critical {
			return nil, fmt.Errorf("--shutdown-grace-period-critical-pods %v: it is a part of --shutdown-grace-period, which is %v", critical, grace)
		}
		if grace == 0 {
			return nil, nil
		}
		return []agent.ShutdownPeriod{{Grace: grace - critical}, {Priority: agent.CriticalPriority, Grace: critical}}, nil
	}
	if grace != 0 || critical != 0 {
		return nil, errors.New("--shutdown-grace-period-by-pod-priority says all that --shutdown-grace-period and --shutdown-grace-period-critical-pods do: give it without them")
	}
	var out []agent.ShutdownPeriod
	for priority, period := range pairs(byPriority, "=") {
		n, err := strconv.ParseInt(priority, 10, 32)
		d, derr := time.ParseDuration(period)
		if err != nil || derr != nil || d < 0 {
			return nil, fmt.Errorf("--shutdown-grace-period-by-pod-priority %q: write PRIORITY=DURATION,…", byPriority)
		}
		out = append(out, agent.ShutdownPeriod{Priority: int32(n), Grace: d})
	}
	return out, nil
}
