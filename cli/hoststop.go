package cli

import (
	"context"
	"os/exec"
	"strings"
	"time"
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
	if s.config.ShutdownGrace <= 0 || !hostGoesDown(context.Background()) {
		return
	}
	s.log.Info("the host goes down: this node's pods are ended", "within", s.config.ShutdownGrace)
	ctx, cancel := context.WithTimeout(s.agentCtx, s.config.ShutdownGrace+tellMargin)
	defer cancel()
	s.agent.Shutdown(ctx, s.config.ShutdownGrace, s.config.ShutdownGraceCritical)
}
