package hosts

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/test/cluster"
)

// keeper writes to its folder on disk what its volumes and its network show it,
// a line for each start.
const keeper = `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {text: of the ConfigMap}
---
apiVersion: v1
kind: Secret
metadata: {name: hidden}
stringData: {text: of the Secret}
---
apiVersion: v1
kind: Service
metadata: {name: shop}
spec: {ports: [{port: 80}], clusterIP: 10.96.7.7}
---
apiVersion: v1
kind: Pod
metadata: {name: keeper, labels: {mark: of-the-pod}}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  initContainers:
  - name: before
    image: conclave.test/busybox:1
    command: [sh, -c, 'cp /all/secret /memory/copy']
    volumeMounts: &mounts
    - {name: kept, mountPath: /kept}
    - {name: memory, mountPath: /memory}
    - {name: all, mountPath: /all}
    - {name: all, mountPath: /sub, subPath: config}
  containers:
  - name: main
    image: conclave.test/busybox:1
    env:
    - {name: SECRET, valueFrom: {secretKeyRef: {name: hidden, key: text}}}
    command:
    - sh
    - -c
    - |
      echo "$(cat /all/config)|$(cat /sub)|$(cat /memory/copy)|$(cat /all/label)|$SECRET|$SHOP_SERVICE_HOST|$(wc -c < /var/run/secrets/kubernetes.io/serviceaccount/token)" >> /kept/starts
      grep keeper /etc/hosts | cut -f 1 > /kept/address
      while true; do sleep 1; done
    volumeMounts: *mounts
  volumes:
  - {name: kept, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory}}
  - name: all
    projected:
      sources:
      - configMap: {name: settings, items: [{key: text, path: config}]}
      - secret: {name: hidden, items: [{key: text, path: secret}]}
      - downwardAPI: {items: [{path: label, fieldRef: {fieldPath: "metadata.labels['mark']"}}]}
`

// TestBootsAlone cuts the power of all hosts and boots one that cannot be a
// master alone: it runs the pods that it had, with all that they need.
func TestBootsAlone(t *testing.T) {
	t.Parallel()
	c := own(t, 3)
	if err := c.Import(t.Context(), "busybox"); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, h := range c.Hosts {
		names = append(names, h.Name)
	}
	alone := c.Hosts[2]
	apply(t, c, "default", fmt.Sprintf(keeper, alone.Name))
	kubectl(t, c, "wait", "pod/keeper", "--for=condition=Ready", "--timeout=60s")
	pod, err := c.Client.CoreV1().Pods("default").Get(t.Context(), "keeper", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(c.DataDir(alone), "pods", string(pod.UID), "volumes", "kept")
	starts := func(want int) []string {
		t.Helper()
		var lines []string
		eventually(t, fmt.Sprintf("the pod has started %d times", want), func() error {
			out, err := c.On(t.Context(), alone.Name, "cat", filepath.Join(kept, "starts"))
			if lines = strings.Split(strings.TrimSpace(out), "\n"); err == nil && len(lines) != want {
				err = fmt.Errorf("its starts are %q", lines)
			}
			return err
		})
		return lines
	}
	first := starts(1)[0]
	const prefix = "of the ConfigMap|of the ConfigMap|of the Secret|of-the-pod|of the Secret|10.96.7.7|"
	if size, ok := strings.CutPrefix(first, prefix); !ok || size == "0" {
		t.Fatalf("the pod saw %q, want %q and the size of its token", first, prefix)
	}

	if err := c.PowerOff(names...); err != nil {
		t.Fatal(err)
	}
	boot(t, c, alone.Name)
	if second := starts(2)[1]; second != first {
		t.Errorf("after the power cut the pod saw %q, before it %q", second, first)
	}
	eventually(t, "the pod answers at the address it was told", func() error {
		ip, err := c.On(t.Context(), alone.Name, "cat", filepath.Join(kept, "address"))
		if err == nil {
			_, err = c.On(t.Context(), alone.Name, "busybox", "ping", "-c", "1", "-W", "1", strings.TrimSpace(ip))
		}
		return err
	})

	// The others come back: the pod is the same one, and runs on.
	boot(t, c, names[0])
	boot(t, c, names[1])
	eventually(t, "the cluster knows the pod as it is", func() error {
		if err := c.Connect(t.Context()); err != nil {
			return err
		}
		now, err := c.Client.CoreV1().Pods("default").Get(t.Context(), "keeper", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if now.UID != pod.UID {
			t.Fatalf("another pod has its name: %+v", now)
		}
		status := now.Status
		if len(status.ContainerStatuses) != 1 || status.ContainerStatuses[0].RestartCount != 1 || status.ContainerStatuses[0].State.Running == nil {
			return fmt.Errorf("its containers are %+v", status.ContainerStatuses)
		}
		for _, condition := range status.Conditions {
			if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return errors.New("it is not ready")
	})
	starts(2)
}

func boot(t *testing.T, c *cluster.Cluster, host string) {
	t.Helper()
	if err := c.Boot(host, netip.Addr{}); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(host, "up"); err != nil {
		t.Fatal(err)
	}
}
