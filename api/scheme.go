package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"

	"conclave/api/kinds"
	"conclave/api/types"
)

// Scheme returns the types that Conclave speaks: the groups that it serves or
// will, the reviews, and the meta types. It is built once and read-only.
func Scheme() *runtime.Scheme { return builtScheme() }

var builtScheme = sync.OnceValue(func() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, appsv1.AddToScheme, batchv1.AddToScheme, autoscalingv1.AddToScheme,
		coordinationv1.AddToScheme, discoveryv1.AddToScheme, eventsv1.AddToScheme,
		networkingv1.AddToScheme, nodev1.AddToScheme, policyv1.AddToScheme, rbacv1.AddToScheme,
		schedulingv1.AddToScheme, storagev1.AddToScheme, resourcev1.AddToScheme,
		authenticationv1.AddToScheme, authorizationv1.AddToScheme, apiextensionsv1.AddToScheme, types.AddToScheme,
		snapshotv1.AddToScheme, kinds.AddAutoscalerConversions,
		metav1.AddMetaToScheme,
	} {
		utilruntime.Must(add(s))
	}
	// Some clients send options in the meta group, others in the core.
	metav1.AddToGroupVersion(s, metav1.SchemeGroupVersion)
	return s
})

var protobufCodec = sync.OnceValue(func() *protobuf.Serializer {
	return protobuf.NewSerializer(Scheme(), Scheme())
})

// GVROf returns the resource of an object or list of a registered type, by the
// rule that names nearly all of Kubernetes' resources; it is empty for a type
// that the scheme does not know.
func GVROf(obj runtime.Object) schema.GroupVersionResource {
	gvk, err := kindOf(obj)
	if err != nil {
		return schema.GroupVersionResource{}
	}
	if meta.IsListType(obj) && len(gvk.Kind) > len("List") {
		gvk.Kind = gvk.Kind[:len(gvk.Kind)-len("List")]
	}
	if gvk.Kind == "Endpoints" {
		return gvk.GroupVersion().WithResource("endpoints")
	}
	plural, _ := meta.UnsafeGuessKindToResource(gvk)
	return plural
}

// kindOf is the GroupVersionKind of an object: what the scheme says of its
// type, or what it says of itself where the scheme does not know it.
func kindOf(obj runtime.Object) (schema.GroupVersionKind, error) {
	if u, ok := obj.(runtime.Unstructured); ok {
		return u.GetObjectKind().GroupVersionKind(), nil
	}
	kinds, _, err := Scheme().ObjectKinds(obj)
	if err != nil {
		return schema.GroupVersionKind{}, fmt.Errorf("kind of %T: %w", obj, err)
	}
	return kinds[0], nil
}

// setKind writes its kind into an object that this code owns.
func setKind(obj runtime.Object) error {
	gvk, err := kindOf(obj)
	if err != nil {
		return err
	}
	obj.GetObjectKind().SetGroupVersionKind(gvk)
	return nil
}

// EncodeStored returns the form in which the log and the snapshots keep an
// object: Kubernetes' protobuf envelope for registered types that have a form in
// protobuf, JSON for all others. The resourceVersion is not part of it: it is the position in the log.
func EncodeStored(obj Object) ([]byte, error) {
	if s, ok := obj.(*stranger); ok {
		return s.stored, nil
	}
	if obj.GetResourceVersion() != "" {
		obj = obj.DeepCopyObject().(Object)
		obj.SetResourceVersion("")
	}
	if u, ok := obj.(*unstructured.Unstructured); ok {
		return u.MarshalJSON()
	}
	if obj.GetObjectKind().GroupVersionKind().Empty() {
		obj = obj.DeepCopyObject().(Object)
		if err := setKind(obj); err != nil {
			return nil, err
		}
	}
	if !inProtobuf(obj) {
		data, err := json.Marshal(obj)
		if err != nil {
			return nil, fmt.Errorf("encode %T for the store: %w", obj, err)
		}
		return data, nil
	}
	var b bytes.Buffer
	if err := protobufCodec().Encode(obj, &b); err != nil {
		return nil, fmt.Errorf("encode %T for the store: %w", obj, err)
	}
	return b.Bytes(), nil
}

// DecodeStored reads what EncodeStored wrote. The object carries its kind, which
// may be one that a newer server wrote and this one does not know.
func DecodeStored(data []byte) (Object, error) {
	if len(data) > 0 && data[0] == '{' {
		if obj, err := typedOf(data); obj != nil || err != nil {
			return obj, err
		}
		u := &unstructured.Unstructured{}
		if err := u.UnmarshalJSON(data); err != nil {
			return nil, fmt.Errorf("decode stored object: %w", err)
		}
		return u, nil
	}
	obj, gvk, err := protobufCodec().Decode(data, nil, nil)
	if runtime.IsNotRegisteredError(err) {
		return strangerOf(data)
	}
	if err != nil {
		return nil, fmt.Errorf("decode stored object: %w", err)
	}
	o, ok := obj.(Object)
	if !ok {
		return nil, errors.New("decode stored object: " + gvk.String() + " has no metadata")
	}
	o.GetObjectKind().SetGroupVersionKind(*gvk)
	shareFields(o)
	if set, ok := o.(*appsv1.StatefulSet); ok {
		kinds.TypeClaimTemplates(set)
	}
	return o, nil
}

// inProtobuf says whether objects of a type have a form in protobuf. Those that
// come from a project beside Kubernetes, where they are custom resources, have
// none.
func inProtobuf(obj runtime.Object) bool {
	_, ok := obj.(interface{ Marshal() ([]byte, error) })
	return ok
}

// typedOf reads an object of a registered type that is stored as JSON; nil if
// what is stored is of another kind.
func typedOf(data []byte) (Object, error) {
	var is metav1.TypeMeta
	if err := json.Unmarshal(data, &is); err != nil {
		return nil, fmt.Errorf("decode stored object: %w", err)
	}
	gvk := is.GroupVersionKind()
	if !Scheme().Recognizes(gvk) {
		return nil, nil
	}
	empty, err := Scheme().New(gvk)
	if err != nil {
		return nil, fmt.Errorf("decode stored object: %w", err)
	}
	obj, ok := empty.(Object)
	if !ok || inProtobuf(obj) {
		return nil, nil
	}
	if err := json.Unmarshal(data, obj); err != nil {
		return nil, fmt.Errorf("decode stored object: %w", err)
	}
	return obj, nil
}
