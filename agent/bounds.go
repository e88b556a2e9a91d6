package agent

import (
	"context"
	"os"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	podresource "k8s.io/component-helpers/resource"
)

// Bounds are what all pods of the node may take together, and the shares of
// processor time of the pods and of the two lower classes of them. Zero sets
// nothing.
type Bounds struct {
	Memory                        int64 // bytes
	PIDs                          int64
	Shares, Burstable, BestEffort uint64
}

// bounds are those of the node with these pods. Memory is bounded by what is
// not reserved, not by what is allocatable: between the two, pods are evicted,
// which is gentler than the kernel.
func (n *nodeKeeper) bounds(pods []*corev1.Pod) Bounds {
	b := Bounds{BestEffort: minShares}
	left := func(name corev1.ResourceName) resource.Quantity {
		q := n.capacity[name]
		q = q.DeepCopy()
		q.Sub(n.a.cfg.Reserved[name])
		return q
	}
	cpu, memory := left(corev1.ResourceCPU), left(corev1.ResourceMemory)
	b.Shares = sharesOf(cpu.MilliValue())
	b.Memory = max(memory.Value(), 1)
	b.PIDs = max(n.pids-n.pidReserve(), 1)
	var milli int64
	for _, p := range pods {
		if qosClass(p) == corev1.PodQOSBurstable {
			requests := podresource.PodRequests(p, podresource.PodResourcesOptions{})
			milli += requests.Cpu().MilliValue()
		}
	}
	b.Burstable = sharesOf(milli)
	return b
}

func sharesOf(milli int64) uint64 { return max(uint64(milli)*sharesPerCPU/1000, minShares) }

// pidReserve are the process ids that pods together leave to the host: what
// the flags say, or else as many as are to be free.
func (n *nodeKeeper) pidReserve() int64 {
	if q, ok := n.a.cfg.Reserved["pid"]; ok {
		return q.Value()
	}
	return n.a.cfg.EvictionHard.of(signalPIDs).amount(n.pids)
}

// keepBounds sets the node's bounds whenever its pods ask for another sum.
func (a *Agent) keepBounds(ctx context.Context) {
	var set Bounds
	for {
		a.admission.Lock()
		_, staying := a.neighbours(nil)
		a.admission.Unlock()
		if b := a.node.bounds(staying); b != set {
			set = b
			if err := a.cfg.Runtime.SetBounds(b); err != nil {
				a.log.Warn("what pods may take together cannot be bounded", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-a.reckon:
		}
	}
}

// podPIDs is how many processes one pod may have on a node with that much
// memory, where no flag says it: enough for any program, and too few to fill
// the memory with nothing but processes.
func podPIDs(memory int64) int64 { return max(memory>>18, 1024) }

// maxPIDs is how many processes and threads the host can have.
func maxPIDs() int64 {
	least := int64(0)
	for _, file := range []string{"pid_max", "threads-max"} {
		data, err := os.ReadFile("/proc/sys/kernel/" + file)
		if err != nil {
			continue
		}
		if n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64); err == nil && (least == 0 || n < least) {
			least = n
		}
	}
	return least
}
