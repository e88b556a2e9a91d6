package hosts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// linkName is what programs that gather logs take the names of links for, to
// learn whose they are.
var linkName = regexp.MustCompile(`([a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*)_([^_]+)_(.+)-([a-z0-9]{64})\.log`)

// TestLogFiles gathers containers' logs as programs do that are deployed for it:
// as pods that mount /var/log, or the folders in it.
func TestLogFiles(t *testing.T) {
	c := three(t)
	t.Parallel()
	ns := namespace(t, c)
	n := &nodeTest{t, c, ns}
	host := c.Hosts[1]
	for _, name := range []string{"pods", "containers"} { // made on this machine, if they are not there
		if path := filepath.Join("/var/log", name); os.Mkdir(path, 0o755) == nil {
			t.Cleanup(func() { _ = os.Remove(path) }) // it is empty: what is in it is mounted over it
		}
	}
	on := func(p *corev1.Pod) { p.Spec.NodeName = host.Name }
	// What it says first is said by a start that ends, so that there are two.
	n.create(edited(nodePod("app", sh("main", `if [ -e /v/n ]; then echo said second; `+forever+`; fi; echo said first; echo > /v/n; exit 1`)), mountShared, always, on))
	app := n.until("app", "runs for the second time", func(p *corev1.Pod) bool { return restarts(p) == 1 && readyNow(p) }, nil)
	gathers := func(name string, paths map[string]string) {
		n.create(edited(nodePod(name, sh("main", forever)), on, func(p *corev1.Pod) {
			for volume, path := range paths {
				p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: volume, VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path}}})
				p.Spec.Containers[0].VolumeMounts = append(p.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: volume, MountPath: path, ReadOnly: true})
			}
		}))
		n.until(name, "runs", readyNow, nil)
	}
	gathers("all", map[string]string{"log": "/var/log"})
	gathers("some", map[string]string{"pods": "/var/log/pods", "links": "/var/log/containers"})
	in := func(pod, script string) string {
		t.Helper()
		return kubectl(t, c, "-n", ns, "exec", pod, "--", "sh", "-c", script)
	}
	folder := fmt.Sprintf("%s_app_%s", ns, app.UID)
	for _, pod := range []string{"all", "some"} {
		for start, line := range map[string]string{"0": "said first", "1": "said second"} {
			if out := in(pod, "cat /var/log/pods/"+folder+"/main/"+start+".log"); !regexp.MustCompile(`^\d{4}-\d\d-\d\dT\S+ stdout F ` + line + "\n$").MatchString(out) {
				t.Errorf("%s reads %q", pod, out)
			}
		}
		links := strings.Fields(in(pod, "cd /var/log/containers; for f in app_"+ns+"_*; do echo $f $(readlink $f); cat $f >/dev/null || echo unreadable; done"))
		if len(links) != 4 {
			t.Fatalf("%s sees the links %q", pod, links)
		}
		want := strings.TrimPrefix(app.Status.ContainerStatuses[0].ContainerID, "conclave://")
		ids := map[string]string{}
		for i := 0; i < len(links); i += 2 {
			m := linkName.FindStringSubmatch(links[i])
			if m == nil || m[1] != "app" || m[2] != ns || m[3] != "main" {
				t.Errorf("%s sees the link %s", pod, links[i])
				continue
			}
			ids[filepath.Base(links[i+1])] = m[4]
		}
		if ids["1.log"] != want || ids["0.log"] == want || ids["0.log"] == "" {
			t.Errorf("the links are of %v, the container's ID is %s", ids, want)
		}
		if out, err := c.Kubectl(t.Context(), "-n", ns, "exec", pod, "--", "sh", "-c", "echo x > /var/log/pods/"+folder+"/main/0.log"); err == nil {
			t.Errorf("%s may write: %s", pod, out)
		}
	}
	// The rest of the host's folder is there too.
	if host, err := c.On(t.Context(), host.Name, "ls", "/var/log"); err != nil || in("all", "ls /var/log") != host {
		t.Errorf("the host has %q (%v), its pod sees %q", host, err, in("all", "ls /var/log"))
	}
	if err := c.Client.CoreV1().Pods(ns).Delete(t.Context(), "app", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nothing is left of the pod's logs", func() error {
		if _, err := c.Client.CoreV1().Pods(ns).Get(t.Context(), "app", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("the pod: %v", err)
		}
		if out := in("all", "ls -d /var/log/pods/"+ns+"_app_* /var/log/containers/app_"+ns+"_* 2>/dev/null || true"); out != "" {
			return errors.New(out)
		}
		return nil
	})
}
