package kinds

import (
	"fmt"
	"iter"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// containerScope is what a container may refer to in its pod.
type containerScope struct {
	spec    *corev1.PodSpec
	volumes map[string]corev1.VolumeSource
	claims  map[string]bool
	grace   int64
}

// containersOf iterates over the containers of a pod with their paths, in the
// order in which validation speaks of them.
func containersOf(p *field.Path, spec *corev1.PodSpec) iter.Seq2[*field.Path, *corev1.Container] {
	return func(yield func(*field.Path, *corev1.Container) bool) {
		for i := range spec.Containers {
			if !yield(p.Child("containers").Index(i), &spec.Containers[i]) {
				return
			}
		}
		for i := range spec.InitContainers {
			if !yield(p.Child("initContainers").Index(i), &spec.InitContainers[i]) {
				return
			}
		}
		for i := range spec.EphemeralContainers {
			if !yield(p.Child("ephemeralContainers").Index(i), asContainer(&spec.EphemeralContainers[i])) {
				return
			}
		}
	}
}

func (e *problems) containers(p *field.Path, spec *corev1.PodSpec, scope containerScope) {
	names := map[string]bool{}
	name := func(at *field.Path, name string) {
		if !e.nonEmpty(at.Child("name"), name) {
			return
		}
		e.dnsLabel(at.Child("name"), name)
		if names[name] {
			e.duplicate(at.Child("name"), name)
		}
		names[name] = true
	}

	if len(spec.Containers) == 0 {
		e.required(p.Child("containers"), "")
	}
	for i := range spec.Containers {
		c, at := &spec.Containers[i], p.Child("containers").Index(i)
		name(at, c.Name)
		e.container(at, c, scope)
		e.restartPolicy(at, c, false)
		e.lifecycleAndProbes(at, c, scope)
	}
	e.hostPorts(p.Child("containers"), spec.Containers)

	for i := range spec.InitContainers {
		c, at := &spec.InitContainers[i], p.Child("initContainers").Index(i)
		name(at, c.Name)
		e.container(at, c, scope)
		e.restartPolicy(at, c, true)
		if isSidecar(c) {
			e.lifecycleAndProbes(at, c, scope)
			continue
		}
		for _, no := range []struct {
			field string
			set   bool
		}{
			{"lifecycle", c.Lifecycle != nil}, {"livenessProbe", c.LivenessProbe != nil},
			{"readinessProbe", c.ReadinessProbe != nil}, {"startupProbe", c.StartupProbe != nil},
		} {
			if no.set {
				e.forbidden(at.Child(no.field), "may not be set for init containers without restartPolicy=Always")
			}
		}
	}
	e.hostPorts(p.Child("initContainers"), spec.InitContainers)

	for i := range spec.EphemeralContainers {
		c, at := asContainer(&spec.EphemeralContainers[i]), p.Child("ephemeralContainers").Index(i)
		name(at, c.Name)
		e.container(at, c, scope)
		if target := spec.EphemeralContainers[i].TargetContainerName; target != "" &&
			!slices.ContainsFunc(slices.Concat(spec.Containers, spec.InitContainers), func(c corev1.Container) bool { return c.Name == target }) {
			e.add(field.NotFound(at.Child("targetContainerName"), target))
		}
		for _, no := range []struct {
			field string
			set   bool
		}{
			{"ports", len(c.Ports) > 0}, {"livenessProbe", c.LivenessProbe != nil}, {"readinessProbe", c.ReadinessProbe != nil},
			{"startupProbe", c.StartupProbe != nil}, {"lifecycle", c.Lifecycle != nil},
			{"resources", len(c.Resources.Limits)+len(c.Resources.Requests)+len(c.Resources.Claims) > 0},
			{"resizePolicy", len(c.ResizePolicy) > 0}, {"restartPolicy", c.RestartPolicy != nil},
		} {
			if no.set {
				e.forbidden(at.Child(no.field), "cannot be set for an Ephemeral Container")
			}
		}
		for j, m := range c.VolumeMounts {
			if m.SubPath != "" {
				e.forbidden(at.Child("volumeMounts").Index(j).Child("subPath"), "cannot be set for an Ephemeral Container")
			}
			if m.SubPathExpr != "" {
				e.forbidden(at.Child("volumeMounts").Index(j).Child("subPathExpr"), "cannot be set for an Ephemeral Container")
			}
		}
	}
}

func isSidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// hostPorts refuses two claims to one port of the node. Init containers run
// one after the other, but their ports are taken all the same.
func (e *problems) hostPorts(p *field.Path, containers []corev1.Container) {
	taken := map[string]bool{}
	for i, c := range containers {
		for j, port := range c.Ports {
			if port.HostPort == 0 {
				continue
			}
			key := fmt.Sprintf("%s/%s/%d", port.Protocol, port.HostIP, port.HostPort)
			if taken[key] {
				e.duplicate(p.Index(i).Child("ports").Index(j).Child("hostPort"), key)
			}
			taken[key] = true
		}
	}
}

// container is what holds for all three kinds of containers.
func (e *problems) container(p *field.Path, c *corev1.Container, scope containerScope) {
	if c.Image == "" {
		e.required(p.Child("image"), "")
	} else if strings.TrimSpace(c.Image) != c.Image {
		e.invalid(p.Child("image"), c.Image, "must not have leading or trailing whitespace")
	}
	oneOf(e, p.Child("terminationMessagePolicy"), c.TerminationMessagePolicy, corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)
	oneOf(e, p.Child("imagePullPolicy"), c.ImagePullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
	e.containerPorts(p.Child("ports"), c.Ports)
	e.env(p.Child("env"), c.Env, scope)
	e.envFrom(p.Child("envFrom"), c.EnvFrom)
	e.mounts(p, c, scope)
	e.devices(p.Child("volumeDevices"), c, scope)
	e.requirements(p.Child("resources"), &c.Resources, scope.claims)
	for i, r := range c.ResizePolicy {
		at := p.Child("resizePolicy").Index(i)
		oneOf(e, at.Child("resourceName"), r.ResourceName, corev1.ResourceCPU, corev1.ResourceMemory)
		oneOf(e, at.Child("restartPolicy"), r.RestartPolicy, corev1.NotRequired, corev1.RestartContainer)
		if scope.spec != nil && scope.spec.RestartPolicy == corev1.RestartPolicyNever && r.RestartPolicy != corev1.NotRequired && !isSidecar(c) {
			e.invalid(at, r.RestartPolicy, "must be 'NotRequired' when `restartPolicy` is 'Never'")
		}
		if slices.ContainsFunc(c.ResizePolicy[:i], func(o corev1.ContainerResizePolicy) bool { return o.ResourceName == r.ResourceName }) {
			e.duplicate(at, r.ResourceName)
		}
	}
	e.containerSecurity(p.Child("securityContext"), c.SecurityContext, scope.spec)
}

// restartPolicy is of a container that wants another than its pod.
func (e *problems) restartPolicy(p *field.Path, c *corev1.Container, initial bool) {
	if c.RestartPolicy != nil {
		oneOf(e, p.Child("restartPolicy"), *c.RestartPolicy, corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicyNever, corev1.ContainerRestartPolicyOnFailure)
	}
	if len(c.RestartPolicyRules) == 0 {
		return
	}
	at := p.Child("restartPolicyRules")
	if c.RestartPolicy == nil {
		e.required(p.Child("restartPolicy"), "must specify restartPolicy when restart rules are used")
	}
	if initial && isSidecar(c) {
		e.forbidden(at, "restartPolicyRules are not allowed for sidecar containers")
	}
	if len(c.RestartPolicyRules) > 20 {
		e.add(field.TooMany(at, len(c.RestartPolicyRules), 20))
	}
	for i, r := range c.RestartPolicyRules {
		oneOf(e, at.Index(i).Child("action"), r.Action, corev1.ContainerRestartRuleActionRestart, corev1.ContainerRestartRuleActionRestartAllContainers)
		if r.ExitCodes == nil {
			e.required(at.Index(i).Child("exitCodes"), "must be specified")
			continue
		}
		codes := at.Index(i).Child("exitCodes")
		oneOf(e, codes.Child("operator"), r.ExitCodes.Operator, corev1.ContainerRestartRuleOnExitCodesOpIn, corev1.ContainerRestartRuleOnExitCodesOpNotIn)
		if len(r.ExitCodes.Values) > 255 {
			e.add(field.TooMany(codes.Child("values"), len(r.ExitCodes.Values), 255))
		}
	}
}

func (e *problems) containerPorts(p *field.Path, ports []corev1.ContainerPort) {
	names := map[string]bool{}
	for i, port := range ports {
		at := p.Index(i)
		if port.Name != "" {
			if messages := validation.IsValidPortName(port.Name); len(messages) > 0 {
				e.each(at.Child("name"), port.Name, messages)
			} else if names[port.Name] {
				e.duplicate(at.Child("name"), port.Name)
			} else {
				names[port.Name] = true
			}
		}
		if port.ContainerPort == 0 {
			e.required(at.Child("containerPort"), "")
		} else {
			e.port(at.Child("containerPort"), port.ContainerPort)
		}
		if port.HostPort != 0 {
			e.port(at.Child("hostPort"), port.HostPort)
		}
		oneOf(e, at.Child("protocol"), port.Protocol, corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)
		if port.HostIP != "" {
			e.ip(at.Child("hostIP"), port.HostIP)
		}
	}
}

func (e *problems) env(p *field.Path, vars []corev1.EnvVar, scope containerScope) {
	for i, v := range vars {
		at := p.Index(i)
		if e.nonEmpty(at.Child("name"), v.Name) {
			e.each(at.Child("name"), v.Name, validation.IsRelaxedEnvVarName(v.Name))
		}
		if v.ValueFrom != nil {
			e.envSource(at.Child("valueFrom"), v, scope)
		}
	}
}

// What an environment variable and a file may say of their pod.
var (
	envFields = []string{
		"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName",
		"status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs",
	}
	fileFields = []string{"metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"}
	// downwardFields are all that have a name at all.
	downwardFields = slices.Concat(envFields, []string{
		"metadata.annotations", "metadata.labels", "spec.restartPolicy", "spec.schedulerName", "status.phase",
	})
	resourceFields = []string{
		"limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory",
	}
)

func (e *problems) envSource(p *field.Path, v corev1.EnvVar, scope containerScope) {
	from, sources := v.ValueFrom, 0
	if r := from.FieldRef; r != nil {
		sources++
		e.fieldRef(p.Child("fieldRef"), r, envFields)
	}
	if r := from.ResourceFieldRef; r != nil {
		sources++
		e.resourceFieldRef(p.Child("resourceFieldRef"), r, false)
	}
	if r := from.ConfigMapKeyRef; r != nil {
		sources++
		e.keyRef(p.Child("configMapKeyRef"), r.Name, r.Key)
	}
	if r := from.SecretKeyRef; r != nil {
		sources++
		e.keyRef(p.Child("secretKeyRef"), r.Name, r.Key)
	}
	if r := from.FileKeyRef; r != nil {
		sources++
		at := p.Child("fileKeyRef")
		if e.nonEmpty(at.Child("key"), r.Key) {
			e.each(at.Child("key"), r.Key, validation.IsRelaxedEnvVarName(r.Key))
		}
		if e.nonEmpty(at.Child("path"), r.Path) {
			e.localFile(at.Child("path"), r.Path)
		}
		if e.nonEmpty(at.Child("volumeName"), r.VolumeName) {
			if source, ok := scope.volumes[r.VolumeName]; !ok {
				e.add(field.NotFound(at.Child("volumeName"), r.VolumeName))
			} else if source.EmptyDir == nil {
				e.invalid(at.Child("volumeName"), r.VolumeName, "referenced volume must be of type emptyDir")
			}
		}
	}
	switch {
	case sources == 0:
		e.invalid(p, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`")
	case v.Value != "":
		e.invalid(p, "", "may not be specified when `value` is not empty")
	case sources > 1:
		e.invalid(p, "", "may not have more than one field specified at a time")
	}
}

func (e *problems) keyRef(p *field.Path, name, key string) {
	e.nonEmpty(p.Child("name"), name)
	if e.nonEmpty(p.Child("key"), key) {
		e.each(p.Child("key"), key, validation.IsConfigMapKey(key))
	}
}

// subscript splits "metadata.labels['key']".
func subscript(fieldPath string) (name, key string, ok bool) {
	rest, ok := strings.CutSuffix(fieldPath, "']")
	if !ok {
		return fieldPath, "", false
	}
	name, key, ok = strings.Cut(rest, "['")
	if !ok || name == "" {
		return fieldPath, "", false
	}
	return name, key, true
}

func (e *problems) fieldRef(p *field.Path, r *corev1.ObjectFieldSelector, allowed []string) {
	if !e.nonEmpty(p.Child("apiVersion"), r.APIVersion) || !e.nonEmpty(p.Child("fieldPath"), r.FieldPath) {
		return
	}
	at := p.Child("fieldPath")
	if name, key, ok := subscript(r.FieldPath); ok {
		switch name {
		case "metadata.annotations":
			e.each(at, key, validation.IsQualifiedName(strings.ToLower(key)))
		case "metadata.labels":
			e.each(at, key, validation.IsQualifiedName(key))
		default:
			e.invalid(at, name, "does not support subscript")
		}
		return
	}
	switch {
	case r.APIVersion != "v1":
		e.invalid(at, r.FieldPath, fmt.Sprintf("error converting fieldPath: unsupported pod version: %s", r.APIVersion))
	case !slices.Contains(downwardFields, r.FieldPath):
		e.invalid(at, r.FieldPath, fmt.Sprintf("error converting fieldPath: field label not supported: %s", r.FieldPath))
	case !slices.Contains(allowed, r.FieldPath):
		e.add(field.NotSupported(at, r.FieldPath, allowed))
	}
}

func (e *problems) resourceFieldRef(p *field.Path, r *corev1.ResourceFieldSelector, inVolume bool) {
	if inVolume {
		e.nonEmpty(p.Child("containerName"), r.ContainerName)
	}
	if r.Resource == "" {
		e.required(p.Child("resource"), "")
		return
	}
	_, what, _ := strings.Cut(r.Resource, ".")
	if !slices.Contains(resourceFields, r.Resource) && !(isHugePages(corev1.ResourceName(what)) && (strings.HasPrefix(r.Resource, "limits.") || strings.HasPrefix(r.Resource, "requests."))) {
		e.add(field.NotSupported(p.Child("resource"), r.Resource, resourceFields))
		return
	}
	divisors, name := []string{"1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"}, what
	message := "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the %s resource"
	switch {
	case what == "cpu":
		divisors, message = []string{"1m", "1"}, "only divisor's values 1m and 1 are supported with the %s resource"
	case what == "ephemeral-storage":
		name = "local ephemeral storage"
	case isHugePages(corev1.ResourceName(what)):
		name = "hugepages"
	}
	if r.Divisor.IsZero() {
		return
	}
	for _, d := range divisors {
		if r.Divisor.Cmp(resource.MustParse(d)) == 0 {
			return
		}
	}
	e.invalid(p.Child("divisor"), r.Divisor.String(), fmt.Sprintf(message, name))
}

func (e *problems) envFrom(p *field.Path, sources []corev1.EnvFromSource) {
	for i, s := range sources {
		at, n := p.Index(i), 0
		if s.Prefix != "" {
			e.each(at.Child("prefix"), s.Prefix, validation.IsRelaxedEnvVarName(s.Prefix))
		}
		if s.ConfigMapRef != nil {
			n++
			e.nonEmpty(at.Child("configMapRef", "name"), s.ConfigMapRef.Name)
		}
		if s.SecretRef != nil {
			n++
			e.nonEmpty(at.Child("secretRef", "name"), s.SecretRef.Name)
		}
		switch {
		case n == 0:
			e.invalid(p, "", "must specify one of: `configMapRef` or `secretRef`")
		case n > 1:
			e.invalid(p, "", "may not have more than one field specified at a time")
		}
	}
}

func (e *problems) mounts(p *field.Path, c *corev1.Container, scope containerScope) {
	seen := map[string]bool{}
	devices := map[string]bool{}
	devicePaths := map[string]bool{}
	for _, d := range c.VolumeDevices {
		devices[d.Name] = true
		devicePaths[d.DevicePath] = true
	}
	for i, m := range c.VolumeMounts {
		at := p.Child("volumeMounts").Index(i)
		source, known := scope.volumes[m.Name]
		if e.nonEmpty(at.Child("name"), m.Name) && !known {
			e.add(field.NotFound(at.Child("name"), m.Name))
		}
		e.nonEmpty(at.Child("mountPath"), m.MountPath)
		if seen[m.MountPath] {
			e.invalid(at.Child("mountPath"), m.MountPath, "must be unique")
		}
		seen[m.MountPath] = true
		if devices[m.Name] {
			e.invalid(at.Child("name"), m.Name, "must not already exist in volumeDevices")
		}
		if devicePaths[m.MountPath] {
			e.invalid(at.Child("mountPath"), m.MountPath, "must not already exist as a path in volumeDevices")
		}
		if m.SubPath != "" {
			e.localPath(at.Child("subPath"), m.SubPath)
		}
		if m.SubPathExpr != "" {
			if m.SubPath != "" {
				e.invalid(at.Child("subPathExpr"), m.SubPathExpr, "subPathExpr and subPath are mutually exclusive")
			}
			e.localPath(at.Child("subPathExpr"), m.SubPathExpr)
		}
		if m.MountPropagation != nil {
			prop := at.Child("mountPropagation")
			maybeOneOf(e, prop, *m.MountPropagation, corev1.MountPropagationBidirectional, corev1.MountPropagationHostToContainer, corev1.MountPropagationNone)
			privileged := c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
			if *m.MountPropagation == corev1.MountPropagationBidirectional && !privileged {
				e.forbidden(prop, "Bidirectional mount propagation is available only to privileged containers")
			}
			if known && source.Image != nil && *m.MountPropagation != corev1.MountPropagationNone {
				e.forbidden(prop, "not supported for image volumes")
			}
		}
		if r := m.RecursiveReadOnly; r != nil {
			rro := at.Child("recursiveReadOnly")
			maybeOneOf(e, rro, *r, corev1.RecursiveReadOnlyDisabled, corev1.RecursiveReadOnlyIfPossible, corev1.RecursiveReadOnlyEnabled)
			if *r == corev1.RecursiveReadOnlyIfPossible || *r == corev1.RecursiveReadOnlyEnabled {
				if !m.ReadOnly {
					e.forbidden(rro, "may only be specified when readOnly is true")
				}
				if m.MountPropagation != nil && *m.MountPropagation != corev1.MountPropagationNone {
					e.forbidden(rro, "may only be specified when mountPropagation is None or not specified")
				}
			}
		}
		options := at.Child("bindMountOptions")
		if len(m.BindMountOptions) > 0 && known && source.Image != nil {
			e.forbidden(options, "not supported for image volumes")
		}
		for j, o := range m.BindMountOptions {
			oneOf(e, options.Index(j), o, "noexec", "nodev", "nosuid")
			if slices.Contains(m.BindMountOptions[:j], o) {
				e.duplicate(options.Index(j), o)
			}
		}
	}
}

func (e *problems) devices(p *field.Path, c *corev1.Container, scope containerScope) {
	mounted, mountPaths := map[string]bool{}, map[string]bool{}
	for _, m := range c.VolumeMounts {
		mounted[m.Name], mountPaths[m.MountPath] = true, true
	}
	if scope.spec != nil && scope.spec.HostUsers != nil && !*scope.spec.HostUsers && len(c.VolumeDevices) > 0 {
		e.forbidden(p, "when `hostUsers` is false") // a device has no ids to be mapped
	}
	names, paths := map[string]bool{}, map[string]bool{}
	for i, d := range c.VolumeDevices {
		at := p.Index(i)
		if e.nonEmpty(at.Child("name"), d.Name) {
			if names[d.Name] {
				e.invalid(at.Child("name"), d.Name, "must be unique")
			}
			switch source, ok := scope.volumes[d.Name]; {
			case !ok:
				e.add(field.NotFound(at.Child("name"), d.Name))
			case source.PersistentVolumeClaim == nil && source.Ephemeral == nil:
				e.invalid(at.Child("name"), d.Name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode")
			}
		}
		if e.nonEmpty(at.Child("devicePath"), d.DevicePath) {
			if paths[d.DevicePath] {
				e.invalid(at.Child("devicePath"), d.DevicePath, "must be unique")
			}
			if strings.Contains(d.DevicePath, "..") {
				e.invalid(at.Child("devicePath"), d.DevicePath, "can not contain backsteps ('..')")
			}
		}
		if mounted[d.Name] {
			e.invalid(at.Child("name"), d.Name, "must not already exist in volumeMounts")
		}
		if mountPaths[d.DevicePath] {
			e.invalid(at.Child("devicePath"), d.DevicePath, "must not already exist as a path in volumeMounts")
		}
		names[d.Name], paths[d.DevicePath] = true, true
	}
}

func (e *problems) requirements(p *field.Path, r *corev1.ResourceRequirements, claims map[string]bool) {
	list := func(p *field.Path, list corev1.ResourceList) {
		for name, q := range sorted(list) {
			at := p.Key(string(name))
			e.containerResourceName(at, name)
			e.quantity(at, name, q)
			if isHugePages(name) && !isMultipleOfPageSize(name, q) {
				e.invalid(at, q.String(), "must be a multiple of the page size that its name says")
			}
		}
	}
	limits, requests := p.Child("limits"), p.Child("requests")
	list(limits, r.Limits)
	list(requests, r.Requests)
	for name, q := range sorted(r.Requests) {
		limit, ok := r.Limits[name]
		switch {
		case !ok && !mayOvercommit(name):
			e.required(limits, "Limit must be set for non overcommitable resources")
		case ok && q.Cmp(limit) != 0 && !mayOvercommit(name):
			e.invalid(requests, q.String(), fmt.Sprintf("must be equal to %s limit of %s", name, limit.String()))
		case ok && q.Cmp(limit) > 0:
			e.invalid(requests, q.String(), fmt.Sprintf("must be less than or equal to %s limit of %s", name, limit.String()))
		}
	}
	seen := map[string]bool{}
	for i, c := range r.Claims {
		at := p.Child("claims").Index(i)
		if !e.nonEmpty(at.Child("name"), c.Name) {
			continue
		}
		key := c.Name + "/" + c.Request
		if seen[key] {
			e.duplicate(at, key)
		}
		seen[key] = true
		if claims != nil && !claims[c.Name] {
			e.add(field.NotFound(at, c.Name))
		}
	}
}

func (e *problems) containerSecurity(p *field.Path, sc *corev1.SecurityContext, spec *corev1.PodSpec) {
	if sc == nil {
		return
	}
	e.userID(p.Child("runAsUser"), sc.RunAsUser)
	e.groupID(p.Child("runAsGroup"), sc.RunAsGroup)
	e.seccomp(p.Child("seccompProfile"), sc.SeccompProfile)
	e.appArmor(p.Child("appArmorProfile"), sc.AppArmorProfile)
	e.windows(p.Child("windowsOptions"), sc.WindowsOptions)
	if sc.ProcMount != nil {
		oneOf(e, p.Child("procMount"), *sc.ProcMount, corev1.DefaultProcMount, corev1.UnmaskedProcMount)
		if *sc.ProcMount == corev1.UnmaskedProcMount && (spec.HostUsers == nil || *spec.HostUsers) {
			e.invalid(p.Child("procMount"), *sc.ProcMount, "`hostUsers` must be false to use `Unmasked`")
		}
	}
	if sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation {
		if sc.Privileged != nil && *sc.Privileged {
			e.invalid(p, sc, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true")
		}
		if sc.Capabilities != nil && slices.Contains(sc.Capabilities.Add, "CAP_SYS_ADMIN") {
			e.invalid(p, sc, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN")
		}
	}
}

func (e *problems) lifecycleAndProbes(p *field.Path, c *corev1.Container, scope containerScope) {
	grace := scope.grace
	if l := c.Lifecycle; l != nil {
		for _, h := range []struct {
			field   string
			handler *corev1.LifecycleHandler
		}{{"postStart", l.PostStart}, {"preStop", l.PreStop}} {
			if h.handler != nil {
				e.handler(p.Child("lifecycle", h.field), handlers{
					exec: h.handler.Exec, httpGet: h.handler.HTTPGet, tcpSocket: h.handler.TCPSocket, sleep: h.handler.Sleep,
				}, grace)
			}
		}
		if l.StopSignal != nil {
			e.stopSignal(p.Child("lifecycle", "stopSignal"), *l.StopSignal, scope.spec.OS)
		}
	}
	for _, of := range []struct {
		field string
		probe *corev1.Probe
		once  bool
	}{{"livenessProbe", c.LivenessProbe, true}, {"readinessProbe", c.ReadinessProbe, false}, {"startupProbe", c.StartupProbe, true}} {
		if of.probe == nil {
			continue
		}
		at := p.Child(of.field)
		e.probe(at, of.probe, grace)
		if of.once && of.probe.SuccessThreshold != 1 {
			e.invalid(at.Child("successThreshold"), of.probe.SuccessThreshold, "must be 1")
		}
		if seconds := of.probe.TerminationGracePeriodSeconds; seconds != nil {
			if !of.once {
				e.invalid(at.Child("terminationGracePeriodSeconds"), *seconds, "must not be set for readinessProbes")
			} else if *seconds <= 0 {
				e.invalid(at.Child("terminationGracePeriodSeconds"), *seconds, "must be greater than 0")
			}
		}
	}
}

// stopSignals are those that may ask a container of Linux to end.
var stopSignals = func() []corev1.Signal {
	all := []corev1.Signal{corev1.SIGRTMIN, corev1.SIGRTMAX}
	for _, name := range strings.Fields("ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT SEGV STKFLT STOP SYS TERM TRAP TSTP TTIN TTOU URG USR1 USR2 VTALRM WINCH XCPU XFSZ") {
		all = append(all, corev1.Signal("SIG"+name))
	}
	const lower, upper = 15, 14 // how far they are counted from the first and from the last
	for n := 1; n <= lower; n++ {
		all = append(all, corev1.Signal(fmt.Sprintf("SIGRTMIN+%d", n)))
	}
	for n := 1; n <= upper; n++ {
		all = append(all, corev1.Signal(fmt.Sprintf("SIGRTMAX-%d", n)))
	}
	slices.Sort(all)
	return all
}()

func (e *problems) stopSignal(p *field.Path, signal corev1.Signal, os *corev1.PodOS) {
	switch {
	case os == nil || os.Name == "":
		e.forbidden(p, "may not be set for containers with empty `spec.os.name`")
	case os.Name == corev1.Windows:
		oneOf(e, p, signal, corev1.SIGKILL, corev1.SIGTERM)
	case os.Name == corev1.Linux:
		oneOf(e, p, signal, stopSignals...)
	}
}

func (e *problems) probe(p *field.Path, probe *corev1.Probe, grace int64) {
	e.handler(p, handlers{exec: probe.Exec, httpGet: probe.HTTPGet, tcpSocket: probe.TCPSocket, grpc: probe.GRPC}, grace)
	for _, n := range []struct {
		field string
		value int32
	}{
		{"initialDelaySeconds", probe.InitialDelaySeconds}, {"timeoutSeconds", probe.TimeoutSeconds}, {"periodSeconds", probe.PeriodSeconds},
		{"successThreshold", probe.SuccessThreshold}, {"failureThreshold", probe.FailureThreshold},
	} {
		e.nonNegative(p.Child(n.field), int64(n.value))
	}
}

// handlers are the actions of a probe and of a hook together: exactly one of
// them is set.
type handlers struct {
	exec      *corev1.ExecAction
	httpGet   *corev1.HTTPGetAction
	tcpSocket *corev1.TCPSocketAction
	grpc      *corev1.GRPCAction
	sleep     *corev1.SleepAction
}

func (e *problems) handler(p *field.Path, h handlers, grace int64) {
	n := 0
	// only reports whether this is the first one, and says so if it is not.
	only := func(name string) bool {
		if n++; n > 1 {
			e.forbidden(p.Child(name), "may not specify more than 1 handler type")
		}
		return n == 1
	}
	if a := h.exec; a != nil && only("exec") && len(a.Command) == 0 {
		e.required(p.Child("exec", "command"), "")
	}
	if a := h.httpGet; a != nil && only("httpGet") {
		at := p.Child("httpGet")
		e.nonEmpty(at.Child("path"), a.Path)
		e.portOrName(at.Child("port"), a.Port)
		maybeOneOf(e, at.Child("scheme"), a.Scheme, corev1.URISchemeHTTP, corev1.URISchemeHTTPS)
		if a.Protocol != nil {
			oneOf(e, at.Child("protocol"), *a.Protocol, corev1.HTTPProtocolHTTP1, corev1.HTTPProtocolHTTP2)
			if *a.Protocol == corev1.HTTPProtocolHTTP2 && a.Scheme == corev1.URISchemeHTTPS {
				e.invalid(at.Child("protocol"), *a.Protocol, "HTTP2 may only be used with scheme HTTP")
			}
		}
		for _, header := range a.HTTPHeaders {
			e.each(at.Child("httpHeaders"), header.Name, validation.IsHTTPHeaderName(header.Name))
		}
	}
	if a := h.tcpSocket; a != nil && only("tcpSocket") {
		e.portOrName(p.Child("tcpSocket", "port"), a.Port)
	}
	if a := h.grpc; a != nil && only("grpc") {
		e.port(p.Child("grpc", "port"), a.Port)
	}
	if a := h.sleep; a != nil && only("sleep") && (a.Seconds < 0 || a.Seconds > grace) {
		e.invalid(p.Child("sleep"), a.Seconds, fmt.Sprintf("must be non-negative and less than terminationGracePeriodSeconds (%d)", grace))
	}
	if n == 0 {
		e.required(p, "must specify a handler type")
	}
}
