package controller

import (
	"fmt"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"conclave/api/kinds"
)

// policyVerdict is what a failure policy says of a failed pod: by default that it
// counts.
type policyVerdict struct {
	action batchv1.PodFailurePolicyAction
	why    string
}

// judge asks the rules of a policy in their order.
func judge(policy *batchv1.PodFailurePolicy, pod *corev1.Pod) policyVerdict {
	if policy == nil {
		return policyVerdict{action: batchv1.PodFailurePolicyActionCount}
	}
	for i, rule := range policy.Rules {
		if on := rule.OnExitCodes; on != nil {
			if name, code, ok := exitMatching(on, pod); ok {
				return policyVerdict{rule.Action, fmt.Sprintf("Container %s for pod %s/%s failed with exit code %v matching %v rule at index %d", name, pod.Namespace, pod.Name, code, rule.Action, i)}
			}
			continue
		}
		for _, want := range rule.OnPodConditions {
			if c := podCondition(pod, want.Type); c != nil && c.Status == want.Status {
				return policyVerdict{rule.Action, fmt.Sprintf("Pod %s/%s has condition %v matching %v rule at index %d", pod.Namespace, pod.Name, want.Type, rule.Action, i)}
			}
		}
	}
	return policyVerdict{action: batchv1.PodFailurePolicyActionCount}
}

func exitMatching(on *batchv1.PodFailurePolicyOnExitCodesRequirement, pod *corev1.Pod) (name string, code int32, ok bool) {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses} {
		for _, c := range list {
			t := c.State.Terminated
			if t == nil || t.ExitCode == 0 || on.ContainerName != nil && *on.ContainerName != c.Name {
				continue
			}
			if slices.Contains(on.Values, t.ExitCode) == (on.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn) {
				return c.Name, t.ExitCode, true
			}
		}
	}
	return "", 0, false
}

// succeedsEarly is the first rule of the success policy that is fulfilled.
func (s *jobState) succeedsEarly() (rule int, ok bool) {
	if s.job.Spec.SuccessPolicy == nil || !s.indexed {
		return 0, false
	}
	for i, r := range s.job.Spec.SuccessPolicy.Rules {
		need, have := 0, s.completed.Len()
		if r.SucceededIndexes != nil {
			wanted, err := kinds.ParseIndexes(*r.SucceededIndexes, int(*s.job.Spec.Completions))
			if err != nil {
				continue
			}
			have = 0
			for _, span := range wanted {
				for n := span.First; n <= span.Last; n++ {
					if s.completed.Has(n) {
						have++
					}
				}
			}
			need = wanted.Len()
		}
		if r.SucceededCount != nil {
			need = int(*r.SucceededCount)
		}
		if have >= need {
			return i, true
		}
	}
	return 0, false
}
