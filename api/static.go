package api

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"conclave/api/kinds"
)

// Annotations of the pods that a node has from its own files and of what shows
// them in the API, as Kubernetes' kubelet sets them. The mirror's own is
// corev1.MirrorPodAnnotationKey.
const (
	AnnotationPodSource = "kubernetes.io/config.source"
	AnnotationPodHash   = "kubernetes.io/config.hash"
	AnnotationPodSeen   = "kubernetes.io/config.seen"
	PodSourceFile       = "file"
)

// ReadStaticPod makes a pod of what a file says, in YAML or JSON. complete
// changes it before it is checked.
func ReadStaticPod(data []byte, complete func(*corev1.Pod)) (*corev1.Pod, error) {
	pod := &corev1.Pod{}
	if err := yaml.UnmarshalStrict(data, pod); err != nil {
		return nil, fmt.Errorf("it is no pod: %w", err)
	}
	if pod.Kind != "Pod" || pod.APIVersion != "v1" {
		return nil, fmt.Errorf("it is of kind %q and apiVersion %q: only a Pod of v1 can be static", pod.Kind, pod.APIVersion)
	}
	if pod.Namespace == "" {
		pod.Namespace = metav1.NamespaceDefault
	}
	complete(pod)
	if errs := kinds.CompleteStatic(pod); len(errs) > 0 {
		return nil, errs.ToAggregate()
	}
	return pod, nil
}

// IsStatic says whether a node has a pod from a file of its own; IsMirror
// whether it is what shows such a pod in the API.
func IsStatic(pod *corev1.Pod) bool {
	return pod.Annotations[AnnotationPodSource] == PodSourceFile && !IsMirror(pod)
}

// IsMirror: see IsStatic.
func IsMirror(pod *corev1.Pod) bool {
	_, ok := pod.Annotations[corev1.MirrorPodAnnotationKey]
	return ok
}
