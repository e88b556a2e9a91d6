package api

import (
	"context"
	"fmt"
	"reflect"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// resourceOf is the resource of a pointer type such as *corev1.Pod.
func resourceOf[T Object]() (schema.GroupVersionResource, error) {
	t := reflect.TypeFor[T]()
	if t.Kind() != reflect.Pointer {
		return schema.GroupVersionResource{}, fmt.Errorf("%v is not a pointer to an API type", t)
	}
	r := GVROf(reflect.New(t.Elem()).Interface().(Object))
	if r.Empty() {
		return r, fmt.Errorf("%v is not a registered API type", t)
	}
	return r, nil
}

// GetAs reads one object of the resource that T is the type of.
func GetAs[T Object](ctx context.Context, c Client, namespace, name string) (T, error) {
	var none T
	r, err := resourceOf[T]()
	if err != nil {
		return none, err
	}
	obj, err := c.Get(ctx, r, namespace, name, metav1.GetOptions{})
	if err != nil {
		return none, err
	}
	return as[T](obj)
}

// ListAs reads the objects of the resource that T is the type of.
func ListAs[T Object](ctx context.Context, c Client, namespace string, o metav1.ListOptions) ([]T, error) {
	r, err := resourceOf[T]()
	if err != nil {
		return nil, err
	}
	objects, _, err := c.List(ctx, r, namespace, o)
	if err != nil {
		return nil, err
	}
	typed := make([]T, len(objects))
	for i, obj := range objects {
		if typed[i], err = as[T](obj); err != nil {
			return nil, err
		}
	}
	return typed, nil
}

func as[T Object](obj Object) (T, error) {
	t, ok := obj.(T)
	if !ok {
		return t, fmt.Errorf("the server answered with a %T, not with a %T", obj, t)
	}
	return t, nil
}
