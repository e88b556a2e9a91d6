package agent

import (
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

// Threshold is the least that there is to be of a Signal: an amount, or a share
// of all that there is.
type Threshold struct {
	Signal   Signal
	Quantity resource.Quantity
	Percent  float64 // 0: Quantity
	// Grace is how long there may be less, and how long the evicted pod has at
	// most: 0 for a hard threshold.
	Grace time.Duration
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
		amount = strings.TrimSpace(amount)
		if share, percent := strings.CutSuffix(amount, "%"); percent {
			f, err := strconv.ParseFloat(share, 64)
			if err != nil || !(f >= 0 && f < 100) {
				return nil, fmt.Errorf("%q: a share is at least 0%% and less than 100%%", item)
			}
			t.Percent = f
		} else {
			q, err := resource.ParseQuantity(amount)
			if err != nil || q.Sign() < 0 {
				return nil, fmt.Errorf("%q: %q is neither an amount nor a share", item, amount)
			}
			t.Quantity = q
		}
		if t.Percent > 0 || !t.Quantity.IsZero() { // 0 switches a threshold off
			out = append(out, t)
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

func (t Threshold) amount(all int64) int64 {
	if t.Percent > 0 {
		return int64(float64(all) * t.Percent / 100)
	}
	return t.Quantity.Value()
}
