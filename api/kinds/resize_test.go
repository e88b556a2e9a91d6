package kinds

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestPodResize prepares and validates a resize as the server does.
func TestPodResize(t *testing.T) {
	k := table["pods"]
	sub := k.Sub("resize")
	const meta = "metadata: {name: x, namespace: default, resourceVersion: '1'}\n"
	container := func(more string) string { return "{name: c, image: i, " + more + "}" }
	spec := func(containers string) string { return meta + "spec: {containers: [" + containers + "]}" }
	burstable := container("resources: {requests: {cpu: 100m}}")
	for name, tc := range map[string]struct {
		old, now string
		want     []string
		changed  bool
	}{
		"more":      {spec(burstable), spec(container("resources: {requests: {cpu: 200m}}")), nil, true},
		"nothing":   {spec(burstable), spec(burstable), nil, false},
		"new limit": {spec(burstable), spec(container("resources: {requests: {cpu: 100m}, limits: {memory: 1Gi}}")), nil, true},
		"image and labels are ignored": {spec(burstable),
			"metadata: {name: x, namespace: default, resourceVersion: '1', labels: {a: b}}\nspec: {nodeName: n, containers: [{name: c, image: other, resources: {requests: {cpu: 300m}}}]}", nil, true},
		"another class": {spec(burstable), spec(container("resources: {requests: {cpu: 100m, memory: 1Gi}, limits: {cpu: 100m, memory: 1Gi}}")),
			[]string{`spec: Invalid value: "Guaranteed": Pod QOS Class may not change as a result of resizing`}, true},
		"removed request": {spec(burstable), spec(container("resources: {limits: {memory: 1Gi}}")),
			[]string{"spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed"}, true},
		"removed limit": {spec(container("resources: {limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 500m}}")), spec(container("resources: {limits: {cpu: 1}, requests: {cpu: 500m, memory: 1Gi}}")),
			[]string{"spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed"}, true},
		"storage": {spec(burstable), spec(container("resources: {requests: {cpu: 100m, ephemeral-storage: 1Gi}}")),
			[]string{"spec: Forbidden: only cpu and memory resources are mutable"}, true},
		"resize policy": {spec(burstable), spec(container("resizePolicy: [{resourceName: cpu, restartPolicy: NotRequired}], resources: {requests: {cpu: 100m}}")),
			[]string{"spec: Forbidden: only cpu and memory resources are mutable"}, true},
		"more than the limit": {spec(container("resources: {requests: {cpu: 1}, limits: {cpu: 2}}")), spec(container("resources: {requests: {cpu: 3}, limits: {cpu: 2}}")),
			[]string{`spec.containers[0].resources.requests: Invalid value: "3": must be less than or equal to cpu limit of 2`}, true},
		"another container": {spec(burstable), spec("{name: d, image: i, resources: {requests: {cpu: 100m}}}"),
			[]string{"spec.containers: Forbidden: containers may not be added, removed, renamed or reordered on resize"}, true},
		"init": {meta + "spec: {initContainers: [{name: i, image: i}], containers: [" + burstable + "]}",
			meta + "spec: {initContainers: [{name: i, image: i, resources: {requests: {cpu: 1}}}], containers: [" + burstable + "]}",
			[]string{"spec.initContainers[0].resources: Forbidden: resources of init containers that are not restartable may not be changed"}, true},
		"sidecar": {meta + "spec: {initContainers: [{name: i, image: i, restartPolicy: Always, resources: {requests: {cpu: 1}}}], containers: [" + burstable + "]}",
			meta + "spec: {initContainers: [{name: i, image: i, restartPolicy: Always, resources: {requests: {cpu: 2}}}], containers: [" + burstable + "]}", nil, true},
		"pod level": {meta + "spec: {resources: {requests: {cpu: 1}, limits: {cpu: 2}}, containers: [" + burstable + "]}",
			meta + "spec: {resources: {requests: {cpu: 1}, limits: {cpu: 3}}, containers: [" + burstable + "]}", nil, true},
		"pod level too little": {meta + "spec: {resources: {requests: {cpu: 1}, limits: {cpu: 2}}, containers: [" + burstable + "]}",
			meta + "spec: {resources: {requests: {cpu: 50m}, limits: {cpu: 2}}, containers: [" + burstable + "]}",
			[]string{`spec.resources.requests[cpu]: Invalid value: "50m": must be greater than or equal to aggregate container requests of 100m`}, true},
	} {
		t.Run(name, func(t *testing.T) {
			old, now := parse[*corev1.Pod](t, "pods", tc.old), parse[*corev1.Pod](t, "pods", tc.now)
			k.Default(old)
			old.Generation, old.Status.QOSClass = 4, QOSClass(old)
			k.Default(now)
			sub.Prepare(now, old)
			var got []string
			for _, e := range sub.Validate(now, old) {
				line, _, _ := strings.Cut(e.Error(), "\n")
				got = append(got, line)
			}
			if strings.Join(got, "\n") != strings.Join(tc.want, "\n") {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
			}
			if changed := now.Generation == 5; changed != tc.changed {
				t.Errorf("generation %d", now.Generation)
			}
			if len(tc.want) == 0 && (now.Spec.Containers[0].Image != "i" || len(now.Labels) > 0) {
				t.Error("a resize changed more than resources")
			}
		})
	}
}
