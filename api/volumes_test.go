package api_test

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
	"conclave/api/apitest"
)

func testClaim(namespace, name string, class *string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{"storage": resource.MustParse("1Gi")}},
		},
	}
}

func testVolume(name string, edit ...func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	v := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: corev1.ResourceList{"storage": resource.MustParse("1Gi")}, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/x"}},
		},
	}
	for _, f := range edit {
		f(v)
	}
	return v
}

var (
	claimsGVR  = corev1.SchemeGroupVersion.WithResource("persistentvolumeclaims")
	classesGVR = storagev1.SchemeGroupVersion.WithResource("storageclasses")
)

// The class that a cluster begins with is the users' from then on.
func TestLocalPathIsMadeOnce(t *testing.T) {
	st := newSite(t)
	c, ctx := st.Local(apitest.Admin), t.Context()
	if err := st.EnsureDefaults(ctx); err != nil {
		t.Fatal(err)
	}
	o := must(c.Get(ctx, classesGVR, "", api.LocalPathClass, metav1.GetOptions{}))(t)
	class := o.(*storagev1.StorageClass)
	if class.Provisioner != api.LocalPathProvisioner || !api.Waits(class) || api.DefaultClass([]*storagev1.StorageClass{class}) != class {
		t.Errorf("the class is %+v", class)
	}
	if err := c.Delete(ctx, classesGVR, "", api.LocalPathClass, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := st.EnsureDefaults(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(ctx, classesGVR, "", api.LocalPathClass, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the class that a user deleted is there again: %v", err)
	}
}

func TestClaimAdmission(t *testing.T) {
	st := newSite(t)
	st.namespace("shop")
	c, ctx := st.Local(apitest.Admin), t.Context()
	create := func(claim *corev1.PersistentVolumeClaim) *corev1.PersistentVolumeClaim {
		t.Helper()
		return must(c.Create(ctx, claimsGVR, "shop", "", claim, metav1.CreateOptions{}))(t).(*corev1.PersistentVolumeClaim)
	}
	// Without a default class, the choice stays open.
	if err := c.Delete(ctx, classesGVR, "", api.LocalPathClass, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	if claim := create(testClaim("shop", "early", nil)); claim.Spec.StorageClassName != nil || !slices.Contains(claim.Finalizers, api.FinalizerClaim) {
		t.Errorf("class %v, finalizers %v", claim.Spec.StorageClassName, claim.Finalizers)
	}
	grows := true
	for name, class := range map[string]*storagev1.StorageClass{
		"fixed": {}, "other": {}, "growing": {AllowVolumeExpansion: &grows, ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}}},
	} {
		class.Name, class.Provisioner = name, "a/b"
		must(c.Create(ctx, classesGVR, "", "", class, metav1.CreateOptions{}))(t)
	}
	if claim := create(testClaim("shop", "default", nil)); claim.Spec.StorageClassName == nil || *claim.Spec.StorageClassName != "growing" {
		t.Errorf("class %v", claim.Spec.StorageClassName)
	}
	none, fixed := "", "fixed"
	if claim := create(testClaim("shop", "none", &none)); *claim.Spec.StorageClassName != "" {
		t.Errorf("class %q of a claim that wants none", *claim.Spec.StorageClassName)
	}
	create(testClaim("shop", "fixed", &fixed))
	for name, want := range map[string]string{"default": "", "fixed": "only dynamically provisioned pvc can be resized"} {
		claim := must(c.Get(ctx, claimsGVR, "shop", name, metav1.GetOptions{}))(t).DeepCopyObject().(*corev1.PersistentVolumeClaim)
		claim.Status.Phase, claim.Status.Capacity = corev1.ClaimBound, corev1.ResourceList{"storage": resource.MustParse("1Gi")}
		claim = must(c.Update(ctx, claimsGVR, "shop", claim, metav1.UpdateOptions{}, "status"))(t).DeepCopyObject().(*corev1.PersistentVolumeClaim)
		claim.Spec.Resources.Requests["storage"] = resource.MustParse("2Gi")
		_, err := c.Update(ctx, claimsGVR, "shop", claim, metav1.UpdateOptions{})
		if want == "" && err != nil || want != "" && (!apierrors.IsForbidden(err) || !strings.Contains(err.Error(), want)) {
			t.Errorf("growing %s: %v", name, err)
		}
	}
}

func TestSuits(t *testing.T) {
	for name, tc := range map[string]struct {
		volume func(*corev1.PersistentVolume)
		claim  func(*corev1.PersistentVolumeClaim)
		want   bool
	}{
		"alike":   {want: true},
		"larger":  {volume: func(v *corev1.PersistentVolume) { v.Spec.Capacity["storage"] = resource.MustParse("3Gi") }, want: true},
		"smaller": {volume: func(v *corev1.PersistentVolume) { v.Spec.Capacity["storage"] = resource.MustParse("1M") }},
		"class":   {volume: func(v *corev1.PersistentVolume) { v.Spec.StorageClassName = "fast" }},
		"access":  {claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes[0] = corev1.ReadWriteMany }},
		"block":   {claim: func(c *corev1.PersistentVolumeClaim) { m := corev1.PersistentVolumeBlock; c.Spec.VolumeMode = &m }},
		"labels": {claim: func(c *corev1.PersistentVolumeClaim) {
			c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
		}},
		"these labels": {claim: func(c *corev1.PersistentVolumeClaim) {
			c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
		}, volume: func(v *corev1.PersistentVolume) { v.Labels = map[string]string{"a": "b"} }, want: true},
	} {
		v, c := testVolume("v"), testClaim("default", "c", nil)
		if tc.volume != nil {
			tc.volume(v)
		}
		if tc.claim != nil {
			tc.claim(c)
		}
		if got := api.Suits(v, c); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
