package controller

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// ordinalOf reads the place of a pod in its StatefulSet from its name, -1 if
// it is none of the set's.
func ordinalOf(set *appsv1.StatefulSet, name string) int {
	digits, ok := strings.CutPrefix(name, set.Name+"-")
	if !ok || digits == "" || len(digits) > 1 && digits[0] == '0' {
		return -1
	}
	n, err := strconv.ParseUint(digits, 10, 31)
	if err != nil {
		return -1
	}
	return int(n)
}

func podNameOf(set *appsv1.StatefulSet, ordinal int) string {
	return set.Name + "-" + strconv.Itoa(ordinal)
}

// firstOrdinal and the one after the last are the set's places.
func ordinals(set *appsv1.StatefulSet) (first, end int) {
	if set.Spec.Ordinals != nil {
		first = int(set.Spec.Ordinals.Start)
	}
	return first, first + int(desired(set.Spec.Replicas))
}

func parallel(set *appsv1.StatefulSet) bool {
	return set.Spec.PodManagementPolicy == appsv1.ParallelPodManagement
}

// statefulState is all that the next steps of a StatefulSet depend on.
type statefulState struct {
	set             *appsv1.StatefulSet
	current, update string // names of revisions
	pods            map[int]*corev1.Pod
	// held says that an ordinal's claims are about to go, so that no new pod
	// may have them.
	held func(ordinal int) bool
	now  time.Time
}

type statefulVerb uint8

const (
	createPod   statefulVerb = iota // of step.ordinal, from step.revision
	deletePod                       // step.pod
	replacePod                      // step.pod, which failed: its name is wanted
	identifyPod                     // give step.pod the labels that say which it is
)

// statefulStep is one thing to do to one pod.
type statefulStep struct {
	verb     statefulVerb
	ordinal  int
	pod      *corev1.Pod
	revision string
}

// steps decides what to do now: in order, one thing at a time, each only when
// everything before it is available; or, for a set that is Parallel, all that
// can be done. again is when time alone makes more possible.
func (s *statefulState) steps() (todo []statefulStep, again time.Duration) {
	first, end := ordinals(s.set)
	ordered := !parallel(s.set)
	for n := first; n < end; n++ {
		pod := s.pods[n]
		switch {
		case pod == nil:
			if s.held(n) {
				if ordered {
					return todo, again
				}
				continue
			}
			todo = append(todo, statefulStep{verb: createPod, ordinal: n, revision: s.revisionFor(n)})
			if ordered {
				return todo, again
			}
			continue
		case podFinished(pod):
			if pod.DeletionTimestamp == nil {
				todo = append(todo, statefulStep{verb: replacePod, ordinal: n, pod: pod})
			}
			if ordered {
				return todo, again
			}
			continue
		case pod.DeletionTimestamp != nil:
			if ordered {
				return todo, again
			}
			continue
		case !s.identified(n, pod):
			todo = append(todo, statefulStep{verb: identifyPod, ordinal: n, pod: pod})
		}
		if left, ok := s.available(pod); !ok {
			again = sooner(again, left)
			if ordered {
				return todo, again
			}
		}
	}
	if waiting := s.scaleDown(first, end, &todo, &again); waiting {
		return todo, again
	}
	if len(todo) == 0 {
		todo = s.roll(first, end)
	}
	return todo, again
}

// sooner is the earlier of two delays, where 0 is never.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// available says whether a pod counts as running well; left is how long it
// must still stay ready for that, 0 if time will not help.
func (s *statefulState) available(pod *corev1.Pod) (left time.Duration, ok bool) {
	if pod.DeletionTimestamp != nil || pod.Status.Phase != corev1.PodRunning {
		return 0, false
	}
	left, ready := availableIn(pod, time.Duration(s.set.Spec.MinReadySeconds)*time.Second, s.now)
	return left, ready && left == 0
}

func (s *statefulState) identified(n int, pod *corev1.Pod) bool {
	return pod.Labels[appsv1.StatefulSetPodNameLabel] == pod.Name && pod.Labels[appsv1.PodIndexLabel] == strconv.Itoa(n)
}

// scaleDown deletes the pods that the set no longer has places for, the highest
// first. waiting says that nothing else may be done before.
func (s *statefulState) scaleDown(first, end int, todo *[]statefulStep, again *time.Duration) (waiting bool) {
	ordered := !parallel(s.set)
	var surplus []int
	for n := range s.pods {
		if n < first || n >= end {
			surplus = append(surplus, n)
		}
	}
	slices.Sort(surplus)
	// Of those that keep everything else waiting, the first one may go: nobody
	// waits for it to get well.
	ill := -1
	for _, n := range surplus {
		if _, ok := s.available(s.pods[n]); !ok {
			ill = n
			break
		}
	}
	slices.Reverse(surplus)
	for _, n := range surplus {
		pod := s.pods[n]
		if pod.DeletionTimestamp != nil {
			if ordered {
				return true
			}
			continue
		}
		if left, ok := s.available(pod); ordered && !ok && n != ill {
			*again = sooner(*again, left)
			return true
		}
		*todo = append(*todo, statefulStep{verb: deletePod, ordinal: n, pod: pod})
		if ordered {
			return true
		}
	}
	return false
}

// revisionFor is the revision that a new pod of an ordinal is made from.
func (s *statefulState) revisionFor(n int) string {
	first, _ := ordinals(s.set)
	if n < first+s.partition() {
		return s.current
	}
	return s.update
}

// partition is how many of the first pods a rolling update leaves alone.
func (s *statefulState) partition() int {
	r := s.set.Spec.UpdateStrategy.RollingUpdate
	if s.set.Spec.UpdateStrategy.Type != appsv1.RollingUpdateStatefulSetStrategyType || r == nil || r.Partition == nil {
		return 0
	}
	return int(*r.Partition)
}

func (s *statefulState) maxUnavailable(replicas int) int {
	most := 1
	if r := s.set.Spec.UpdateStrategy.RollingUpdate; r != nil && r.MaxUnavailable != nil {
		if n, err := intstr.GetScaledValueFromIntOrPercent(r.MaxUnavailable, replicas, true); err == nil {
			most = max(n, 1)
		}
	}
	return most
}

// roll deletes pods of old revisions, from the highest place down to the
// partition, so that they are made anew; never so many that more than
// maxUnavailable are missing.
func (s *statefulState) roll(first, end int) (todo []statefulStep) {
	if s.set.Spec.UpdateStrategy.Type != appsv1.RollingUpdateStatefulSetStrategyType {
		return nil
	}
	may := s.maxUnavailable(end - first)
	for n := first; n < end; n++ {
		if pod := s.pods[n]; pod == nil || podFinished(pod) {
			may--
		} else if _, ok := s.available(pod); !ok {
			may--
		}
	}
	lowest := min(first+s.partition(), math.MaxInt32)
	for n := end - 1; n >= lowest; n-- {
		pod := s.pods[n]
		if pod == nil || pod.DeletionTimestamp != nil || revisionLabel(pod) == s.update {
			continue
		}
		// What is missing already is not missed more when it is replaced; and
		// replacing it is what may bring it back.
		if _, ok := s.available(pod); ok {
			if may <= 0 {
				continue
			}
			may--
		}
		todo = append(todo, statefulStep{verb: deletePod, ordinal: n, pod: pod})
	}
	return todo
}

func revisionLabel(pod *corev1.Pod) string { return pod.Labels[appsv1.ControllerRevisionHashLabelKey] }

// statefulSetStatus is the status that the pods amount to.
func statefulSetStatus(s *statefulState, collisions int32) (appsv1.StatefulSetStatus, time.Duration) {
	status := *s.set.Status.DeepCopy()
	status.ObservedGeneration = s.set.Generation
	status.Replicas, status.ReadyReplicas, status.AvailableReplicas = 0, 0, 0
	status.CurrentReplicas, status.UpdatedReplicas = 0, 0
	status.CurrentRevision, status.UpdateRevision, status.CollisionCount = s.current, s.update, &collisions
	var again time.Duration
	minReady := time.Duration(s.set.Spec.MinReadySeconds) * time.Second
	for _, pod := range s.pods {
		status.Replicas++
		if pod.Status.Phase == corev1.PodRunning {
			left, ready := availableIn(pod, minReady, s.now)
			if ready {
				status.ReadyReplicas++
				again = sooner(again, left)
			}
			if ready && left == 0 {
				status.AvailableReplicas++
			}
		}
		if pod.DeletionTimestamp != nil {
			continue
		}
		if revisionLabel(pod) == s.current {
			status.CurrentReplicas++
		}
		if revisionLabel(pod) == s.update {
			status.UpdatedReplicas++
		}
	}
	if s.set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType &&
		status.UpdatedReplicas == status.Replicas && status.ReadyReplicas == status.Replicas && status.UpdatedReplicas == desired(s.set.Spec.Replicas) {
		status.CurrentReplicas, status.CurrentRevision = status.UpdatedReplicas, status.UpdateRevision
	}
	return status, again
}
