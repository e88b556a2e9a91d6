package hosts

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"conclave/test/cluster"
	"conclave/test/conformance"
)

// A pod of these tests mounts its volumes below /v and prints what it finds
// there: a line for each folder, and one for each file with its content.
const listFolders = `stat -c '%n %a' /v/*; stat -f -c '%n %T' /v/*; `

const listFiles = `find -L /v -type f ! -path '*/..*' | sort | while read f; do ` +
	`echo "$f $(stat -L -c %a $f) $(base64 < $f | tr -d '\n')"; done; `

// shownFile is a file of a volume as a container sees it.
type shownFile struct {
	mode    string
	content string
}

func storagePod(name string, containers ...corev1.Container) *corev1.Pod {
	for i := range containers {
		containers[i].Image = "conclave.test/busybox:1"
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: new(int64(0)),
			AutomountServiceAccountToken: new(false), Containers: containers,
		},
	}
}

func shell(name, script string) corev1.Container {
	return corev1.Container{Name: name, Command: []string{"sh", "-c", script}}
}

// withVolume adds a volume that every container mounts at /v/NAME.
func withVolume(pod *corev1.Pod, name string, source corev1.VolumeSource) {
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: source})
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: "/v/" + name})
	}
}

func createPod(t *testing.T, c *cluster.Cluster, ns string, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	made, err := c.Client.CoreV1().Pods(ns).Create(t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// waitForPod waits until a pod is in a phase.
func waitForPod(t *testing.T, c *cluster.Cluster, ns, name string, phase corev1.PodPhase) *corev1.Pod {
	t.Helper()
	var pod *corev1.Pod
	eventually(t, fmt.Sprintf("pod %s is %s", name, phase), func() (err error) {
		pod, err = c.Client.CoreV1().Pods(ns).Get(t.Context(), name, metav1.GetOptions{})
		if err == nil && pod.Status.Phase != phase {
			raw, _ := json.Marshal(pod.Status)
			err = fmt.Errorf("its status is %s", raw)
		}
		return err
	})
	return pod
}

func logOf(t *testing.T, c *cluster.Cluster, ns, pod, container string) string {
	t.Helper()
	var raw []byte
	eventually(t, "the log of "+pod, func() (err error) { // its node may just be back
		raw, err = c.Client.CoreV1().Pods(ns).GetLogs(pod, &corev1.PodLogOptions{Container: container}).DoRaw(t.Context())
		return err
	})
	return string(raw)
}

// shownFiles reads what listFiles printed.
func shownFiles(t *testing.T, text string) map[string]shownFile {
	t.Helper()
	files := map[string]shownFile{}
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), " ")
		if len(f) != 3 || !strings.HasPrefix(f[0], "/v/") {
			continue
		}
		content, err := base64.StdEncoding.DecodeString(f[2])
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		files[strings.TrimPrefix(f[0], "/v/")] = shownFile{f[1], string(content)}
	}
	return files
}

// runToEnd runs a pod and returns what each of its containers saw.
func runToEnd(t *testing.T, c *cluster.Cluster, ns string, pod *corev1.Pod) map[string]map[string]shownFile {
	t.Helper()
	createPod(t, c, ns, pod)
	waitForPod(t, c, ns, pod.Name, corev1.PodSucceeded)
	seen := map[string]map[string]shownFile{}
	for _, container := range pod.Spec.Containers {
		seen[container.Name] = shownFiles(t, logOf(t, c, ns, pod.Name, container.Name))
	}
	return seen
}

// wantFiles wants the files of one volume to be exactly these.
func wantFiles(t *testing.T, seen map[string]shownFile, volume string, want map[string]shownFile) {
	t.Helper()
	for path, w := range want {
		if got, ok := seen[volume+"/"+path]; !ok || got != w {
			t.Errorf("%s/%s is %q, want %q", volume, path, got, w)
		}
	}
	for path := range seen {
		if file, ok := strings.CutPrefix(path, volume+"/"); ok && want[file] == (shownFile{}) {
			t.Errorf("%s shows a file %s that nobody asked for", volume, file)
		}
	}
}

// storageGroup is a namespace for the tests of one kind of volume; it outlives
// its parallel subtests.
func storageGroup(t *testing.T) (*cluster.Cluster, string) {
	t.Helper()
	c := three(t)
	t.Parallel()
	return c, namespace(t, c)
}

func shows(t *testing.T, codename string, check func(t *testing.T)) {
	t.Helper()
	t.Run(codename, func(t *testing.T) {
		conformance.Shows(t, codename)
		check(t)
	})
}

// filed is one way to show a ConfigMap or a Secret in a volume.
type filed struct {
	kind   string // as the codenames say it
	source func(name string, items []corev1.KeyToPath, mode *int32, optional *bool) corev1.VolumeSource
	secret bool
}

var filedKinds = []filed{
	{kind: "ConfigMap", source: func(name string, items []corev1.KeyToPath, mode *int32, optional *bool) corev1.VolumeSource {
		return corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: name}, Items: items, DefaultMode: mode, Optional: optional}}
	}},
	{kind: "Projected configMap", source: func(name string, items []corev1.KeyToPath, mode *int32, optional *bool) corev1.VolumeSource {
		return corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{DefaultMode: mode, Sources: []corev1.VolumeProjection{
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: name}, Items: items, Optional: optional}}}}}
	}},
	{kind: "Secrets", secret: true, source: func(name string, items []corev1.KeyToPath, mode *int32, optional *bool) corev1.VolumeSource {
		return corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: name, Items: items, DefaultMode: mode, Optional: optional}}
	}},
	{kind: "Projected secret", secret: true, source: func(name string, items []corev1.KeyToPath, mode *int32, optional *bool) corev1.VolumeSource {
		return corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{DefaultMode: mode, Sources: []corev1.VolumeProjection{
			{Secret: &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: name}, Items: items, Optional: optional}}}}}
	}},
}

// writeData makes a ConfigMap or a Secret hold exactly this data, or removes it.
func (f filed) writeData(t *testing.T, c *cluster.Cluster, ns, name string, data map[string]string) {
	t.Helper()
	core := c.Client.CoreV1()
	var err error
	switch {
	case data == nil && f.secret:
		err = core.Secrets(ns).Delete(t.Context(), name, metav1.DeleteOptions{})
	case data == nil:
		err = core.ConfigMaps(ns).Delete(t.Context(), name, metav1.DeleteOptions{})
	case f.secret:
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: data}
		if old, getErr := core.Secrets(ns).Get(t.Context(), name, metav1.GetOptions{}); getErr == nil {
			old.Data, old.StringData = nil, data
			_, err = core.Secrets(ns).Update(t.Context(), old, metav1.UpdateOptions{})
		} else {
			_, err = core.Secrets(ns).Create(t.Context(), s, metav1.CreateOptions{})
		}
	default:
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}
		if old, getErr := core.ConfigMaps(ns).Get(t.Context(), name, metav1.GetOptions{}); getErr == nil {
			old.Data = data
			_, err = core.ConfigMaps(ns).Update(t.Context(), old, metav1.UpdateOptions{})
		} else {
			_, err = core.ConfigMaps(ns).Create(t.Context(), cm, metav1.CreateOptions{})
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestFiledVolumes shows what volumes of ConfigMaps and Secrets look like inside
// a container, in all ways to ask for them.
func TestFiledVolumes(t *testing.T) {
	c, ns := storageGroup(t)
	other := ns + "-other"
	kubectl(t, c, "create", "namespace", other)
	t.Cleanup(func() { kubectlLater(t, c, "delete", "namespace", other, "--wait=false") })
	for _, f := range filedKinds {
		t.Run(strings.ReplaceAll(f.kind, " ", ""), func(t *testing.T) {
			t.Parallel()
			name := strings.ToLower(strings.ReplaceAll(f.kind, " ", "-"))
			f.writeData(t, c, ns, name, map[string]string{"data-1": "value-1", "data-2": "value-2\n", "data-3": ""})
			f.writeData(t, c, other, name, map[string]string{"data-1": "of another namespace"})
			f.testLooks(t, c, ns, name)
		})
	}
}

// kubectlLater is kubectl in a cleanup, when the test's own context has ended.
func kubectlLater(t *testing.T, c *cluster.Cluster, args ...string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := c.Kubectl(ctx, args...); err != nil {
		t.Error(err)
	}
}

func (f filed) testLooks(t *testing.T, c *cluster.Cluster, ns, name string) {
	all := map[string]shownFile{"data-1": {"644", "value-1"}, "data-2": {"644", "value-2\n"}, "data-3": {"644", ""}}
	mapped := []corev1.KeyToPath{{Key: "data-2", Path: "path/to/data-2"}}
	withMode := []corev1.KeyToPath{{Key: "data-2", Path: "path/to/data-2", Mode: new(int32(0o400))}, {Key: "data-1", Path: "plain"}}
	shownMapped := map[string]shownFile{"path/to/data-2": {"644", "value-2\n"}}
	sources := map[string]corev1.VolumeSource{
		"plain":  f.source(name, nil, nil, nil),
		"again":  f.source(name, nil, nil, nil),
		"mode":   f.source(name, nil, new(int32(0o400)), nil),
		"mapped": f.source(name, mapped, nil, nil),
		"item":   f.source(name, withMode, nil, nil),
	}
	root := storagePod(name+"-root", shell("main", listFolders+listFiles))
	for volume, source := range sources {
		withVolume(root, volume, source)
	}
	user := storagePod(name+"-user", shell("main", "id; "+listFiles))
	user.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: new(int64(1000))}
	withVolume(user, "plain", sources["plain"])
	withVolume(user, "mapped", sources["mapped"])
	group := storagePod(name+"-group", shell("main", "id; stat -c %g /v/mode/data-1; "+listFiles))
	group.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: new(int64(1000)), FSGroup: new(int64(1001))}
	withVolume(group, "mode", f.source(name, nil, new(int32(0o440)), nil))
	pods := []*corev1.Pod{root, user}
	if f.secret {
		pods = append(pods, group)
	}
	for _, pod := range pods {
		createPod(t, c, ns, pod)
	}
	seen, said := map[string]map[string]shownFile{}, map[string]string{}
	for _, pod := range pods {
		waitForPod(t, c, ns, pod.Name, corev1.PodSucceeded)
		said[pod.Name] = logOf(t, c, ns, pod.Name, "main")
		seen[pod.Name] = shownFiles(t, said[pod.Name])
	}

	prefix := "[sig-storage] " + f.kind + " should be consumable "
	const plain, linux = " [Conformance] [NodeConformance]", " [LinuxOnly] [Conformance] [NodeConformance]"
	shows(t, prefix+"from pods in volume"+plain, func(t *testing.T) {
		wantFiles(t, seen[root.Name], "plain", all)
		if f.secret { // which must not reach a disk
			mustContain(t, "the file systems", said[root.Name], "/v/plain tmpfs\n")
		}
	})
	shows(t, prefix+"from pods in volume with defaultMode set"+linux, func(t *testing.T) {
		wantFiles(t, seen[root.Name], "mode", map[string]shownFile{"data-1": {"400", "value-1"}, "data-2": {"400", "value-2\n"}, "data-3": {"400", ""}})
	})
	shows(t, prefix+"from pods in volume with mappings"+plain, func(t *testing.T) {
		wantFiles(t, seen[root.Name], "mapped", shownMapped)
	})
	itemMode := "Item mode"
	if f.secret {
		itemMode = "Item Mode"
	}
	shows(t, prefix+"from pods in volume with mappings and "+itemMode+" set"+linux, func(t *testing.T) {
		wantFiles(t, seen[root.Name], "item", map[string]shownFile{"path/to/data-2": {"400", "value-2\n"}, "plain": {"644", "value-1"}})
	})
	several := "in multiple volumes in the same pod"
	if f.secret {
		several = "in multiple volumes in a pod"
	}
	shows(t, prefix+several+plain, func(t *testing.T) {
		wantFiles(t, seen[root.Name], "plain", all)
		wantFiles(t, seen[root.Name], "again", all)
		wantFiles(t, seen[root.Name], "mapped", shownMapped)
	})
	asUser := func(pod, volume string, want map[string]shownFile) func(t *testing.T) {
		return func(t *testing.T) {
			mustContain(t, "the user", said[pod], "uid=1000")
			wantFiles(t, seen[pod], volume, want)
		}
	}
	if f.secret {
		shows(t, prefix+"from pods in volume as non-root with defaultMode and fsGroup set"+linux, func(t *testing.T) {
			asUser(group.Name, "mode", map[string]shownFile{"data-1": {"440", "value-1"}, "data-2": {"440", "value-2\n"}, "data-3": {"440", ""}})(t)
			mustContain(t, "the file's group", said[group.Name], "1001\n")
		})
	} else {
		shows(t, prefix+"from pods in volume as non-root"+plain, asUser(user.Name, "plain", all))
		shows(t, prefix+"from pods in volume with mappings as non-root"+plain, asUser(user.Name, "mapped", shownMapped))
	}
	if f.kind == "Secrets" {
		shows(t, "[sig-storage] Secrets should be able to mount in a volume regardless of a different secret existing with same name in different namespace"+plain, func(t *testing.T) {
			there, err := c.Client.CoreV1().Secrets(ns+"-other").Get(t.Context(), name, metav1.GetOptions{})
			if err != nil || string(there.Data["data-1"]) != "of another namespace" {
				t.Fatalf("the other namespace's secret: %v %v", there, err)
			}
			wantFiles(t, seen[root.Name], "plain", all)
		})
	}
}

// TestLiveVolumes changes, makes and removes what running pods show.
func TestLiveVolumes(t *testing.T) {
	c, ns := storageGroup(t)
	// A container that prints what its volume shows whenever that changes.
	watcher := func(name string) corev1.Container {
		return shell(name, `while true; do now=$(`+listFiles+` echo .); [ "$now" = "$last" ] || { echo "begin"; echo "$now"; echo "end"; last=$now; }; sleep 0.1; done`)
	}
	// latest is what the watcher printed last.
	latest := func(t *testing.T, pod, container string) map[string]shownFile {
		t.Helper()
		text := logOf(t, c, ns, pod, container)
		end := strings.LastIndex(text, "end\n")
		if end < 0 {
			return nil
		}
		return shownFiles(t, text[strings.LastIndex(text[:end], "begin\n"):end])
	}
	wantLive := func(t *testing.T, pod, container string, want map[string]shownFile) {
		t.Helper()
		eventually(t, container+" shows the change", func() error {
			if got := latest(t, pod, container); fmt.Sprint(got) != fmt.Sprint(want) || got == nil {
				return fmt.Errorf("it shows %q, not %q", got, want)
			}
			return nil
		})
	}
	const end = " [Conformance] [NodeConformance]"
	for _, f := range filedKinds {
		name := strings.ToLower(strings.ReplaceAll(f.kind, " ", "-"))
		shows(t, "[sig-storage] "+f.kind+" optional updates should be reflected in volume"+end, func(t *testing.T) {
			t.Parallel()
			f.writeData(t, c, ns, name+"-deleted", map[string]string{"data-1": "value-1"})
			f.writeData(t, c, ns, name+"-updated", map[string]string{"data-1": "value-1", "data-3": "goes"})
			pod := storagePod(name)
			for _, what := range []string{"deleted", "updated", "created"} {
				w := watcher(what)
				w.VolumeMounts = []corev1.VolumeMount{{Name: what, MountPath: "/v/" + what}}
				pod.Spec.Containers = append(pod.Spec.Containers, storagePod("", w).Spec.Containers...)
				pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: what, VolumeSource: f.source(name+"-"+what, nil, nil, new(true))})
			}
			createPod(t, c, ns, pod)
			waitForPod(t, c, ns, name, corev1.PodRunning)
			wantLive(t, name, "created", map[string]shownFile{})
			wantLive(t, name, "deleted", map[string]shownFile{"deleted/data-1": {"644", "value-1"}})
			wantLive(t, name, "updated", map[string]shownFile{"updated/data-1": {"644", "value-1"}, "updated/data-3": {"644", "goes"}})
			f.writeData(t, c, ns, name+"-deleted", nil)
			f.writeData(t, c, ns, name+"-updated", map[string]string{"data-1": "value-2", "data-4": "comes"})
			f.writeData(t, c, ns, name+"-created", map[string]string{"data-1": "value-1"})
			wantLive(t, name, "deleted", map[string]shownFile{})
			wantLive(t, name, "updated", map[string]shownFile{"updated/data-1": {"644", "value-2"}, "updated/data-4": {"644", "comes"}})
			wantLive(t, name, "created", map[string]shownFile{"created/data-1": {"644", "value-1"}})
			f.writeData(t, c, ns, name+"-created", map[string]string{"data-1": "value-2"})
			wantLive(t, name, "created", map[string]shownFile{"created/data-1": {"644", "value-2"}})
		})
		if f.secret {
			continue
		}
		shows(t, "[sig-storage] "+f.kind+" updates should be reflected in volume"+end, func(t *testing.T) {
			t.Parallel()
			name := name + "-live"
			f.writeData(t, c, ns, name, map[string]string{"data-1": "value-1"})
			pod := storagePod(name, watcher("main"))
			withVolume(pod, "live", f.source(name, []corev1.KeyToPath{{Key: "data-1", Path: "path/to/data"}}, nil, nil))
			createPod(t, c, ns, pod)
			waitForPod(t, c, ns, name, corev1.PodRunning)
			wantLive(t, name, "main", map[string]shownFile{"live/path/to/data": {"644", "value-1"}})
			for i := range 3 {
				value := fmt.Sprint("value-", i+2)
				f.writeData(t, c, ns, name, map[string]string{"data-1": value})
				wantLive(t, name, "main", map[string]shownFile{"live/path/to/data": {"644", value}})
			}
		})
	}
	for kind, source := range downwardKinds {
		for what, patch := range map[string]string{
			"labels":      `{"metadata":{"labels":{"app":null,"key1":"value1","key3":"value3"}}}`,
			"annotations": `{"metadata":{"annotations":{"builder":"bar","many":"lines\nof text"}}}`,
		} {
			shows(t, "[sig-storage] "+kind+" should update "+what+" on modification"+end, func(t *testing.T) {
				t.Parallel()
				name := strings.ToLower(strings.ReplaceAll(kind, " ", "-") + "-" + what)
				pod := storagePod(name, watcher("main"))
				pod.Annotations = map[string]string{"builder": "foo"}
				withVolume(pod, "live", source(nil, fieldFile("shown", "metadata."+what)))
				createPod(t, c, ns, pod)
				waitForPod(t, c, ns, name, corev1.PodRunning)
				before, after := fmt.Sprintf("app=%q", name), "key1=\"value1\"\nkey3=\"value3\""
				if what == "annotations" {
					before, after = `builder="foo"`, "builder=\"bar\"\nmany=\"lines\\nof text\""
				}
				wantLive(t, name, "main", map[string]shownFile{"live/shown": {"644", before}})
				if _, err := c.Client.CoreV1().Pods(ns).Patch(t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
					t.Fatal(err)
				}
				wantLive(t, name, "main", map[string]shownFile{"live/shown": {"644", after}})
			})
		}
	}
}

// TestBinaryData shows text and binary data side by side.
func TestBinaryData(t *testing.T) {
	c, ns := storageGroup(t)
	shows(t, "[sig-storage] ConfigMap binary data should be reflected in volume [Conformance] [NodeConformance]", func(t *testing.T) {
		binary := "\xde\xca\xfe\xba\xd0\x00\xfe\xff\n"
		_, err := c.Client.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: "both"},
			Data:       map[string]string{"data-1": "value-1"}, BinaryData: map[string][]byte{"dump.bin": []byte(binary)},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		pod := storagePod("both", shell("main", listFiles))
		withVolume(pod, "plain", filedKinds[0].source("both", nil, nil, nil))
		withVolume(pod, "mapped", filedKinds[0].source("both", []corev1.KeyToPath{{Key: "dump.bin", Path: "a/dump"}, {Key: "data-1", Path: "a/text"}}, nil, nil))
		seen := runToEnd(t, c, ns, pod)["main"]
		wantFiles(t, seen, "plain", map[string]shownFile{"data-1": {"644", "value-1"}, "dump.bin": {"644", binary}})
		wantFiles(t, seen, "mapped", map[string]shownFile{"a/text": {"644", "value-1"}, "a/dump": {"644", binary}})
	})
}

// downwardKinds are the two ways to show a pod its own fields in a volume.
var downwardKinds = map[string]func(mode *int32, files ...corev1.DownwardAPIVolumeFile) corev1.VolumeSource{
	"Downward API volume": func(mode *int32, files ...corev1.DownwardAPIVolumeFile) corev1.VolumeSource {
		return corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: files, DefaultMode: mode}}
	},
	"Projected downwardAPI": func(mode *int32, files ...corev1.DownwardAPIVolumeFile) corev1.VolumeSource {
		return corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{DefaultMode: mode, Sources: []corev1.VolumeProjection{
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: files}}}}}
	},
}

func fieldFile(path, field string) corev1.DownwardAPIVolumeFile {
	return corev1.DownwardAPIVolumeFile{Path: path, FieldRef: &corev1.ObjectFieldSelector{FieldPath: field}}
}

func resourceFile(path, container, resourceName, divisor string) corev1.DownwardAPIVolumeFile {
	ref := &corev1.ResourceFieldSelector{ContainerName: container, Resource: resourceName}
	if divisor != "" {
		ref.Divisor = resource.MustParse(divisor)
	}
	return corev1.DownwardAPIVolumeFile{Path: path, ResourceFieldRef: ref}
}

// TestDownwardVolumes shows pods their own names and resources.
func TestDownwardVolumes(t *testing.T) {
	c, ns := storageGroup(t)
	for kind, source := range downwardKinds {
		t.Run(strings.ReplaceAll(kind, " ", ""), func(t *testing.T) {
			t.Parallel()
			name := strings.ToLower(strings.ReplaceAll(kind, " ", "-"))
			bounded, free := shell("bounded", listFiles), shell("free", "true")
			bounded.Resources = corev1.ResourceRequirements{
				Requests: corev1.ResourceList{"cpu": resource.MustParse("250m"), "memory": resource.MustParse("32Mi")},
				Limits:   corev1.ResourceList{"cpu": resource.MustParse("1250m"), "memory": resource.MustParse("64Mi")},
			}
			pod := storagePod(name, bounded, free)
			item := fieldFile("name", "metadata.name")
			item.Mode = new(int32(0o400))
			withVolume(pod, "name", source(nil, fieldFile("podname", "metadata.name")))
			withVolume(pod, "mode", source(new(int32(0o400)), fieldFile("podname", "metadata.name")))
			withVolume(pod, "item", source(nil, item, fieldFile("other", "metadata.namespace")))
			withVolume(pod, "resources", source(nil,
				resourceFile("cpu/limit", "bounded", "limits.cpu", ""), resourceFile("cpu/limit-m", "bounded", "limits.cpu", "1m"),
				resourceFile("cpu/request", "bounded", "requests.cpu", ""), resourceFile("cpu/request-m", "bounded", "requests.cpu", "1m"),
				resourceFile("memory/limit", "bounded", "limits.memory", ""), resourceFile("memory/limit-Mi", "bounded", "limits.memory", "1Mi"),
				resourceFile("memory/request", "bounded", "requests.memory", ""), resourceFile("memory/request-Mi", "bounded", "requests.memory", "1Mi"),
				resourceFile("free/cpu", "free", "limits.cpu", ""), resourceFile("free/cpu-m", "free", "limits.cpu", "1m"),
				resourceFile("free/memory", "free", "limits.memory", "")))
			seen := runToEnd(t, c, ns, pod)["bounded"]
			node := nodeOf(t, c, ns, name)
			allocatable := node.Status.Allocatable
			prefix := "[sig-storage] " + kind + " should "
			const plain, linux = " [Conformance] [NodeConformance]", " [LinuxOnly] [Conformance] [NodeConformance]"
			shows(t, prefix+"provide podname only"+plain, func(t *testing.T) {
				wantFiles(t, seen, "name", map[string]shownFile{"podname": {"644", name}})
			})
			shows(t, prefix+"set DefaultMode on files"+linux, func(t *testing.T) {
				wantFiles(t, seen, "mode", map[string]shownFile{"podname": {"400", name}})
			})
			shows(t, prefix+"set mode on item file"+linux, func(t *testing.T) {
				wantFiles(t, seen, "item", map[string]shownFile{"name": {"400", name}, "other": {"644", ns}})
			})
			for what, want := range map[string]map[string]string{
				"container's cpu limit":      {"cpu/limit": "2", "cpu/limit-m": "1250"},
				"container's cpu request":    {"cpu/request": "1", "cpu/request-m": "250"},
				"container's memory limit":   {"memory/limit": "67108864", "memory/limit-Mi": "64"},
				"container's memory request": {"memory/request": "33554432", "memory/request-Mi": "32"},
				"node allocatable (cpu) as default cpu limit if the limit is not set": {
					"free/cpu": fmt.Sprint(allocatable.Cpu().Value()), "free/cpu-m": fmt.Sprint(allocatable.Cpu().MilliValue())},
				"node allocatable (memory) as default memory limit if the limit is not set": {
					"free/memory": fmt.Sprint(allocatable.Memory().Value())},
			} {
				shows(t, prefix+"provide "+what+plain, func(t *testing.T) {
					for path, content := range want {
						if got := seen["resources/"+path]; got != (shownFile{"644", content}) || content == "0" {
							t.Errorf("%s is %q, want %q", path, got, content)
						}
					}
				})
			}
		})
	}
}

func nodeOf(t *testing.T, c *cluster.Cluster, ns, pod string) *corev1.Node {
	t.Helper()
	p, err := c.Client.CoreV1().Pods(ns).Get(t.Context(), pod, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	node, err := c.Client.CoreV1().Nodes().Get(t.Context(), p.Spec.NodeName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return node
}

// TestEmptyDirs writes files of each mode to folders on disk and in memory, as
// root and as a user, and passes files between containers.
func TestEmptyDirs(t *testing.T) {
	c, ns := storageGroup(t)
	mediums := map[string]corev1.StorageMedium{"default": corev1.StorageMediumDefault, "tmpfs": corev1.StorageMediumMemory}
	users := map[string]int64{"root": 0, "non-root": 1001}
	modes := []string{"0644", "0666", "0777"}
	said := map[string]string{}
	for user, uid := range users {
		pod := storagePod("empty-"+user, shell("main", listFolders+
			`umask 0; for d in /v/*; do m=${d##*-}; printf 'new file of %s' $m > $d/file; chmod $m $d/file; stat -c '%n %u' $d/file; done; `+listFiles))
		pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &uid}
		for medium, m := range mediums {
			for _, mode := range modes {
				withVolume(pod, medium+"-"+mode, corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: m}})
			}
		}
		createPod(t, c, ns, pod)
	}
	for user := range users {
		waitForPod(t, c, ns, "empty-"+user, corev1.PodSucceeded)
		said[user] = logOf(t, c, ns, "empty-"+user, "main")
	}
	const end = " [LinuxOnly] [Conformance] [NodeConformance]"
	// wantFolder checks a volume as it was before anything was written to it.
	wantFolder := func(t *testing.T, user, volume, medium string) {
		t.Helper()
		mustContain(t, "the folder", said[user], "/v/"+volume+" 777\n")
		if onTmpfs := strings.Contains(said[user], "/v/"+volume+" tmpfs\n"); onTmpfs != (medium == "tmpfs") {
			t.Errorf("the volume on %s is on a tmpfs: %v", medium, onTmpfs)
		}
	}
	for user, uid := range users {
		files := shownFiles(t, said[user])
		for medium := range mediums {
			for _, mode := range modes {
				shows(t, fmt.Sprintf("[sig-storage] EmptyDir volumes should support (%s,%s,%s)%s", user, mode, medium, end), func(t *testing.T) {
					volume := medium + "-" + mode
					wantFolder(t, user, volume, medium)
					wantFiles(t, files, volume, map[string]shownFile{"file": {strings.TrimLeft(mode, "0"), "new file of " + mode}})
					mustContain(t, "the file's owner", said[user], fmt.Sprintf("/v/%s/file %d\n", volume, uid))
				})
			}
		}
	}
	for medium, title := range map[string]string{"default": "volume on default medium", "tmpfs": "volume on tmpfs"} {
		shows(t, "[sig-storage] EmptyDir volumes "+title+" should have the correct mode"+end, func(t *testing.T) {
			for user := range users {
				wantFolder(t, user, medium+"-0777", medium)
			}
		})
	}
	shows(t, "[sig-storage] EmptyDir volumes pod should support shared volumes between containers [Conformance]", func(t *testing.T) {
		t.Parallel()
		pod := storagePod("shared",
			shell("main", `while [ ! -e /v/shared/done ]; do sleep 0.05; done; cat /v/shared/text; echo seen > /v/shared/answer`),
			shell("sub", `echo Hello from the sub-container > /v/shared/text; touch /v/shared/done; while [ ! -s /v/shared/answer ]; do sleep 0.05; done; cat /v/shared/answer`))
		withVolume(pod, "shared", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})
		createPod(t, c, ns, pod)
		waitForPod(t, c, ns, "shared", corev1.PodSucceeded)
		if got := logOf(t, c, ns, "shared", "main"); got != "Hello from the sub-container\n" {
			t.Errorf("the main container read %q", got)
		}
		if got := logOf(t, c, ns, "shared", "sub"); got != "seen\n" {
			t.Errorf("the other container read %q", got)
		}
	})
}

// TestManyVolumes mounts several sources side by side, and very many.
func TestManyVolumes(t *testing.T) {
	c, ns := storageGroup(t)
	cm, secret := filedKinds[0], filedKinds[2]
	cm.writeData(t, c, ns, "settings", map[string]string{"data-1": "of the ConfigMap"})
	secret.writeData(t, c, ns, "hidden", map[string]string{"data-1": "of the Secret"})
	shows(t, "[sig-storage] EmptyDir wrapper volumes should not conflict [Conformance]", func(t *testing.T) {
		t.Parallel()
		pod := storagePod("side-by-side", shell("main", listFiles))
		withVolume(pod, "cm", cm.source("settings", nil, nil, nil))
		withVolume(pod, "secret", secret.source("hidden", nil, nil, nil))
		withVolume(pod, "empty", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})
		seen := runToEnd(t, c, ns, pod)["main"]
		wantFiles(t, seen, "cm", map[string]shownFile{"data-1": {"644", "of the ConfigMap"}})
		wantFiles(t, seen, "secret", map[string]shownFile{"data-1": {"644", "of the Secret"}})
	})
	shows(t, "[sig-storage] Projected combined should project all components that make up the projection API [Projection] [Conformance] [NodeConformance]", func(t *testing.T) {
		t.Parallel()
		main := shell("main", listFiles)
		main.Resources = corev1.ResourceRequirements{
			Requests: corev1.ResourceList{"cpu": resource.MustParse("1m"), "memory": resource.MustParse("32Mi")},
			Limits:   corev1.ResourceList{"cpu": resource.MustParse("500m"), "memory": resource.MustParse("64Mi")},
		}
		pod := storagePod("combined", main)
		withVolume(pod, "all", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{fieldFile("podname", "metadata.name"),
				resourceFile("cpu_limit", "main", "limits.cpu", "1m"), resourceFile("cpu_request", "main", "requests.cpu", "1m"),
				resourceFile("memory_limit", "main", "limits.memory", ""), resourceFile("memory_request", "main", "requests.memory", "")}}},
			{Secret: &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "hidden"}, Items: []corev1.KeyToPath{{Key: "data-1", Path: "secret-data"}}}},
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}, Items: []corev1.KeyToPath{{Key: "data-1", Path: "configmap-data"}}}},
		}}})
		wantFiles(t, runToEnd(t, c, ns, pod)["main"], "all", map[string]shownFile{
			"podname": {"644", "combined"}, "secret-data": {"644", "of the Secret"}, "configmap-data": {"644", "of the ConfigMap"},
			"cpu_limit": {"644", "500"}, "cpu_request": {"644", "1"}, "memory_limit": {"644", "67108864"}, "memory_request": {"644", "33554432"},
		})
	})
	shows(t, "[sig-storage] EmptyDir wrapper volumes should not cause race condition when used for configmaps [Conformance] [Serial]", func(t *testing.T) {
		t.Parallel()
		const volumes, replicas = 50, 5
		var template *corev1.Pod
		for i := range volumes {
			cm.writeData(t, c, ns, fmt.Sprintf("racy-%d", i), map[string]string{"data-1": fmt.Sprintf("value-%d", i)})
		}
		for r := range replicas {
			template = storagePod(fmt.Sprintf("racy-%d", r), shell("main", listFiles))
			template.Spec.NodeSelector = map[string]string{corev1.LabelHostname: c.Hosts[1].Name} // all at once on one node
			for i := range volumes {
				withVolume(template, fmt.Sprintf("racy-%d", i), cm.source(fmt.Sprintf("racy-%d", i), nil, nil, nil))
			}
			createPod(t, c, ns, template)
		}
		for r := range replicas {
			name := fmt.Sprintf("racy-%d", r)
			waitForPod(t, c, ns, name, corev1.PodSucceeded)
			seen := shownFiles(t, logOf(t, c, ns, name, "main"))
			for i := range volumes {
				wantFiles(t, seen, fmt.Sprintf("racy-%d", i), map[string]shownFile{"data-1": {"644", fmt.Sprintf("value-%d", i)}})
			}
		}
	})
}

// TestSubPaths mounts single files of volumes that the agent writes, in every
// kind of container of a pod.
func TestSubPaths(t *testing.T) {
	c, ns := storageGroup(t)
	cm, secret := filedKinds[0], filedKinds[2]
	cm.writeData(t, c, ns, "settings", map[string]string{"key": "configmap value", "other": "hidden"})
	secret.writeData(t, c, ns, "hidden", map[string]string{"key": "secret value"})
	projected := corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"},
			Items: []corev1.KeyToPath{{Key: "key", Path: "a/key"}, {Key: "other", Path: "b"}}}},
	}}}
	for _, tt := range []struct {
		title, name string
		source      corev1.VolumeSource
		sub, at     string
		want        string
	}{
		{"configmap pod", "configmap", cm.source("settings", nil, nil, nil), "key", "/v/file", "configmap value"},
		{"configmap pod with mountPath of existing file", "existing", cm.source("settings", nil, nil, nil), "key", "/etc/resolv.conf", "configmap value"},
		{"downward pod", "downward", downwardKinds["Downward API volume"](nil, fieldFile("downward/podname", "metadata.name")), "downward/podname", "/v/file", "downward"},
		{"projected pod", "projected", projected, "a", "/v/folder", "configmap value"},
		{"secret pod", "secret", secret.source("hidden", nil, nil, nil), "key", "/v/file", "secret value"},
	} {
		shows(t, "[sig-storage] Subpath Atomic writer volumes should support subpaths with "+tt.title+" [Conformance]", func(t *testing.T) {
			t.Parallel()
			file := tt.at
			if tt.sub == "a" {
				file += "/key"
			}
			read := "mkdir -p /v; cat " + file + "; find /v -name other -o -name b"
			pod := storagePod(tt.name, shell("one", read), shell("two", read))
			init := shell("before", read)
			init.Image = pod.Spec.Containers[0].Image
			pod.Spec.InitContainers = []corev1.Container{init}
			pod.Spec.Volumes = []corev1.Volume{{Name: "source", VolumeSource: tt.source}}
			mount := []corev1.VolumeMount{{Name: "source", MountPath: tt.at, SubPath: tt.sub}}
			pod.Spec.InitContainers[0].VolumeMounts = mount
			pod.Spec.Containers[0].VolumeMounts, pod.Spec.Containers[1].VolumeMounts = mount, mount
			createPod(t, c, ns, pod)
			waitForPod(t, c, ns, tt.name, corev1.PodSucceeded)
			for _, container := range []string{"before", "one", "two"} {
				if got := logOf(t, c, ns, tt.name, container); strings.TrimSuffix(got, "\n") != tt.want {
					t.Errorf("%s read %q, want %q and nothing else", container, got, tt.want)
				}
			}
		})
	}
}

// TestImmutableData freezes a ConfigMap and a Secret.
func TestImmutableData(t *testing.T) {
	c, ns := storageGroup(t)
	const title = " should be immutable if `immutable` field is set [Conformance]"
	shows(t, "[sig-storage] ConfigMap"+title, func(t *testing.T) {
		maps := c.Client.CoreV1().ConfigMaps(ns)
		made, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "frozen"}, Data: map[string]string{"data-1": "value-1"}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		testImmutable(t, made, maps.Update, maps.Get, maps.Delete,
			func(cm *corev1.ConfigMap, value string) { cm.Data["data-1"] = value },
			func(cm *corev1.ConfigMap, frozen *bool) { cm.Immutable = frozen })
	})
	shows(t, "[sig-storage] Secrets"+title, func(t *testing.T) {
		secrets := c.Client.CoreV1().Secrets(ns)
		made, err := secrets.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "frozen"}, StringData: map[string]string{"data-1": "value-1"}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		testImmutable(t, made, secrets.Update, secrets.Get, secrets.Delete,
			func(s *corev1.Secret, value string) { s.Data["data-1"] = []byte(value) },
			func(s *corev1.Secret, frozen *bool) { s.Immutable = frozen })
	})
}

// testImmutable does what may be done before and after an object is frozen, and
// what may not.
func testImmutable[T interface {
	metav1.Object
	DeepCopyObject() runtime.Object
}](t *testing.T, made T,
	update func(context.Context, T, metav1.UpdateOptions) (T, error),
	get func(context.Context, string, metav1.GetOptions) (T, error),
	remove func(context.Context, string, metav1.DeleteOptions) error,
	setData func(T, string), freeze func(T, *bool)) {
	current := made
	for _, step := range []struct {
		what    string
		change  func(T)
		refused bool
	}{
		{"a change of the data", func(o T) { setData(o, "value-2") }, false},
		{"freezing", func(o T) { freeze(o, new(true)) }, false},
		{"a change of frozen data", func(o T) { setData(o, "value-3") }, true},
		{"thawing", func(o T) { freeze(o, nil) }, true},
		{"thawing by false", func(o T) { freeze(o, new(false)) }, true},
		{"thawing with a change", func(o T) { freeze(o, new(false)); setData(o, "value-3") }, true},
		{"a label", func(o T) { o.SetLabels(map[string]string{"still": "possible"}) }, false},
	} {
		changed := current.DeepCopyObject().(T)
		step.change(changed)
		answer, err := update(t.Context(), changed, metav1.UpdateOptions{})
		switch {
		case step.refused && !apierrors.IsInvalid(err):
			t.Errorf("%s is answered with %v", step.what, err)
		case !step.refused && err != nil:
			t.Fatalf("%s is refused: %v", step.what, err)
		case !step.refused:
			current = answer
		}
		if got, err := get(t.Context(), "frozen", metav1.GetOptions{}); err != nil || !equality.Semantic.DeepEqual(got, current) {
			t.Errorf("after %s there is %+v %v, want %+v", step.what, got, err, current)
		}
	}
	if err := remove(t.Context(), "frozen", metav1.DeleteOptions{}); err != nil {
		t.Errorf("a frozen object cannot be deleted: %v", err)
	}
	if _, err := get(t.Context(), "frozen", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("after its deletion the object is answered with %v", err)
	}
}
