package agent

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
)

// Signal is something of which the node can have too little, by Kubernetes'
// name.
type Signal string

const (
	signalMemory      Signal = "memory.available"
	signalNodefs      Signal = "nodefs.available"
	signalNodeInodes  Signal = "nodefs.inodesFree"
	signalImagefs     Signal = "imagefs.available"
	signalImageInodes Signal = "imagefs.inodesFree"
	signalPIDs        Signal = "pid.available"
	// signalPods is memory.available of the pods together: what is allocatable
	// to them less what they use. It has memory.available's hard threshold.
	signalPods Signal = "allocatableMemory.available"
)

// Reading is how much there is of a signal's resource.
type Reading struct{ Available, Capacity int64 }

var signals = []Signal{signalMemory, signalNodefs, signalNodeInodes, signalImagefs, signalImageInodes, signalPIDs}

// Threshold is the least that there is to be of a Signal.
type Threshold struct {
	Signal Signal
	Least  Amount
	// Grace is how long there may be less, and how long the evicted pod has at
	// most: 0 for a hard threshold.
	Grace time.Duration
	// Reclaim is how much more than the least there is to be, once there was
	// less, before it is enough.
	Reclaim Amount
}

// Amount is one of a Signal's resource, or a share of all that there is of it.
type Amount struct {
	Quantity resource.Quantity
	Percent  float64 // 0: Quantity
}

// Thresholds are when pods are evicted.
type Thresholds []Threshold

// DefaultThresholds are Kubernetes', and one for process ids.
const DefaultThresholds = "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,imagefs.inodesFree<5%,pid.available<10%"

// ParseThresholds reads "memory.available<100Mi,nodefs.available<10%". What it
// does not name has none.
func ParseThresholds(text string) (Thresholds, error) {
	var out Thresholds
	for _, item := range strings.Split(text, ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		name, amount, ok := strings.Cut(item, "<")
		t := Threshold{Signal: Signal(strings.TrimSpace(name))}
		if !ok || !slices.Contains(signals, t.Signal) {
			return nil, fmt.Errorf("%q: write SIGNAL<AMOUNT, where SIGNAL is one of %v", item, signals)
		}
		if len(out.of(t.Signal)) > 0 {
			return nil, fmt.Errorf("%s is named twice", t.Signal)
		}
		var err error
		if t.Least, err = parseAmount(strings.TrimSpace(amount)); err != nil {
			return nil, fmt.Errorf("%q: %w", item, err)
		}
		if !t.Least.zero() { // 0 switches a threshold off
			out = append(out, t)
		}
	}
	return out, nil
}

func parseAmount(text string) (a Amount, err error) {
	if share, percent := strings.CutSuffix(text, "%"); percent {
		if a.Percent, err = strconv.ParseFloat(share, 64); err != nil || !(a.Percent >= 0 && a.Percent < 100) {
			return a, errors.New("a share is at least 0% and less than 100%")
		}
		return a, nil
	}
	if a.Quantity, err = resource.ParseQuantity(text); err != nil || a.Quantity.Sign() < 0 {
		return a, fmt.Errorf("%q is neither an amount nor a share", text)
	}
	return a, nil
}

// WithReclaim are the thresholds with what is to be reclaimed of their signals,
// by name: "500Mi" or "5%".
func (t Thresholds) WithReclaim(amounts map[string]string) (Thresholds, error) {
	out := slices.Clone(t)
	for name, text := range amounts {
		if !slices.Contains(signals, Signal(name)) {
			return nil, fmt.Errorf("%q: write SIGNAL=AMOUNT, where SIGNAL is one of %v", name, signals)
		}
		amount, err := parseAmount(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for i := range out {
			if out[i].Signal == Signal(name) {
				out[i].Reclaim = amount
			}
		}
	}
	return out, nil
}

// of are the thresholds of a Signal.
func (t Thresholds) of(s Signal) Thresholds {
	var out Thresholds
	for _, one := range t {
		if one.Signal == s {
			out = append(out, one)
		}
	}
	return out
}

// amount is the largest of the thresholds, where there is this much in all.
func (t Thresholds) amount(all int64) int64 {
	most := int64(0)
	for _, one := range t {
		most = max(most, one.amount(all))
	}
	return most
}

func (t Threshold) amount(all int64) int64 { return t.Least.of(all) }

// enough is how much ends a threshold that was met.
func (t Threshold) enough(all int64) int64 { return t.Least.of(all) + t.Reclaim.of(all) }

func (a Amount) zero() bool { return a.Percent == 0 && a.Quantity.IsZero() }

func (a Amount) of(all int64) int64 {
	if a.Percent > 0 {
		return int64(float64(all) * a.Percent / 100)
	}
	return a.Quantity.Value()
}
