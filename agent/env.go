package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"sort"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// expand replaces $(NAME) by lookup's answer, leaves what it does not know, and
// makes $$ a dollar sign that starts nothing.
func expand(s string, lookup func(string) (string, bool)) string {
	if !strings.Contains(s, "$") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(s[i:], ')')
			if end < 0 {
				b.WriteString("$(")
				i++
				continue
			}
			name := s[i+2 : i+end]
			if v, ok := lookup(name); ok {
				b.WriteString(v)
			} else {
				b.WriteString(s[i : i+end+1])
			}
			i += end
		default:
			b.WriteByte('$')
		}
	}
	return b.String()
}

func lookupIn(m map[string]string) func(string) (string, bool) {
	return func(k string) (string, bool) { v, ok := m[k]; return v, ok }
}

// sources is where a container's environment and a pod's volumes take their
// values from.
type sources struct {
	podIPs, hostIPs []string
	allocatable     corev1.ResourceList
	configMap       func(name string) (*corev1.ConfigMap, error) // nil, nil: there is none
	secret          func(name string) (*corev1.Secret, error)
	services        map[string]string                                    // variables of the services that the pod may see
	file            func(volume, path string) (map[string]string, error) // variables in a file of one of the pod's volumes
	running         func(container string) (id string)                   // of the runtime; empty: it does not run
}

// configError is a container that cannot be created from its specification as
// things are: waiting reason CreateContainerConfigError.
type configError struct{ msg string }

func (e configError) Error() string { return e.msg }

// environment is the container's environment: services', then envFrom's, then
// env's, each able to refer to what came before it. skipped are the keys of
// envFrom that are no names of variables.
func environment(pod *corev1.Pod, c *corev1.Container, src sources) (list []string, values map[string]string, skipped []string, err error) {
	values = map[string]string{}
	var order []string
	set := func(k, v string) {
		if _, ok := values[k]; !ok {
			order = append(order, k)
		}
		values[k] = v
	}
	for _, k := range sortedKeys(src.services) {
		set(k, src.services[k])
	}
	for _, from := range c.EnvFrom {
		data, err := envFromData(pod, from, src)
		if err != nil {
			return nil, nil, nil, err
		}
		for _, k := range sortedKeys(data) {
			name := from.Prefix + k
			if !validEnvName(name) {
				skipped = append(skipped, name)
				continue
			}
			set(name, data[k])
		}
	}
	for i := range c.Env {
		e := &c.Env[i]
		v := expand(e.Value, lookupIn(values))
		if e.Value == "" && e.ValueFrom != nil {
			var ok bool
			if v, ok, err = envValueFrom(pod, c, e.ValueFrom, src); err != nil {
				return nil, nil, nil, err
			} else if !ok {
				continue // an optional source that does not exist
			}
		}
		set(e.Name, v)
	}
	for _, k := range order {
		list = append(list, k+"="+values[k])
	}
	return list, values, skipped, nil
}

func envFromData(pod *corev1.Pod, from corev1.EnvFromSource, src sources) (map[string]string, error) {
	data := map[string]string{}
	switch {
	case from.ConfigMapRef != nil:
		cm, err := src.configMap(from.ConfigMapRef.Name)
		if err != nil {
			return nil, err
		}
		if cm == nil {
			if isTrue(from.ConfigMapRef.Optional) {
				return nil, nil
			}
			return nil, configError{fmt.Sprintf("configmap %q not found", from.ConfigMapRef.Name)}
		}
		return cm.Data, nil
	case from.SecretRef != nil:
		s, err := src.secret(from.SecretRef.Name)
		if err != nil {
			return nil, err
		}
		if s == nil {
			if isTrue(from.SecretRef.Optional) {
				return nil, nil
			}
			return nil, configError{fmt.Sprintf("secret %q not found", from.SecretRef.Name)}
		}
		for k, v := range s.Data {
			data[k] = string(v)
		}
	}
	return data, nil
}

func envValueFrom(pod *corev1.Pod, c *corev1.Container, from *corev1.EnvVarSource, src sources) (string, bool, error) {
	switch {
	case from.FieldRef != nil:
		v, err := fieldValue(pod, from.FieldRef.FieldPath, src)
		return v, true, err
	case from.ResourceFieldRef != nil:
		target := c
		if n := from.ResourceFieldRef.ContainerName; n != "" {
			if target = containerNamed(pod, n); target == nil {
				return "", false, configError{fmt.Sprintf("container %q not found in pod %q", n, pod.Name)}
			}
		}
		v, ok := resourceValue(pod, target, from.ResourceFieldRef, src.allocatable)
		if !ok {
			return "", false, configError{"unsupported container resource: " + from.ResourceFieldRef.Resource}
		}
		return v, true, nil
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		cm, err := src.configMap(ref.Name)
		if err != nil {
			return "", false, err
		}
		if cm == nil {
			return "", false, missing(ref.Optional, "configmap %q not found", ref.Name)
		}
		if v, ok := cm.Data[ref.Key]; ok {
			return v, true, nil
		}
		return "", false, missing(ref.Optional, "couldn't find key %v in ConfigMap %v/%v", ref.Key, pod.Namespace, ref.Name)
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		s, err := src.secret(ref.Name)
		if err != nil {
			return "", false, err
		}
		if s == nil {
			return "", false, missing(ref.Optional, "secret %q not found", ref.Name)
		}
		if v, ok := s.Data[ref.Key]; ok {
			return string(v), true, nil
		}
		return "", false, missing(ref.Optional, "couldn't find key %v in Secret %v/%v", ref.Key, pod.Namespace, ref.Name)
	case from.FileKeyRef != nil:
		ref := from.FileKeyRef
		vars, err := src.file(ref.VolumeName, ref.Path)
		if errors.Is(err, fs.ErrNotExist) {
			return "", false, missing(ref.Optional, "file %q not found in volume %q", ref.Path, ref.VolumeName)
		}
		if err != nil {
			return "", false, configError{fmt.Sprintf("couldn't parse env file %q of volume %q: %v", ref.Path, ref.VolumeName, err)}
		}
		if v, ok := vars[ref.Key]; ok {
			return v, true, nil
		}
		return "", false, missing(ref.Optional, "environment variable key %q not found in file %q", ref.Key, ref.Path)
	}
	return "", true, nil
}

// missing is nil for what may be absent.
func missing(optional *bool, format string, args ...any) error {
	if isTrue(optional) {
		return nil
	}
	return configError{fmt.Sprintf(format, args...)}
}

// errNoPodIP says that a field is not known before the pod has its network.
var errNoPodIP = errors.New("the pod has no address yet")

// fieldValue is what a fieldRef names.
func fieldValue(pod *corev1.Pod, path string, src sources) (string, error) {
	if name, key, ok := subscript(path); ok {
		switch name {
		case "metadata.labels":
			return pod.Labels[key], nil
		case "metadata.annotations":
			return pod.Annotations[key], nil
		}
		return "", configError{"unsupported fieldPath: " + path}
	}
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "metadata.labels":
		return formatMap(pod.Labels), nil
	case "metadata.annotations":
		return formatMap(pod.Annotations), nil
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return first(src.hostIPs), nil
	case "status.hostIPs":
		return strings.Join(src.hostIPs, ","), nil
	case "status.podIP", "status.podIPs":
		if len(src.podIPs) == 0 {
			return "", errNoPodIP
		}
		if path == "status.podIP" {
			return src.podIPs[0], nil
		}
		return strings.Join(src.podIPs, ","), nil
	}
	return "", configError{"unsupported fieldPath: " + path}
}

// subscript takes metadata.labels['key'] apart.
func subscript(path string) (name, key string, ok bool) {
	if name, key, ok = strings.Cut(path, "['"); !ok {
		return "", "", false
	}
	if key, ok = strings.CutSuffix(key, "']"); !ok {
		return "", "", false
	}
	return name, key, true
}

// formatMap is a map as downward API files show it: key="value", a line each.
func formatMap(m map[string]string) string {
	lines := make([]string, 0, len(m))
	for _, k := range sortedKeys(m) {
		lines = append(lines, k+"="+strconv.Quote(m[k]))
	}
	return strings.Join(lines, "\n")
}

// validEnvName accepts what Kubernetes' relaxed rule accepts.
func validEnvName(s string) bool {
	if s == "" {
		return false
	}
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 || s[i] > 0x7e || s[i] == '=' {
			return false
		}
	}
	return true
}

// serviceVariables are what a pod is told of a service: the name_SERVICE_*
// variables and the older ones that Docker's links made customary.
func serviceVariables(s *corev1.Service) map[string]string {
	if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone || len(s.Spec.Ports) == 0 {
		return nil
	}
	vars := map[string]string{}
	prefix := envPrefix(s.Name)
	vars[prefix+"_SERVICE_HOST"] = s.Spec.ClusterIP
	vars[prefix+"_SERVICE_PORT"] = strconv.Itoa(int(s.Spec.Ports[0].Port))
	for i, p := range s.Spec.Ports {
		port := strconv.Itoa(int(p.Port))
		if p.Name != "" {
			vars[prefix+"_SERVICE_PORT_"+envPrefix(p.Name)] = port
		}
		protocol := string(p.Protocol)
		if protocol == "" {
			protocol = string(corev1.ProtocolTCP)
		}
		link := fmt.Sprintf("%s_PORT_%s_%s", prefix, port, strings.ToUpper(protocol))
		url := strings.ToLower(protocol) + "://" + net.JoinHostPort(s.Spec.ClusterIP, port)
		if i == 0 {
			vars[prefix+"_PORT"] = url
		}
		vars[link] = url
		vars[link+"_PROTO"] = strings.ToLower(protocol)
		vars[link+"_PORT"] = port
		vars[link+"_ADDR"] = s.Spec.ClusterIP
	}
	return vars
}

func envPrefix(name string) string {
	return strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

func isTrue(b *bool) bool { return b != nil && *b }

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}
