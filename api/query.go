package api

import (
	"fmt"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// decodeQuery reads query parameters into the options of a connection to a pod
// (PodExecOptions and its like). The published types carry the way from options
// to parameters alone, so this is the way back, by the names of their JSON tags.
// Parameters that the options do not have are left out, as Kubernetes does.
func decodeQuery(query url.Values, into any) error {
	v := reflect.ValueOf(into).Elem()
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		values, given := query[name]
		if name == "" || !given || len(values) == 0 {
			continue
		}
		if err := setParameter(v.Field(i), values); err != nil {
			return fmt.Errorf("parameter %s: %w", name, err)
		}
	}
	return nil
}

func setParameter(field reflect.Value, values []string) error {
	if field.Kind() == reflect.Pointer {
		if values[0] == "" {
			return nil
		}
		field.Set(reflect.New(field.Type().Elem()))
		return setParameter(field.Elem(), values)
	}
	switch field.Interface().(type) {
	case metav1.Time:
		at, err := time.Parse(time.RFC3339Nano, values[0])
		if err != nil {
			return fmt.Errorf("%q is not a time as RFC 3339 writes it", values[0])
		}
		field.Set(reflect.ValueOf(metav1.NewTime(at)))
		return nil
	case []string:
		field.Set(reflect.ValueOf(values))
		return nil
	case []int32:
		var ports []int32
		for _, text := range values {
			for one := range strings.SplitSeq(text, ",") {
				n, err := strconv.ParseInt(one, 10, 32)
				if err != nil {
					return fmt.Errorf("%q is not a number", one)
				}
				ports = append(ports, int32(n))
			}
		}
		field.Set(reflect.ValueOf(ports))
		return nil
	}
	switch field.Kind() {
	case reflect.String:
		field.SetString(values[0])
	case reflect.Bool:
		// A parameter without a value means yes; one that is neither true nor
		// false means yes as well (conversion of url.Values in Kubernetes).
		field.SetBool(values[0] != "false" && values[0] != "0")
	case reflect.Int64, reflect.Int32:
		n, err := strconv.ParseInt(values[0], 10, field.Type().Bits())
		if err != nil {
			return fmt.Errorf("%q is not a number", values[0])
		}
		field.SetInt(n)
	default:
		return fmt.Errorf("has a type %s that no parameter has", field.Type())
	}
	return nil
}
