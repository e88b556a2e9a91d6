package chaos

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	goruntime "runtime"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"conclave/lab"
)

// The workload's pods run the conclave binary itself, mounted into an image that
// is empty: every machine that can run the drill has it.
const (
	guestImage  = "conclave.lab/empty:1"
	guestBinary = "/conclave"
	pagePort    = 8080
	pageName    = "page"
)

// emptyImage is a tar that `conclave image import` reads: one layer with one
// empty folder.
func emptyImage() ([]byte, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755}), w.Close()); err != nil {
		return nil, err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": goruntime.GOARCH, "os": "linux", "config": map[string]any{},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer.Bytes()))}},
	})
	if err != nil {
		return nil, err
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{guestImage}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w = tar.NewWriter(&out)
	for _, f := range []struct {
		name string
		data []byte
	}{{"config.json", config}, {"layer.tar", layer.Bytes()}, {"manifest.json", manifest}} {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(f.data))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}

// guestPod is what a pod of the workload runs.
func guestPod(binary string, labels map[string]string, args ...string) corev1.PodTemplateSpec {
	file := corev1.HostPathFile
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{
				Name: "guest", Image: guestImage, ImagePullPolicy: corev1.PullNever,
				Command: append([]string{guestBinary, "lab", "guest"}, args...),
				Env: []corev1.EnvVar{
					{Name: "POD", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}},
					{Name: "NODE", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "spec.nodeName"}}},
				},
				VolumeMounts: []corev1.VolumeMount{{Name: "binary", MountPath: guestBinary, ReadOnly: true}},
			}},
			Volumes: []corev1.Volume{{Name: "binary", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: binary, Type: &file}}}},
		},
	}
}

// pageDeployment serves a page from n pods, spread over the nodes.
func pageDeployment(binary string, n int32) *appsv1.Deployment {
	labels := map[string]string{"app": pageName}
	template := guestPod(binary, labels, "serve")
	template.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
		MaxSkew: 1, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.ScheduleAnyway, LabelSelector: &metav1.LabelSelector{MatchLabels: labels},
	}}
	template.Spec.Containers[0].ReadinessProbe = &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(pagePort)}},
		PeriodSeconds: 2,
	}
	return &appsv1.Deployment{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
		ObjectMeta: metav1.ObjectMeta{Name: pageName, Namespace: namespace},
		Spec:       appsv1.DeploymentSpec{Replicas: &n, MinReadySeconds: 1, Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template},
	}
}

func pageService() *corev1.Service {
	return &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Name: pageName, Namespace: namespace},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": pageName},
			Ports:    []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(pagePort)}},
		},
	}
}

const (
	namespaces   = "/api/v1/namespaces"
	pods         = namespaces + "/" + namespace + "/pods"
	servicesAt   = namespaces + "/" + namespace + "/services"
	deployments  = "/apis/apps/v1/namespaces/" + namespace + "/deployments"
	statefulSets = "/apis/apps/v1/namespaces/" + namespace + "/statefulsets"
	nodes        = "/api/v1/nodes"
)

// settled returns what the cluster lacks, "" if nothing: every node ready and
// without taints, every pod of the workload running, and no more of them than
// there should be.
func settled(ctx context.Context, api *apiClient, hosts int, replicas int) string {
	var allNodes corev1.NodeList
	if err := api.call(ctx, http.MethodGet, nodes, nil, &allNodes); err != nil {
		return fmt.Sprintf("the nodes: %v", err)
	}
	if len(allNodes.Items) != hosts {
		return fmt.Sprintf("%d nodes of %d", len(allNodes.Items), hosts)
	}
	for _, n := range allNodes.Items {
		if len(n.Spec.Taints) > 0 {
			return fmt.Sprintf("node %s has the taint %s", n.Name, n.Spec.Taints[0].Key)
		}
		for _, c := range n.Status.Conditions {
			if (c.Type == corev1.NodeReady) != (c.Status == corev1.ConditionTrue) {
				return fmt.Sprintf("node %s: %s is %s: %s", n.Name, c.Type, c.Status, c.Message)
			}
		}
	}
	var allPods corev1.PodList
	if err := api.call(ctx, http.MethodGet, pods, nil, &allPods); err != nil {
		return fmt.Sprintf("the pods: %v", err)
	}
	var page appsv1.Deployment
	if err := api.call(ctx, http.MethodGet, deployments+"/"+pageName, nil, &page); err != nil {
		return fmt.Sprintf("the Deployment: %v", err)
	}
	if n := page.Status.AvailableReplicas; n != *page.Spec.Replicas {
		return fmt.Sprintf("%d replicas of %d are available%s", n, *page.Spec.Replicas, wanting(allPods.Items))
	}
	ready := 0
	for _, p := range allPods.Items {
		if p.DeletionTimestamp != nil {
			return fmt.Sprintf("pod %s is being deleted", p.Name)
		}
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
				ready++
			}
		}
	}
	if ready != replicas || len(allPods.Items) != replicas {
		return fmt.Sprintf("%d pods are ready of %d that there are and %d that should be%s", ready, len(allPods.Items), replicas, wanting(allPods.Items))
	}
	return ""
}

// wanting says of the pods that are not ready where they are and what they wait
// for.
func wanting(pods []corev1.Pod) string {
	var all strings.Builder
	for _, p := range pods {
		why := string(p.Status.Phase)
		for _, c := range p.Status.Conditions {
			switch {
			case c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue:
				why = ""
			case c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse:
				why = c.Message
			}
		}
		if why == "" {
			continue
		}
		for _, c := range p.Status.ContainerStatuses {
			if w := c.State.Waiting; w != nil {
				why = w.Reason + ": " + w.Message
			}
		}
		fmt.Fprintf(&all, "; pod %s on node %q: %s", p.Name, p.Spec.NodeName, why)
	}
	return all.String()
}

// Probe is one visit to the Service from a host.
type Probe struct {
	Host  string        `json:"host"`
	At    time.Duration `json:"at"`
	Took  time.Duration `json:"took"`
	Pod   string        `json:"pod,omitempty"`
	Error string        `json:"error,omitempty"`
}

// prober visits the Service from one host, by a new connection each time.
type prober struct {
	host  func() lab.Host
	url   string
	since func() time.Duration
	note  func(Probe)
}

const (
	probeEvery = 100 * time.Millisecond
	probeWait  = time.Second
)

func (p *prober) run(ctx context.Context) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if h := p.host(); h.Init.PID != 0 {
			p.visit(ctx, &h)
		}
	}
}

func (p *prober) visit(ctx context.Context, h *lab.Host) {
	ctx, cancel := context.WithTimeout(ctx, probeWait)
	defer cancel()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		return h.Dial(ctx, network, address)
	}}}
	note := Probe{Host: h.Name, At: p.since()}
	body, err := fetch(ctx, &client, p.url)
	if errors.Is(ctx.Err(), context.Canceled) {
		return // the drill ends
	}
	note.Took, note.Pod = p.since()-note.At, strings.TrimSpace(body)
	if err != nil {
		note.Error = err.Error()
	}
	p.note(note)
}

func fetch(ctx context.Context, client *http.Client, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<10))
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status)
	}
	return string(body), err
}
