package hosts

import (
	"archive/tar"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/test/cluster"
	"conclave/test/conformance"
	"conclave/test/images"
)

// layerOf is the archive of a layer that holds these files.
func layerOf(t *testing.T, mode int64, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for path, data := range files {
		if err := w.WriteHeader(&tar.Header{Name: path, Mode: mode, Size: int64(len(data)), Typeflag: tar.TypeReg, ModTime: time.Unix(1700000000, 0)}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// busyboxWith is busybox with one more layer that holds these files.
func busyboxWith(t *testing.T, files map[string][]byte) v1.Image {
	t.Helper()
	base, err := images.Build(t.Context(), images.Recipes["busybox"])
	if err != nil {
		t.Fatal(err)
	}
	b := layerOf(t, 0o755, files)
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(base, layer)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func noise(t *testing.T, n int) []byte {
	t.Helper()
	data := make([]byte, n)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	return data
}

// countingRegistry is a registry of this process at the lab's gateway, over
// plain HTTP, that counts the layers that it gives away and can be made to
// misbehave.
type countingRegistry struct {
	host   string
	blobs  atomic.Int64
	before atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
	server *http.Server
	real   http.Handler
}

func newCountingRegistry(t *testing.T, c *cluster.Cluster) *countingRegistry {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(c.Gateway().String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	r := &countingRegistry{host: l.Addr().String(), real: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	r.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/") {
			r.blobs.Add(1)
		}
		if f := r.before.Load(); f != nil && (*f)(w, req) {
			return
		}
		r.real.ServeHTTP(w, req)
	})}
	go r.server.Serve(l) //nolint:errcheck // it ends when it is closed
	t.Cleanup(func() { r.server.Close() })
	return r
}

func push(t *testing.T, ref string, img v1.Image, options ...remote.Option) {
	t.Helper()
	tag, err := name.NewTag(ref, name.Insecure)
	if err == nil {
		err = remote.Write(tag, img, append(options, remote.WithContext(t.Context()))...)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// hostsFile writes what every host is to know of a registry; it is read at the
// next pull.
func hostsFile(t *testing.T, c *cluster.Cluster, registry string, files map[string]string) {
	t.Helper()
	for _, h := range c.Hosts {
		dir := filepath.Join(c.DataDir(h), "registries", registry)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for file, text := range files {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// imagePod is a pod on one host that runs an image.
func imagePod(podName, host, image string, edit ...func(*corev1.Pod)) *corev1.Pod {
	pod := nodePod(podName, corev1.Container{Name: "main", Image: image, ImagePullPolicy: corev1.PullIfNotPresent, Command: []string{"sh", "-c", forever}})
	pod.Spec.NodeName = host
	return edited(pod, append([]func(*corev1.Pod){always}, edit...)...)
}

func putPod(t *testing.T, c *cluster.Cluster, ns string, pod *corev1.Pod) {
	t.Helper()
	if _, err := c.Client.CoreV1().Pods(ns).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func podRuns(t *testing.T, c *cluster.Cluster, ns, podName string) {
	t.Helper()
	eventually(t, podName+" runs", func() error {
		pod, err := c.Client.CoreV1().Pods(ns).Get(t.Context(), podName, metav1.GetOptions{})
		if err == nil && !readyNow(pod) {
			err = fmt.Errorf("it is not ready: %s", shown(pod.Status.ContainerStatuses))
		}
		return err
	})
}

// podWaits waits for a reason, and returns the message that comes with it.
func podWaits(t *testing.T, c *cluster.Cluster, ns, podName, reason string) (message string) {
	t.Helper()
	eventually(t, podName+" waits", func() error {
		pod, err := c.Client.CoreV1().Pods(ns).Get(t.Context(), podName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, s := range pod.Status.ContainerStatuses {
			if w := s.State.Waiting; w != nil && w.Reason == reason {
				message = w.Message
				return nil
			}
		}
		return fmt.Errorf("it does not wait for %s: %s", reason, shown(pod.Status.ContainerStatuses))
	})
	return message
}

func podEvent(t *testing.T, c *cluster.Cluster, ns, podName, reason, says string) {
	t.Helper()
	eventually(t, podName+" has the event "+reason, func() error {
		events, err := c.Client.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=" + podName})
		if err != nil {
			return err
		}
		var all []string
		for _, e := range events.Items {
			if e.Reason == reason && strings.Contains(e.Message, says) {
				return nil
			}
			all = append(all, e.Reason+": "+e.Message)
		}
		return fmt.Errorf("none says %q: %s", says, strings.Join(all, "\n"))
	})
}

// secretsHash is that of the password "secret".
const secretsHash = `$2a$04$jEWxftnECO7Lel5F7qGqa.f.7iin0V6.IfRPgoZDuua3wXeCyAqem`

// realRegistry runs Debian's docker-registry with TLS and a password at the
// lab's gateway.
func realRegistry(t *testing.T, c *cluster.Cluster) (host string, ca []byte) {
	t.Helper()
	if _, err := exec.LookPath("docker-registry"); err != nil {
		t.Skip("docker-registry is not installed: make deps-test")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "the registry's own CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IPAddresses: []net.IP{c.Gateway().AsSlice()},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	free, err := net.Listen("tcp", net.JoinHostPort(c.Gateway().String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	host = free.Addr().String()
	free.Close()
	dir := t.TempDir()
	for file, data := range map[string][]byte{
		"cert.pem": ca, "key.pem": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}), "htpasswd": []byte("me:" + secretsHash + "\n"),
		"config.yml": fmt.Appendf(nil, "version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %[1]s}}\nauth: {htpasswd: {realm: lab, path: %[1]s/htpasswd}}\nhttp: {addr: %[2]q, tls: {certificate: %[1]s/cert.pem, key: %[1]s/key.pem}}\n", dir, host),
	} {
		if err := os.WriteFile(filepath.Join(dir, file), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("docker-registry", "serve", filepath.Join(dir, "config.yml"))
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("the registry said:\n%s", said.String())
		}
	})
	eventually(t, "the registry answers", func() error {
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(t.Context(), "tcp", host)
		if err == nil {
			conn.Close()
		}
		return err
	})
	return host, ca
}

// TestPrivateRegistry pulls from a real registry that wants a password and has a
// CA of its own: by pull secrets of both forms, of the pod and of its service
// account, and by the node's own Docker file; and gives nobody what the registry
// would not. TestCredentialPrograms has helpers and plugins.
func TestPrivateRegistry(t *testing.T) {
	c := three(t)
	t.Parallel()
	ns := namespace(t, c)
	host, ca := realRegistry(t, c)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	as := []remote.Option{
		remote.WithAuth(&authn.Basic{Username: "me", Password: "secret"}),
		remote.WithTransport(&http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}),
	}
	image := host + "/team/app:1"
	push(t, image, busyboxWith(t, map[string][]byte{"mark": noise(t, 1<<20)}), as...)
	push(t, host+"/team/helped:1", busyboxWith(t, map[string][]byte{"mark": noise(t, 1<<10)}), as...)
	first, second := c.Hosts[0].Name, c.Hosts[1].Name

	putPod(t, c, ns, imagePod("stranger", first, image))
	mustContain(t, "of a registry with an unknown CA", podWaits(t, c, ns, "stranger", "ErrImagePull"), "certificate signed by unknown authority")
	hostsFile(t, c, host, map[string]string{"ca.crt": string(ca)})

	mustContain(t, "without a secret", podWaits(t, c, ns, "stranger", "ImagePullBackOff"), "Back-off pulling image", "ErrImagePull")
	podEvent(t, c, ns, "stranger", "Failed", "Error: ErrImagePull")
	podEvent(t, c, ns, "stranger", "BackOff", fmt.Sprintf("Back-off pulling image %q", image))
	podEvent(t, c, ns, "stranger", "Failed", "UNAUTHORIZED")

	kubectl(t, c, "create", "secret", "docker-registry", "regcred", "-n", ns, "--docker-server="+host, "--docker-username=me", "--docker-password=secret")
	old, err := json.Marshal(map[string]any{"https://" + host: map[string]string{"username": "me", "password": "secret"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Client.CoreV1().Secrets(ns).Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "oldcred"},
		Type: corev1.SecretTypeDockercfg, Data: map[string][]byte{corev1.DockerConfigKey: old}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	with := func(secrets ...string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			for _, s := range secrets {
				p.Spec.ImagePullSecrets = append(p.Spec.ImagePullSecrets, corev1.LocalObjectReference{Name: s})
			}
		}
	}
	putPod(t, c, ns, imagePod("member", first, image, with("nothere", "regcred")))
	podRuns(t, c, ns, "member")
	podEvent(t, c, ns, "member", "FailedToRetrieveImagePullSecret", "Unable to retrieve some image pull secrets (nothere)")
	putPod(t, c, ns, imagePod("oldform", second, image, with("oldcred")))
	podRuns(t, c, ns, "oldform")

	// The image is there now, and still nobody's who was not let in.
	putPod(t, c, ns, imagePod("thief", first, image))
	podWaits(t, c, ns, "thief", "ErrImagePull")
	putPod(t, c, ns, imagePod("never", first, image, func(p *corev1.Pod) { p.Spec.Containers[0].ImagePullPolicy = corev1.PullNever }))
	mustContain(t, "present, but not for this pod", podWaits(t, c, ns, "never", "ErrImageNeverPull"), "does not have the proper credentials")
	putPod(t, c, ns, imagePod("again", first, image, with("oldcred")))
	podRuns(t, c, ns, "again")
	podEvent(t, c, ns, "again", "Pulled", "already present on machine and can be accessed by the pod")

	kubectl(t, c, "create", "serviceaccount", "puller", "-n", ns)
	kubectl(t, c, "patch", "serviceaccount", "puller", "-n", ns, "-p", `{"imagePullSecrets":[{"name":"regcred"}]}`)
	putPod(t, c, ns, imagePod("account", second, image, func(p *corev1.Pod) { p.Spec.ServiceAccountName = "puller" }))
	podRuns(t, c, ns, "account")

	// What the node itself is told is for every pod.
	third := c.Hosts[2]
	file, err := json.Marshal(map[string]any{"auths": map[string]any{host + "/team": map[string]string{"username": "me", "password": "secret"}}})
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(c.DataDir(third), "config.json")
	if err := os.WriteFile(config, file, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(config) })
	putPod(t, c, ns, imagePod("nodes", third.Name, host+"/team/helped:1"))
	podRuns(t, c, ns, "nodes")

	putPod(t, c, ns, imagePod("missing", first, host+"/team/app:none", with("regcred")))
	mustContain(t, "what is not there", podWaits(t, c, ns, "missing", "ErrImagePull"), "MANIFEST_UNKNOWN")
	putPod(t, c, ns, imagePod("absent", first, host+"/team/none:1", func(p *corev1.Pod) { p.Spec.Containers[0].ImagePullPolicy = corev1.PullNever }))
	mustContain(t, "policy Never", podWaits(t, c, ns, "absent", "ErrImageNeverPull"), "is not present with pull policy of Never")
	putPod(t, c, ns, imagePod("misnamed", first, host+"/UPPER:1"))
	podWaits(t, c, ns, "misnamed", "InvalidImageName")
}

// TestOneDownloadFeedsTheCluster: layers leave the registry once; then it may go.
func TestOneDownloadFeedsTheCluster(t *testing.T) {
	c := three(t)
	t.Parallel()
	ns := namespace(t, c)
	r := newCountingRegistry(t, c)
	// The registry is known by a name of its own, through a mirror that speaks
	// plain HTTP because its file says so.
	known := "pictures" + strings.ReplaceAll(r.host[strings.LastIndex(r.host, ":"):], ":", "") + ".test"
	hostsFile(t, c, known, map[string]string{"hosts.toml": fmt.Sprintf("# the one mirror\nserver = \"https://%s\"\n\n[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", known, r.host)})
	var asked sync.Map
	watch := func(w http.ResponseWriter, req *http.Request) bool {
		asked.Store(req.URL.Query().Get("ns"), true)
		return false
	}
	r.before.Store(nil)
	big := busyboxWith(t, map[string][]byte{"one": noise(t, 8<<20), "two": noise(t, 300)})
	push(t, r.host+"/big:1", big)
	r.before.Store(&watch)
	image := known + "/big:1"
	hosts := c.Hosts

	out, err := c.On(t.Context(), hosts[0].Name, c.Binary, "image", "pull", image)
	if err != nil {
		t.Fatal(err)
	}
	mustContain(t, "image pull", out, "pulling "+image, "pulled "+image)
	if _, ok := asked.Load(known); !ok {
		t.Error("the mirror was not told for which registry it is asked")
	}
	if n := r.blobs.Load(); n != 2 {
		t.Errorf("the first node took %d blobs, not the config and the one layer that it did not have", n)
	}
	keys := []string{image}
	for _, layer := range must(big.Layers()) {
		keys = append(keys, must(layer.DiffID()).String())
	}
	eventually(t, "the other nodes are told who has it", func() error {
		for _, h := range hosts[1:] {
			if out, err := c.On(t.Context(), h.Name, c.Binary, "image", "ls"); err != nil || !strings.Contains(out, image) {
				return fmt.Errorf("%s says %q: %w", h.Name, out, err)
			}
			for _, key := range keys {
				if told := page(t, socketClient(c.Socket(h)), "http://conclave/debug/holders?key="+url.QueryEscape(key)); !strings.Contains(told, hosts[0].Name) {
					return fmt.Errorf("gossip tells %s that %s has %s", h.Name, told, key)
				}
			}
		}
		return nil
	})
	putPod(t, c, ns, imagePod("second", hosts[1].Name, image))
	podRuns(t, c, ns, "second")
	if n := r.blobs.Load(); n > 3 { // its config, to check the tag by
		t.Errorf("after the second node the registry had given %d blobs: layers left it twice", n)
	}
	r.server.Close()
	putPod(t, c, ns, imagePod("third", hosts[2].Name, image))
	podRuns(t, c, ns, "third")
	sum, err := c.Kubectl(t.Context(), "exec", "-n", ns, "third", "--", "sha256sum", "/one", "/two")
	if err != nil {
		t.Fatal(err)
	}
	if other, err := c.Kubectl(t.Context(), "exec", "-n", ns, "second", "--", "sha256sum", "/one", "/two"); err != nil || other != sum {
		t.Errorf("another content: %q, %q, %v", sum, other, err)
	}
	putPod(t, c, ns, imagePod("fresh", hosts[2].Name, image, func(p *corev1.Pod) { p.Spec.Containers[0].ImagePullPolicy = corev1.PullAlways }))
	mustContain(t, "policy Always", podWaits(t, c, ns, "fresh", "ErrImagePull"), "the registry is unavailable")
	out, err = c.On(t.Context(), hosts[1].Name, c.Binary, "image", "ls")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, image) {
			mustContain(t, "image ls", line, hosts[0].Name+","+hosts[1].Name+","+hosts[2].Name)
		}
	}
}

// TestImageVolume mounts the content of an image.
func TestImageVolume(t *testing.T) {
	c := three(t)
	t.Parallel()
	ns := namespace(t, c)
	r := newCountingRegistry(t, c)
	hostsFile(t, c, r.host, map[string]string{"hosts.toml": fmt.Sprintf("server = \"http://%s\"\n", r.host)})
	push(t, r.host+"/kitten:1", busyboxWith(t, map[string][]byte{"dir/file": []byte("1"), "file": []byte("2"), "program": []byte("#!/bin/sh\necho ran\n")}))
	volume := func(mounts ...corev1.VolumeMount) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "content", VolumeSource: corev1.VolumeSource{
				Image: &corev1.ImageVolumeSource{Reference: r.host + "/kitten:1", PullPolicy: corev1.PullAlways}}}}
			p.Spec.Containers[0].Image, p.Spec.Containers[0].VolumeMounts = "conclave.test/busybox:1", mounts
		}
	}
	busybox := images.Recipes["busybox"].Name
	t.Run("pull policy of Always", func(t *testing.T) {
		conformance.Shows(t, "[sig-node] ImageVolume should succeed with pod and pull policy of Always [LinuxOnly] [MinimumKubeletVersion:1.35] [Conformance]")
		pod := imagePod("kitten", c.Hosts[1].Name, busybox, volume(corev1.VolumeMount{Name: "content", MountPath: "/volume"},
			corev1.VolumeMount{Name: "content", MountPath: "/part", SubPath: "dir"}))
		pod.Spec.Containers[0].Image = busybox
		putPod(t, c, ns, pod)
		podRuns(t, c, ns, "kitten")
		out := kubectl(t, c, "exec", "-n", ns, "kitten", "--", "sh", "-c", `exec 2>&1; cat /volume/dir/file /volume/file /part/file; echo; touch /volume/new; /volume/program; /volume/bin/busybox true; grep -E ' /(volume|part) ' /proc/mounts`)
		mustContain(t, "the volume", out, "121\n")
		for line := range strings.Lines(out) {
			if strings.Contains(line, " /volume ") || strings.Contains(line, " /part ") {
				mustContain(t, "its mount", line, "ro,", "noexec")
			}
		}
		if strings.Contains(out, "ran") {
			t.Error("a program of the volume ran")
		}
		podEvent(t, c, ns, "kitten", "Pulled", `Successfully pulled image "`+r.host+`/kitten:1"`)
		if _, err := c.On(t.Context(), c.Hosts[1].Name, c.Binary, "image", "rm", r.host+"/kitten:1"); err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("an image that is mounted is removed: %v", err)
		}
		kubectl(t, c, "delete", "pod", "-n", ns, "kitten", "--grace-period=0", "--force")
		eventually(t, "the image is free", func() error {
			_, err := c.On(t.Context(), c.Hosts[1].Name, c.Binary, "image", "rm", r.host+"/kitten:1")
			return err
		})
	})
	t.Run("what is not there", func(t *testing.T) {
		pod := imagePod("nokitten", c.Hosts[1].Name, busybox, volume(corev1.VolumeMount{Name: "content", MountPath: "/volume"}))
		pod.Spec.Containers[0].Image = busybox
		pod.Spec.Volumes[0].Image.Reference = r.host + "/none:1"
		putPod(t, c, ns, pod)
		podWaits(t, c, ns, "nokitten", "ErrImagePull")
		pod = imagePod("nopart", c.Hosts[1].Name, busybox, volume(corev1.VolumeMount{Name: "content", MountPath: "/volume", SubPath: "none"}))
		pod.Spec.Containers[0].Image = busybox
		putPod(t, c, ns, pod)
		podWaits(t, c, ns, "nopart", "CreateContainerConfigError")
	})
}

// TestBadPulls: the registry dies in the middle of a layer, sends one whose
// digest lies, and the disk fills while a layer is unpacked. Nothing is left,
// and all is well as soon as the fault is gone. Then images that lie in the
// folder for it are there, and the others can be removed.
func TestBadPulls(t *testing.T) {
	t.Parallel()
	c := ownOf(t, cluster.Config{Hosts: 1, Bare: true, Args: []string{"--image-minimum-gc-age", "1ms"}})
	host := c.Hosts[0]
	store := filepath.Join(c.DataDir(host), "images")
	if err := os.MkdirAll(store, 0o711); err != nil {
		t.Fatal(err)
	}
	// A host has mounts of its own: the disk is its own too.
	if _, err := c.On(t.Context(), host.Name, "mount", "-t", "tmpfs", "-o", "size=72m", "images", store); err != nil {
		t.Fatal(err)
	}
	if err := c.Form(t.Context(), t.Logf); err != nil {
		t.Fatal(err)
	}
	if err := c.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	ns := namespace(t, c)
	r := newCountingRegistry(t, c)
	busybox := images.Recipes["busybox"].Name
	hostsFile(t, c, r.host, map[string]string{"hosts.toml": fmt.Sprintf("server = \"http://%s\"\n", r.host)})
	push(t, r.host+"/app:1", busyboxWith(t, map[string][]byte{"big": noise(t, 6<<20)}))
	push(t, r.host+"/huge:1", busyboxWith(t, map[string][]byte{"big": noise(t, 36<<20)}))
	push(t, r.host+"/huge:2", busyboxWith(t, map[string][]byte{"big": noise(t, 36<<20)}))
	clean := func(when string) {
		t.Helper()
		left, err := c.On(t.Context(), host.Name, "ls", filepath.Join(store, "tmp"))
		if err != nil || strings.TrimSpace(left) != "" {
			t.Errorf("%s: left in tmp: %s %v", when, left, err)
		}
	}
	var broken, ranges atomic.Int64
	dies := func(w http.ResponseWriter, req *http.Request) bool {
		if req.Header.Get("Range") != "" {
			ranges.Add(1)
		}
		if req.Method != http.MethodGet || !strings.Contains(req.URL.Path, "/app/blobs/") {
			return false
		}
		var whole recordedAnswer
		r.real.ServeHTTP(&whole, req)
		if whole.Len() < 1<<20 || broken.Add(1) > 3 {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(whole.Len()))
		for k, v := range whole.header {
			w.Header()[k] = v
		}
		if whole.code != 0 {
			w.WriteHeader(whole.code)
		}
		_, _ = w.Write(whole.Bytes()[:whole.Len()/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	r.before.Store(&dies)
	putPod(t, c, ns, imagePod("broken", host.Name, r.host+"/app:1"))
	podRuns(t, c, ns, "broken")
	if ranges.Load() == 0 {
		t.Error("a broken download was begun anew")
	}
	clean("after breaks")

	lies := func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method != http.MethodGet || !strings.Contains(req.URL.Path, "/huge/blobs/") {
			return false
		}
		var whole recordedAnswer
		r.real.ServeHTTP(&whole, req)
		data := bytes.Clone(whole.Bytes())
		if len(data) < 1<<20 { // the config and busybox stay as they are
			_, _ = w.Write(data)
			return true
		}
		data[len(data)/2] ^= 1
		_, _ = w.Write(data)
		return true
	}
	r.before.Store(&lies)
	putPod(t, c, ns, imagePod("lied", host.Name, r.host+"/huge:1"))
	podWaits(t, c, ns, "lied", "ErrImagePull")
	clean("after a lie")
	r.before.Store(nil)
	podRuns(t, c, ns, "lied") // by the back-off

	putPod(t, c, ns, imagePod("toobig", host.Name, r.host+"/huge:2"))
	mustContain(t, "on a full disk", podWaits(t, c, ns, "toobig", "ErrImagePull"), "no space left on device")
	podEvent(t, c, ns, "toobig", "Failed", "no space left on device")
	clean("after a full disk")
	podRuns(t, c, ns, "broken")
	podRuns(t, c, ns, "lied") // what runs goes on
	kubectl(t, c, "delete", "pod", "-n", ns, "lied", "--grace-period=0", "--force")
	podRuns(t, c, ns, "toobig") // by the back-off, when the image that nothing uses any more is gone
	if out, err := c.On(t.Context(), host.Name, c.Binary, "image", "ls", "--here"); err != nil || strings.Contains(out, "/huge:1") || !strings.Contains(out, "/app:1") {
		t.Errorf("%s, %v", out, err)
	}

	// The folder of images to be imported.
	file, err := cluster.Image(t.Context(), c.Root, "busybox")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	drop := filepath.Join(c.DataDir(host), "images.d", "busybox.tar")
	if err := os.WriteFile(drop, data, 0o644); err != nil {
		t.Fatal(err)
	}
	listed := func(want bool) func() error {
		return func() error {
			out, err := c.On(t.Context(), host.Name, c.Binary, "image", "ls")
			if err == nil && strings.Contains(out, busybox) != want {
				err = errors.New(out)
			}
			return err
		}
	}
	eventually(t, "the image that was put there is imported", listed(true))
	kubectl(t, c, "delete", "pod", "-n", ns, "toobig", "--grace-period=0", "--force")
	eventually(t, "all that nothing uses is removed", func() error {
		out, err := c.On(t.Context(), host.Name, c.Binary, "image", "prune")
		if err == nil && !strings.Contains(out, "/huge:2") {
			err = errors.New(out)
		}
		return err
	})
	if err := listed(true)(); err != nil {
		t.Errorf("what lies in the folder was removed: %v", err)
	}
	if err := os.Remove(drop); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what lies there no more is removed", func() error {
		if _, err := c.On(t.Context(), host.Name, c.Binary, "image", "prune"); err != nil {
			return err
		}
		return listed(false)()
	})
}

// recordedAnswer keeps what a handler writes.
type recordedAnswer struct {
	bytes.Buffer
	header http.Header
	code   int
}

func (a *recordedAnswer) Header() http.Header {
	if a.header == nil {
		a.header = http.Header{}
	}
	return a.header
}

func (a *recordedAnswer) WriteHeader(code int) { a.code = code }
