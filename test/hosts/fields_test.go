package hosts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"conclave/test/cluster"
)

// TestPodFields takes pods at their word, field by field, where no behaviour of
// the conformance list does.
func TestPodFields(t *testing.T) {
	c := three(t)
	if err := c.Import(t.Context(), "tool"); err != nil {
		t.Fatal(err)
	}
	t.Parallel()
	runCases(t, c, namespace(t, c), slices.Concat(probeFieldCases(), namespaceCases(), privilegeCases(), endCases(), amountCases(), readOnlyCases(t, c)))
}

func probeFieldCases() []nodeCase {
	exec := func(script string) corev1.ProbeHandler {
		return corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", script}}}
	}
	ready := func(p corev1.Probe) func(*corev1.Container) {
		return func(c *corev1.Container) {
			p.PeriodSeconds = 1
			c.ReadinessProbe = &p
		}
	}
	comes := func(n *nodeTest, pod *corev1.Pod) { n.until(pod.Name, "is ready", readyNow, nil) }
	asked := func(n *nodeTest, pod *corev1.Pod, file string) int {
		n.Helper()
		return len(strings.Fields(kubectl(n.T, n.c, "-n", n.ns, "exec", pod.Name, "--", "cat", file)))
	}
	// A server that is well only for who sends these headers.
	const picky = `while true; do nc -l -p 8080 -e sh -c 'ok=; host=; while read -r line; do line=$(echo "$line" | tr -d "\r"); [ -z "$line" ] && break; [ "$line" = "X-Mark: yes" ] && ok=$ok.; [ "$line" = "Host: web.test" ] && host=1; done; if [ "$ok$host" = ..1 ]; then printf "HTTP/1.0 200 OK\r\n\r\n"; else printf "HTTP/1.0 500 No\r\n\r\n"; fi'; done`
	return []nodeCase{
		{
			"httpHeaders, twice the same and Host, to a named port", edited(nodePod("headers", sh("main", picky, func(c *corev1.Container) {
				c.Ports = []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}
			}, ready(corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
				Port: intstr.FromString("web"), HTTPHeaders: []corev1.HTTPHeader{{Name: "X-Mark", Value: "yes"}, {Name: "X-Mark", Value: "yes"}, {Name: "Host", Value: "web.test"}},
			}}})))), comes,
		},
		{
			"a redirect to another host", edited(nodePod("elsewhere", sh("main", `while true; do nc -l -p 8080 -e sh -c 'printf "HTTP/1.0 302 Found\r\nLocation: http://elsewhere.test/\r\n\r\nmoved"'; done`, ready(corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(8080)}}})))),
			func(n *nodeTest, pod *corev1.Pod) {
				n.until(pod.Name, "is ready", readyNow, nil)
				eventually(n.T, "an event warns of it", func() error {
					return wantEvent(n.Context(), n.c.Client, n.ns, pod.Name, "ProbeWarning", "Readiness probe warning: Probe terminated redirects, Response body: moved")
				})
			},
		},
		{
			"a gRPC service by its name", edited(nodePod("grpc-name", sh("main", "", func(c *corev1.Container) {
				c.Image, c.Command = "conclave.test/tool:1", []string{"/tool", "health", ":5000", "liveness"}
			}, ready(corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 5000, Service: new("liveness")}}})))), comes,
		},
		{
			"another gRPC service", edited(nodePod("grpc-other", sh("main", "", func(c *corev1.Container) {
				c.Image, c.Command = "conclave.test/tool:1", []string{"/tool", "health", ":5000", "liveness"}
			}, ready(corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 5000, Service: new("other")}}})))),
			func(n *nodeTest, pod *corev1.Pod) {
				eventually(n.T, "an event says why", func() error {
					return wantEvent(n.Context(), n.c.Client, n.ns, pod.Name, "Unhealthy", `Readiness probe failed: service unhealthy (responded with "NOT_SERVING")`)
				})
			},
		},
		{
			"successThreshold", edited(nodePod("successes", sh("main", "mkdir /tmp; "+forever, ready(corev1.Probe{ProbeHandler: exec("echo x >> /tmp/asked"), SuccessThreshold: 4})))),
			func(n *nodeTest, pod *corev1.Pod) {
				n.until(pod.Name, "is ready", readyNow, nil)
				if got := asked(n, pod, "/tmp/asked"); got < 4 {
					n.Errorf("it was ready after %d successes", got)
				}
			},
		},
		{
			"failureThreshold", edited(nodePod("failures", sh("main", "mkdir /tmp; "+forever, ready(corev1.Probe{ProbeHandler: exec("test -e /tmp/ill && echo x >> /tmp/failed; test ! -e /tmp/ill"), FailureThreshold: 4})))),
			func(n *nodeTest, pod *corev1.Pod) {
				n.until(pod.Name, "is ready", readyNow, nil)
				kubectl(n.T, n.c, "-n", n.ns, "exec", pod.Name, "--", "touch", "/tmp/ill")
				n.until(pod.Name, "is ready no more", func(p *corev1.Pod) bool { return !readyNow(p) }, nil)
				if got := asked(n, pod, "/tmp/failed"); got < 4 {
					n.Errorf("it was unready after %d failures", got)
				}
			},
		},
		{
			"timeoutSeconds", nodePod("slow", sh("main", forever, ready(corev1.Probe{ProbeHandler: exec("sleep 3600"), TimeoutSeconds: 1}))),
			func(n *nodeTest, pod *corev1.Pod) {
				eventually(n.T, "an event says so", func() error {
					return wantEvent(n.Context(), n.c.Client, n.ns, pod.Name, "Unhealthy", "Readiness probe failed: command timed out: ", " timed out after 1s")
				})
				eventually(n.T, "no command is left of it", func() error {
					out, err := n.c.Kubectl(n.Context(), "-n", n.ns, "exec", pod.Name, "--", "sh", "-c", "ps | grep -c '[s]leep 3600'")
					if count := strings.TrimSpace(out); err != nil || count != "1" && count != "2" { // the container's own, and the newest
						return fmt.Errorf("%s %v", out, err)
					}
					return nil
				})
			},
		},
		{
			// CVE-2022-31030 and CVE-2022-1708: what a probe says was kept whole.
			"a probe that says very much", nodePod("loud", sh("main", forever, ready(corev1.Probe{ProbeHandler: exec("head -c 268435456 /dev/zero | tr '\\0' a; exit 1"), TimeoutSeconds: 60}))),
			func(n *nodeTest, pod *corev1.Pod) {
				eventually(n.T, "an event says a part of it", func() error {
					return wantEvent(n.Context(), n.c.Client, n.ns, pod.Name, "Unhealthy", "Readiness probe failed: aaaa")
				})
			},
		},
		{
			"a probe's own grace period", edited(nodePod("graceless", sh("main", "trap '' TERM; "+forever, func(c *corev1.Container) {
				c.LivenessProbe = &corev1.Probe{ProbeHandler: exec("false"), PeriodSeconds: 1, FailureThreshold: 1, TerminationGracePeriodSeconds: new(int64(1))}
			})), always, func(p *corev1.Pod) { p.Spec.TerminationGracePeriodSeconds = new(int64(3600)) }),
			func(n *nodeTest, pod *corev1.Pod) {
				p := n.until(pod.Name, "is restarted", func(p *corev1.Pod) bool { return restarts(p) > 0 }, nil)
				if end := p.Status.ContainerStatuses[0].LastTerminationState.Terminated; end == nil || end.ExitCode != 137 {
					n.Error(shown(p.Status))
				}
				// Otherwise its end is an hour away.
				kubectl(n.T, n.c, "-n", n.ns, "delete", "pod", pod.Name, "--grace-period=1")
			},
		},
	}
}

func namespaceCases() []nodeCase {
	// same wants a namespace of a pod to be the host's, or not to be.
	namespace := func(kind string, hosts bool) func(n *nodeTest, pod *corev1.Pod) {
		return func(n *nodeTest, pod *corev1.Pod) {
			p := n.until(pod.Name, "runs", readyNow, nil)
			host, err := n.c.On(n.Context(), p.Spec.NodeName, "readlink", "/proc/self/ns/"+kind)
			if err != nil {
				n.Fatal(err)
			}
			own := kubectl(n.T, n.c, "-n", n.ns, "exec", pod.Name, "-c", "main", "--", "readlink", "/proc/self/ns/"+kind)
			if same := strings.TrimSpace(host) == strings.TrimSpace(own); same != hosts {
				n.Errorf("the host's is %s, the pod's %s", host, own)
			}
		}
	}
	pod := func(name string, edit func(*corev1.PodSpec)) *corev1.Pod {
		return edited(nodePod(name, sh("main", forever)), func(p *corev1.Pod) { edit(&p.Spec) })
	}
	return []nodeCase{
		{"hostPID", pod("host-pid", func(s *corev1.PodSpec) { s.HostPID = true }), namespace("pid", true)},
		{"no hostPID", pod("own-pid", func(s *corev1.PodSpec) {}), namespace("pid", false)},
		{"hostIPC", pod("host-ipc", func(s *corev1.PodSpec) { s.HostIPC = true }), namespace("ipc", true)},
		{"no hostIPC", pod("own-ipc", func(s *corev1.PodSpec) {}), namespace("ipc", false)},
		{"hostNetwork", pod("host-net", func(s *corev1.PodSpec) { s.HostNetwork = true }), namespace("net", true)},
		{
			"shareProcessNamespace", edited(nodePod("shared", sh("main", `until pid=$(pidof httpd); do sleep 0.1; done; ls /proc/$pid/root/marker && kill $pid && cat /proc/1/comm`),
				sh("other", "touch /marker; exec httpd -f -p 8080 -h /")), func(p *corev1.Pod) { p.Spec.ShareProcessNamespace = new(true) }),
			func(n *nodeTest, pod *corev1.Pod) {
				p := n.until(pod.Name, "is over", func(p *corev1.Pod) bool {
					return statusOfContainer(p, "main").State.Terminated != nil && statusOfContainer(p, "other").State.Terminated != nil
				}, nil)
				if end := statusOfContainer(p, "main").State.Terminated; end.ExitCode != 0 {
					n.Error(shown(p.Status), n.log(pod.Name, "main"))
				}
				if end := statusOfContainer(p, "other").State.Terminated; end.ExitCode != 143 && end.ExitCode != 0 {
					n.Error(shown(p.Status))
				}
			},
		},
		{
			"setHostnameAsFQDN", edited(nodePod("fqdn", sh("main", "hostname; hostname -f; cat /etc/hostname")), func(p *corev1.Pod) {
				p.Spec.Hostname, p.Spec.Subdomain, p.Spec.SetHostnameAsFQDN = "web", "sub", new(true)
			}),
			func(n *nodeTest, pod *corev1.Pod) {
				name := "web.sub." + n.ns + ".svc.cluster.local"
				says(name)(n, pod)
				if out := n.log(pod.Name, "main"); out != strings.Repeat(name+"\n", 3) {
					n.Error(out)
				}
			},
		},
		{
			"dnsPolicy Default", edited(nodePod("dns-default", sh("main", "cat /etc/resolv.conf")), func(p *corev1.Pod) { p.Spec.DNSPolicy = corev1.DNSDefault }),
			func(n *nodeTest, pod *corev1.Pod) {
				n.phase(pod.Name, corev1.PodSucceeded)
				if out := n.log(pod.Name, "main"); strings.Contains(out, "10.96.0.10") || strings.Contains(out, "cluster.local") {
					n.Error(out)
				}
			},
		},
		{
			"dnsPolicy ClusterFirst of the host's network", edited(nodePod("dns-host", sh("main", "cat /etc/resolv.conf")), func(p *corev1.Pod) { p.Spec.HostNetwork = true }),
			func(n *nodeTest, pod *corev1.Pod) {
				n.phase(pod.Name, corev1.PodSucceeded)
				if out := n.log(pod.Name, "main"); strings.Contains(out, "10.96.0.10") {
					n.Error(out)
				}
			},
		},
	}
}

func privilegeCases() []nodeCase {
	caps := func(s corev1.Capabilities) func(*corev1.Container) {
		return security(corev1.SecurityContext{Capabilities: &s})
	}
	const effective = "grep CapEff /proc/self/status"
	nonRoot := nodePod("non-root", sh("main", "true", security(corev1.SecurityContext{RunAsNonRoot: new(true)})))
	return []nodeCase{
		{"capabilities dropped", nodePod("caps-none", sh("main", effective, caps(corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}))), says("CapEff:\t0000000000000000")},
		{"one capability alone", nodePod("caps-one", sh("main", effective, caps(corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_BIND_SERVICE"}}))), says("CapEff:\t0000000000000400")},
		{"a capability added", nodePod("caps-add", sh("main", "ip link set lo down && echo down", caps(corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}}))), says("down")},
		{"privileged", nodePod("privileged", sh("main", "test -c /dev/kmsg && echo device; mkdir /m && mount -t tmpfs none /m && echo mounted", security(corev1.SecurityContext{Privileged: new(true)}))), says("device", "mounted")},
		{
			"runAsNonRoot of an image that runs as root", nonRoot,
			func(n *nodeTest, pod *corev1.Pod) {
				p := n.until(pod.Name, "is refused", func(p *corev1.Pod) bool {
					w := statusOfContainer(p, "main").State.Waiting
					return w != nil && w.Reason == "CreateContainerConfigError"
				}, nil)
				if m := statusOfContainer(p, "main").State.Waiting.Message; !strings.HasPrefix(m, "container has runAsNonRoot and image will run as root (pod: ") {
					n.Error(m)
				}
			},
		},
		{"fsGroupChangePolicy", nil, func(n *nodeTest, _ *corev1.Pod) {
			if _, err := n.c.Client.CoreV1().PersistentVolumeClaims(n.ns).Create(n.Context(), claimOf("grouped", "local-path", nil), metav1.CreateOptions{}); err != nil {
				n.Fatal(err)
			}
			// Each leaves a file that is not the group's to the next.
			for i, of := range []struct {
				policy *corev1.PodFSGroupChangePolicy
				want   string
			}{{nil, "none"}, {new(corev1.FSGroupChangeOnRootMismatch), "0"}, {new(corev1.FSGroupChangeAlways), "3000"}} {
				pod := n.create(edited(nodePod(fmt.Sprintf("grouped-%d", i), sh("main", "if [ -e /v/f ]; then stat -c %g /v/f; else echo none; fi; touch /v/f; chgrp 0 /v/f")), mountShared, func(p *corev1.Pod) {
					p.Spec.Volumes[0].VolumeSource = corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "grouped"}}
					p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: new(int64(3000)), FSGroupChangePolicy: of.policy}
				}))
				says(of.want)(n, pod)
			}
		}},
		{
			"fsGroup with supplementalGroups", edited(nodePod("groups", sh("main", `id -G; touch /v/file; stat -c '%a %g' /v; stat -c '%u %g' /v/file`)), mountShared, func(p *corev1.Pod) {
				p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: new(int64(1000)), RunAsGroup: new(int64(2000)), FSGroup: new(int64(3000)), SupplementalGroups: []int64{4000}}
			}),
			func(n *nodeTest, pod *corev1.Pod) {
				says("2000 3000 4000", "2777 3000", "1000 3000")(n, pod)
				if u := statusOfContainer(n.pod(pod.Name), "main").User; u == nil || u.Linux == nil || u.Linux.UID != 1000 || u.Linux.GID != 2000 || !slices.Equal(u.Linux.SupplementalGroups, []int64{2000, 3000, 4000}) {
					n.Errorf("the status has the user %s", shown(u))
				}
			},
		},
	}
}

func endCases() []nodeCase {
	return []nodeCase{
		{
			"stopSignal", edited(nodePod("signal", sh("main", "trap 'echo usr1; exit 7' USR1; trap 'echo term; exit 8' TERM; echo traps; while true; do sleep 0.1; done", func(c *corev1.Container) {
				c.Lifecycle = &corev1.Lifecycle{StopSignal: new(corev1.SIGUSR1)}
			})), always, func(p *corev1.Pod) {
				p.Spec.OS, p.Spec.TerminationGracePeriodSeconds = &corev1.PodOS{Name: corev1.Linux}, new(int64(30))
			}),
			func(n *nodeTest, pod *corev1.Pod) {
				if s := statusOfContainer(n.until(pod.Name, "runs", readyNow, nil), "main").StopSignal; s == nil || *s != corev1.SIGUSR1 {
					n.Errorf("the status has the signal %s", shown(s))
				}
				eventually(n.T, "it traps", func() error {
					if out := n.log(pod.Name, "main"); out != "traps\n" {
						return errors.New(out)
					}
					return nil
				})
				w := n.watch("pod=" + pod.Name)
				if err := n.c.Client.CoreV1().Pods(n.ns).Delete(n.Context(), pod.Name, metav1.DeleteOptions{}); err != nil {
					n.Fatal(err)
				}
				var last *corev1.Pod
				for e := range w.ResultChan() {
					p, ok := e.Object.(*corev1.Pod)
					if last = p; !ok || e.Type == "DELETED" {
						break
					}
				}
				if end := statusOfContainer(last, "main").State.Terminated; end == nil || end.ExitCode != 7 {
					n.Error(shown(last.Status))
				}
			},
		},
		{
			"a container that ignores SIGTERM", edited(nodePod("stubborn", sh("main", "trap '' TERM; "+forever)), func(p *corev1.Pod) {
				p.Spec.TerminationGracePeriodSeconds = new(int64(2))
			}),
			func(n *nodeTest, pod *corev1.Pod) {
				n.until(pod.Name, "runs", readyNow, nil)
				kubectl(n.T, n.c, "-n", n.ns, "delete", "pod", pod.Name, "--timeout=60s")
			},
		},
	}
}

func amountCases() []nodeCase {
	whole := corev1.ResourceList{"memory": resource.MustParse("64Mi"), "cpu": resource.MustParse("500m")}
	const memory = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true"
	return []nodeCase{
		{
			"resources of the pod as a whole", edited(nodePod("whole", sh("main", memory), sh("other", memory)), func(p *corev1.Pod) {
				p.Spec.Resources = &corev1.ResourceRequirements{Limits: whole, Requests: whole}
			}),
			func(n *nodeTest, pod *corev1.Pod) {
				says("67108864")(n, pod)
				p := n.pod(pod.Name)
				if p.Status.QOSClass != corev1.PodQOSGuaranteed {
					n.Error(shown(p.Status))
				}
			},
		},
		{
			"ephemeral storage by the downward API", nodePod("ephemeral-amounts", sh("main", "env", func(c *corev1.Container) {
				c.Resources.Limits = corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse("20Mi")}
			}, withEnv(resourceOf("LIMIT", "limits.ephemeral-storage"), resourceOf("REQUEST", "requests.ephemeral-storage")))), says("LIMIT=20971520", "REQUEST=20971520"),
		},
		{
			"sizeLimit of an emptyDir in memory", edited(nodePod("memory-volume", sh("main", `head -c 4194304 /dev/zero > /v/a && echo fits; head -c 8388608 /dev/zero > /v/b 2>/dev/null || echo full`)), mountShared, func(p *corev1.Pod) {
				size := resource.MustParse("8Mi")
				p.Spec.Volumes[0].EmptyDir = &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: &size}
			}), says("fits", "full"),
		},
		{
			"a token's audience and life", edited(nodePod("token", sh("main", `cut -d. -f2 /v/t/token | tr '_-' '/+' | sed 's/$/==/' | base64 -d 2>/dev/null`, func(c *corev1.Container) {
				c.VolumeMounts = []corev1.VolumeMount{{Name: "t", MountPath: "/v/t"}}
			})), func(p *corev1.Pod) {
				p.Spec.Volumes = []corev1.Volume{{Name: "t", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
					{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "vault", ExpirationSeconds: new(int64(700)), Path: "token"}},
				}}}}}
			}),
			func(n *nodeTest, pod *corev1.Pod) {
				n.phase(pod.Name, corev1.PodSucceeded)
				var claims struct {
					Aud      []string `json:"aud"`
					Exp, Iat int64
				}
				if err := json.Unmarshal([]byte(n.log(pod.Name, "main")), &claims); err != nil || !slices.Equal(claims.Aud, []string{"vault"}) || claims.Exp-claims.Iat != 700 {
					n.Errorf("%+v %v", claims, err)
				}
			},
		},
	}
}

// readOnlyCases mount a folder of a host below which something else is mounted.
func readOnlyCases(t *testing.T, c *cluster.Cluster) []nodeCase {
	t.Helper()
	host := c.Hosts[0]
	folder := filepath.Join(filepath.Dir(c.DataDir(host)), "read-only")
	if _, err := c.On(t.Context(), host.Name, "sh", "-c", fmt.Sprintf("mkdir -p %[1]s/sub && mount -t tmpfs none %[1]s/sub", folder)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := c.On(context.Background(), host.Name, "umount", filepath.Join(folder, "sub")); err != nil {
			t.Error(err)
		}
	})
	write := func(name, mode string) *corev1.Pod {
		return edited(nodePod(name, sh("main", `echo x > /v/file || echo outer refused; echo x > /v/sub/file && echo inner written || echo inner refused`, func(c *corev1.Container) {
			m := corev1.VolumeMount{Name: "v", MountPath: "/v", ReadOnly: true}
			if mode != "" {
				m.RecursiveReadOnly = new(corev1.RecursiveReadOnlyMode(mode))
			}
			c.VolumeMounts = []corev1.VolumeMount{m}
		})), func(p *corev1.Pod) {
			p.Spec.NodeName = host.Name
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: folder, Type: new(corev1.HostPathDirectory)}}}}
		})
	}
	mode := func(want corev1.RecursiveReadOnlyMode, lines ...string) func(n *nodeTest, pod *corev1.Pod) {
		return func(n *nodeTest, pod *corev1.Pod) {
			says(lines...)(n, pod)
			m := statusOfContainer(n.pod(pod.Name), "main").VolumeMounts
			if len(m) != 1 || m[0].RecursiveReadOnly == nil || *m[0].RecursiveReadOnly != want {
				n.Error(shown(m))
			}
		}
	}
	return []nodeCase{
		{"readOnly", write("read-only", ""), mode(corev1.RecursiveReadOnlyDisabled, "outer refused", "inner written")},
		{"recursiveReadOnly", write("read-only-all", "Enabled"), mode(corev1.RecursiveReadOnlyEnabled, "outer refused", "inner refused")},
		{"recursiveReadOnly if possible", write("read-only-may", "IfPossible"), mode(corev1.RecursiveReadOnlyEnabled, "outer refused", "inner refused")},
	}
}
