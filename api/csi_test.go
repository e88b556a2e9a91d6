package api_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
)

// A node may do for its pods' volumes what mounting them needs, and nothing of
// other nodes'.
func TestNodeAndDrivers(t *testing.T) {
	st := newSite(t)
	st.namespace("shop")
	st.namespace("drivers")
	cs, ctx := st.clientset(""), t.Context()
	pod := testPod("p")
	pod.Spec.NodeName = "n1"
	pod.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
	must(cs.CoreV1().Pods("shop").Create(ctx, pod, metav1.CreateOptions{}))(t)
	none := ""
	must(cs.CoreV1().PersistentVolumeClaims("shop").Create(ctx, testClaim("shop", "data", &none), metav1.CreateOptions{}))(t)
	must(cs.CoreV1().PersistentVolumes().Create(ctx, &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "v"},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: corev1.ResourceList{"storage": resource.MustParse("1Gi")}, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			ClaimRef: &corev1.ObjectReference{Namespace: "shop", Name: "data"},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: "d.test", VolumeHandle: "h", NodeStageSecretRef: &corev1.SecretReference{Namespace: "drivers", Name: "staging"},
				ControllerPublishSecretRef: &corev1.SecretReference{Namespace: "drivers", Name: "attaching"},
			}},
		},
	}, metav1.CreateOptions{}))(t)
	for _, name := range []string{"staging", "attaching"} {
		must(cs.CoreV1().Secrets("drivers").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}))(t)
	}
	volume := "v"
	must(cs.StorageV1().VolumeAttachments().Create(ctx, &storagev1.VolumeAttachment{
		ObjectMeta: metav1.ObjectMeta{Name: "a"},
		Spec:       storagev1.VolumeAttachmentSpec{Attacher: "d.test", NodeName: "n1", Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &volume}},
	}, metav1.CreateOptions{}))(t)

	const (
		storage  = "/apis/storage.k8s.io/v1/"
		claim    = "/api/v1/namespaces/shop/persistentvolumeclaims/data"
		attached = storage + "volumeattachments"
		drivers  = `{"apiVersion":"storage.k8s.io/v1","kind":"CSINode","metadata":{"name":"n1"},"spec":{"drivers":[]}}`
	)
	if a := st.request(st.transport("system:node:n1", "system:nodes"), "POST", storage+"csinodes", drivers); a.code != 201 {
		t.Errorf("its own CSINode: %d %s", a.code, a.body)
	}
	if a := st.request(st.transport("system:node:n2", "system:nodes"), "POST", storage+"csinodes", drivers); a.code != 403 {
		t.Errorf("another's CSINode: %d %s", a.code, a.body)
	}
	for _, tc := range []struct {
		what, method, path, body string
		mine, other              int // what the pod's node is answered, and another
	}{
		{"its attachment", "GET", attached + "/a", "", 200, 403},
		{"its attachment, followed", "GET", attached + "?fieldSelector=metadata.name%3Da", "", 200, 403},
		{"all attachments", "GET", attached, "", 403, 403},
		{"attaching", "DELETE", attached + "/a", "", 403, 403},
		{"a driver", "GET", storage + "csidrivers?fieldSelector=metadata.name%3Dd.test", "", 200, 200},
		{"the secret to stage with", "GET", "/api/v1/namespaces/drivers/secrets/staging", "", 200, 403},
		{"the secret to attach with", "GET", "/api/v1/namespaces/drivers/secrets/attaching", "", 403, 403},
		{"all secrets there", "GET", "/api/v1/namespaces/drivers/secrets", "", 403, 403},
		{"the size of a claim", "PATCH", claim + "/status", `{"status":{"capacity":{"storage":"2Gi"}}}`, 200, 403},
		{"the phase of a claim", "PATCH", claim + "/status", `{"status":{"phase":"Lost"}}`, 403, 403},
		{"a claim", "PATCH", claim, `{"metadata":{"labels":{"a":"b"}}}`, 403, 403},
		{"the other's CSINode", "GET", storage + "csinodes/n1", "", 200, 403},
	} {
		headers := []string{}
		if tc.method == "PATCH" {
			headers = []string{"Content-Type", "application/merge-patch+json"}
		}
		for node, want := range map[string]int{"n1": tc.mine, "n2": tc.other} {
			if a := st.request(st.transport("system:node:"+node, "system:nodes"), tc.method, tc.path, tc.body, headers...); a.code != want {
				t.Errorf("%s: node %s is answered %d, want %d: %s", tc.what, node, a.code, want, a.body)
			}
		}
	}
	if got := api.AttachmentName("h", "d", "n"); got != "csi-"+api.VolumeDigest("hdn") || len(got) != 68 {
		t.Errorf("an attachment is called %s", got)
	}
}
