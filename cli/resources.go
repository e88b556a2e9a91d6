package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"conclave/agent"
	"conclave/cli/internal/cli"
)

// NodeResources are the settings about what pods may take of the node; their
// names and forms are those of the kubelet's flags.
type NodeResources struct {
	MaxPods                    int
	PodPIDs                    int64
	Reserved                   corev1.ResourceList
	EvictionHard, EvictionSoft agent.Thresholds
	EvictionTransition         time.Duration
}

func resourceFlags() []cli.Flag {
	text := func(name, value, usage string) cli.Flag {
		return &cli.StringFlag{Name: name, Value: value, Usage: usage, EnvVars: env(name)}
	}
	return []cli.Flag{
		text("max-pods", "110", "how many pods the node takes"),
		text("pod-max-pids", "0", "how many processes a pod may have; 0: by the node's memory, -1: no limit"),
		text("system-reserved", "", "kept back for the system's own programs: `cpu=…,memory=…,ephemeral-storage=…,pid=…`"),
		text("kube-reserved", "memory=100Mi", "kept back for Conclave itself, in the same form"),
		text("eviction-hard", agent.DefaultThresholds, "when pods are evicted at once"),
		text("eviction-soft", "", "when pods are evicted after a while, in the same form"),
		text("eviction-minimum-reclaim", "", "how much more than a threshold there is to be before it is enough, once it was met: `SIGNAL=AMOUNT,…`"),
		text("eviction-soft-grace-period", "", "after which while: `SIGNAL=DURATION,…`"),
		&cli.DurationFlag{Name: "eviction-pressure-transition-period", Value: 5 * time.Minute, Usage: "how long the node says that it is under pressure after the pressure has ended", EnvVars: env("eviction-pressure-transition-period")},
	}
}

// readResources reads what resourceFlags declare.
func readResources(s *settings) (r NodeResources, err error) {
	if r.MaxPods, err = strconv.Atoi(s.any("max-pods")); err != nil || r.MaxPods < 1 {
		return r, fmt.Errorf("--max-pods %q: give a number of at least 1", s.any("max-pods"))
	}
	if r.PodPIDs, err = strconv.ParseInt(s.any("pod-max-pids"), 10, 64); err != nil {
		return r, fmt.Errorf("--pod-max-pids %q: give a number", s.any("pod-max-pids"))
	}
	r.Reserved = corev1.ResourceList{}
	for _, flag := range []string{"system-reserved", "kube-reserved"} {
		list, err := parseReserved(s.text(flag))
		if err != nil {
			return r, fmt.Errorf("--%s: %w", flag, err)
		}
		for name, q := range list {
			sum := r.Reserved[name]
			sum.Add(q)
			r.Reserved[name] = sum
		}
	}
	if r.EvictionHard, err = agent.ParseThresholds(s.text("eviction-hard")); err != nil {
		return r, fmt.Errorf("--eviction-hard: %w", err)
	}
	if r.EvictionSoft, err = agent.ParseThresholds(s.text("eviction-soft")); err != nil {
		return r, fmt.Errorf("--eviction-soft: %w", err)
	}
	for _, list := range []*agent.Thresholds{&r.EvictionHard, &r.EvictionSoft} {
		if *list, err = list.WithReclaim(pairs(s.text("eviction-minimum-reclaim"), "=")); err != nil {
			return r, fmt.Errorf("--eviction-minimum-reclaim: %w", err)
		}
	}
	grace := map[string]time.Duration{}
	for signal, text := range pairs(s.text("eviction-soft-grace-period"), "=") {
		if grace[signal], err = time.ParseDuration(text); err != nil || grace[signal] <= 0 {
			return r, fmt.Errorf("--eviction-soft-grace-period: %q is not a duration", text)
		}
	}
	for i := range r.EvictionSoft {
		t := &r.EvictionSoft[i]
		if t.Grace = grace[string(t.Signal)]; t.Grace == 0 {
			return r, fmt.Errorf("--eviction-soft-grace-period: a grace period must be specified for the soft eviction threshold of %s", t.Signal)
		}
	}
	r.EvictionTransition = s.duration("eviction-pressure-transition-period")
	return r, nil
}

// any is a setting that the file may give as a number.
func (s *settings) any(name string) string {
	if v, ok := s.from(name); ok {
		return fmt.Sprint(v)
	}
	return s.c.String(name)
}

var reservable = []string{"cpu", "memory", "ephemeral-storage", "pid"}

func parseReserved(text string) (corev1.ResourceList, error) {
	list := corev1.ResourceList{}
	for name, amount := range pairs(text, "=") {
		if !slices.Contains(reservable, name) {
			return nil, fmt.Errorf("cannot reserve %q: there are %s", name, strings.Join(reservable, ", "))
		}
		q, err := resource.ParseQuantity(amount)
		if err != nil || q.Sign() < 0 {
			return nil, fmt.Errorf("%s: %q is not an amount", name, amount)
		}
		list[corev1.ResourceName(name)] = q
	}
	return list, nil
}

// pairs reads "a=1,b=2".
func pairs(text, sep string) map[string]string {
	out := map[string]string{}
	for _, item := range strings.Split(text, ",") {
		if item = strings.TrimSpace(item); item != "" {
			name, value, _ := strings.Cut(item, sep)
			out[strings.TrimSpace(name)] = strings.TrimSpace(value)
		}
	}
	return out
}
