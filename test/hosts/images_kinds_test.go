package hosts

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	corev1 "k8s.io/api/core/v1"

	"conclave/test/cluster"
	"conclave/test/images"
)

// layered is busybox with a layer on top that is packed in one way.
func layered(t *testing.T, text string, kind types.MediaType, packed compression.Compression, manifest, config types.MediaType) v1.Image {
	t.Helper()
	base, err := images.Build(t.Context(), images.Recipes["busybox"])
	if err != nil {
		t.Fatal(err)
	}
	b := layerOf(t, 0o644, map[string][]byte{"mark": []byte(text)})
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil },
		tarball.WithCompression(packed), tarball.WithMediaType(kind))
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.Append(base, mutate.Addendum{Layer: layer, MediaType: kind})
	if err != nil {
		t.Fatal(err)
	}
	return mutate.ConfigMediaType(mutate.MediaType(img, manifest), config)
}

// TestKindsOfImages: layers packed in each way that there is, in both kinds of
// manifest, and an index from which each machine takes its own.
func TestKindsOfImages(t *testing.T) {
	c := three(t)
	t.Parallel()
	ns := namespace(t, c)
	r := newCountingRegistry(t, c)
	hostsFile(t, c, r.host, map[string]string{"hosts.toml": fmt.Sprintf("server = \"http://%s\"\n", r.host)})
	says := func(podName, image, want string) {
		t.Helper()
		putPod(t, c, ns, imagePod(podName, c.Hosts[1].Name, r.host+"/"+image))
		podRuns(t, c, ns, podName)
		if got := kubectl(t, c, "exec", "-n", ns, podName, "--", "cat", "/mark"); got != want {
			t.Errorf("%s holds %q, not %q", image, got, want)
		}
	}
	for _, k := range []struct {
		name             string
		layer            types.MediaType
		packed           compression.Compression
		manifest, config types.MediaType
	}{
		{"docker", types.DockerLayer, compression.GZip, types.DockerManifestSchema2, types.DockerConfigJSON},
		{"oci", types.OCILayer, compression.GZip, types.OCIManifestSchema1, types.OCIConfigJSON},
		{"zstd", types.OCILayerZStd, compression.ZStd, types.OCIManifestSchema1, types.OCIConfigJSON},
		{"plain", types.OCIUncompressedLayer, compression.None, types.OCIManifestSchema1, types.OCIConfigJSON},
	} {
		img := layered(t, k.name, k.layer, k.packed, k.manifest, k.config)
		if got := must(img.MediaType()); got != k.manifest {
			t.Fatalf("%s is a %s", k.name, got)
		}
		push(t, r.host+"/kinds:"+k.name, img)
		says(k.name, "kinds:"+k.name, k.name)
	}

	other := map[string]string{"amd64": "arm64"}[runtime.GOARCH]
	if other == "" {
		other = "amd64"
	}
	many := func(platforms ...string) v1.ImageIndex {
		index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
		for _, arch := range platforms {
			index = mutate.AppendManifests(index, mutate.IndexAddendum{
				Add:        layered(t, "for "+arch, types.OCILayer, compression.GZip, types.OCIManifestSchema1, types.OCIConfigJSON),
				Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
		}
		return index
	}
	pushIndex := func(tag string, index v1.ImageIndex) {
		t.Helper()
		ref, err := name.NewTag(r.host+"/"+tag, name.Insecure)
		if err == nil {
			err = remote.WriteIndex(ref, index, remote.WithContext(t.Context()))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	both := many(other, runtime.GOARCH)
	pushIndex("many:1", both)
	says("many", "many:1", "for "+runtime.GOARCH)
	says("by-digest", "many@"+must(both.Digest()).String(), "for "+runtime.GOARCH)
	pushIndex("many:foreign", many(other))
	putPod(t, c, ns, imagePod("foreign", c.Hosts[1].Name, r.host+"/many:foreign"))
	mustContain(t, "what is for other machines", podWaits(t, c, ns, "foreign", "ErrImagePull"), "linux/"+runtime.GOARCH)
}

// TestCredentialPrograms pulls with passwords that programs know: a credential
// helper of Docker's, and a plugin of kubelet's.
func TestCredentialPrograms(t *testing.T) {
	t.Parallel()
	root, err := cluster.Root()
	if err != nil {
		t.Fatal(err)
	}
	// The programs are in the PATH of conclave beside itself, and plugins in a
	// folder of their own.
	bin, plugins := t.TempDir(), t.TempDir()
	binary := filepath.Join(bin, "conclave")
	if err := os.Symlink(filepath.Join(root, "bin", "conclave"), binary); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(plugins, "config.yaml")
	c := ownOf(t, cluster.Config{Hosts: 1, Bare: true, Binary: binary,
		Args: []string{"--image-credential-provider-config", config, "--image-credential-provider-bin-dir", plugins}})
	helped, helpedCA := realRegistry(t, c)
	plugged, pluggedCA := realRegistry(t, c)
	program := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program(filepath.Join(bin, "docker-credential-lab"), fmt.Sprintf(`read host
if [ "$1" = get ] && [ "$host" = %q ]; then echo '{"Username":"me","Secret":"secret"}'; else echo "credentials not found in native keychain"; exit 1; fi
`, helped))
	program(filepath.Join(plugins, "cloud"), fmt.Sprintf(`cat >> %s/asked
echo '{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse","cacheKeyType":"Registry","auth":{%q:{"username":"me","password":"secret"}}}'
`, plugins, plugged))
	if err := os.WriteFile(config, fmt.Appendf(nil, `apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: cloud
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: [%q]
  defaultCacheDuration: 10m
`, plugged), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := c.Form(t.Context(), t.Logf); err != nil {
		t.Fatal(err)
	}
	if err := c.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	const ns = "default"
	host := c.Hosts[0]
	for registry, ca := range map[string][]byte{helped: helpedCA, plugged: pluggedCA} {
		hostsFile(t, c, registry, map[string]string{"ca.crt": string(ca)})
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(ca)
		push(t, registry+"/team/app:1", busyboxWith(t, map[string][]byte{"mark": noise(t, 1<<10)}),
			remote.WithAuth(&authn.Basic{Username: "me", Password: "secret"}), remote.WithTransport(&http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}))
	}
	putPod(t, c, ns, imagePod("unhelped", host.Name, helped+"/team/app:1"))
	podWaits(t, c, ns, "unhelped", "ErrImagePull")
	docker, err := json.Marshal(map[string]any{"credHelpers": map[string]string{helped: "lab"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.DataDir(host), "config.json"), docker, 0o600); err != nil {
		t.Fatal(err)
	}
	for podName, registry := range map[string]string{"helped": helped, "plugged": plugged} {
		putPod(t, c, ns, imagePod(podName, host.Name, registry+"/team/app:1"))
		podRuns(t, c, ns, podName)
	}
	asked, err := os.ReadFile(filepath.Join(plugins, "asked"))
	if err != nil {
		t.Fatal(err)
	}
	mustContain(t, "what the plugin was asked", string(asked), `"kind":"CredentialProviderRequest"`, `"image":"`+plugged+`/team/app"`)
	if strings.Contains(string(asked), helped) {
		t.Errorf("the plugin was asked about another registry: %s", asked)
	}
	// What a program of the node gave is for every pod here.
	putPod(t, c, ns, imagePod("present", host.Name, plugged+"/team/app:1", func(p *corev1.Pod) { p.Spec.Containers[0].ImagePullPolicy = corev1.PullNever }))
	podRuns(t, c, ns, "present")
	// The name's own part decides whether an image is asked for each time.
	for image, want := range map[string]corev1.PullPolicy{"a.test/app": corev1.PullAlways, "a.test/app:latest": corev1.PullAlways, "a.test/app:1": corev1.PullIfNotPresent,
		"a.test/app@sha256:" + strings.Repeat("0", 64): corev1.PullIfNotPresent} {
		got := kubectl(t, c, "run", "policy", "-n", ns, "--image="+image, "--dry-run=server", "-o", "jsonpath={.spec.containers[0].imagePullPolicy}")
		if got != string(want) {
			t.Errorf("the policy of %s is %s", image, got)
		}
	}
}
