package kinds

import (
	"fmt"
	"math"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

// podWith is a good pod with lines of YAML added to its spec and to its
// container. Lines are indented by who writes them: none at all.
func podWith(spec, container string) string {
	indent := func(text, by string) string {
		if text == "" {
			return ""
		}
		return by + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n"+by) + "\n"
	}
	return "metadata: {name: p, namespace: default}\nspec:\n" + indent(spec, "  ") +
		"  containers:\n  - name: c\n    image: nginx:1\n" + indent(container, "    ")
}

func TestValidatePod(t *testing.T) {
	c := "spec.containers[0]."
	for name, tc := range map[string]struct {
		spec, container string
		want            []string
	}{
		"good": {},
		"everything good": {
			spec: `
restartPolicy: Never
nodeSelector: {disk: ssd}
serviceAccountName: robot
hostname: web
subdomain: pods
activeDeadlineSeconds: 30
priorityClassName: system-node-critical
tolerations:
- operator: Exists
- {key: a, operator: Equal, value: b, effect: NoExecute, tolerationSeconds: 3}
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms: [{matchExpressions: [{key: zone, operator: In, values: [a]}], matchFields: [{key: metadata.name, operator: In, values: [node]}]}]
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
    - {weight: 5, podAffinityTerm: {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {a: b}}}}
topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule, minDomains: 2}]
hostAliases: [{ip: 10.1.2.3, hostnames: [a.b]}]
dnsPolicy: None
dnsConfig: {nameservers: [10.0.0.1], searches: [a.b., .], options: [{name: ndots, value: "2"}]}
securityContext: {runAsUser: 1, fsGroup: 2, sysctls: [{name: net.ipv4.ip_forward, value: "1"}]}
schedulingGates: [{name: a.b/c}]
initContainers:
- {name: first, image: busybox}
- {name: side, image: busybox, restartPolicy: Always, livenessProbe: {exec: {command: [x]}}}
volumes:
- {name: e, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
- {name: h, hostPath: {path: /tmp, type: Directory}}
- {name: s, secret: {secretName: s, items: [{key: a, path: b/c, mode: 0440}]}}
- {name: m, configMap: {name: m}}
- {name: d, downwardAPI: {items: [{path: l, fieldRef: {fieldPath: metadata.labels}}, {path: m, resourceFieldRef: {containerName: c, resource: limits.memory, divisor: 1Mi}}]}}
- name: p
  projected:
    sources:
    - {serviceAccountToken: {path: token, expirationSeconds: 600}}
    - {configMap: {name: ca, items: [{key: ca.crt, path: ca.crt}]}}
    - {downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}}
`,
			container: `
command: [a]
ports: [{containerPort: 80, name: http, hostPort: 8080}, {containerPort: 80, protocol: UDP, hostPort: 8080}]
env:
- {name: "odd name!", value: x}
- {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
- {name: L, valueFrom: {fieldRef: {fieldPath: "metadata.labels['a/b']"}}}
- {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}
- {name: K, valueFrom: {configMapKeyRef: {name: m, key: k, optional: true}}}
envFrom: [{prefix: A_, secretRef: {name: s}}, {configMapRef: {name: m}}]
resources: {limits: {cpu: 1, memory: 64Mi, example.com/gpu: 2}, requests: {cpu: 500m, memory: 64Mi, example.com/gpu: 2}}
livenessProbe: {httpGet: {port: http}, terminationGracePeriodSeconds: 5}
readinessProbe: {tcpSocket: {port: 80}, successThreshold: 2}
lifecycle: {preStop: {sleep: {seconds: 3}}}
volumeMounts: [{name: e, mountPath: /e, subPath: x}, {name: p, mountPath: /p, readOnly: true}]
securityContext: {runAsNonRoot: true, capabilities: {add: [NET_ADMIN]}, allowPrivilegeEscalation: false}
`,
		},
		"image":               {container: `terminationMessagePolicy: x`, want: []string{c + `terminationMessagePolicy: Unsupported value: "x": supported values: "File", "FallbackToLogsOnError"`}},
		"pull policy":         {container: `imagePullPolicy: Sometimes`, want: []string{c + `imagePullPolicy: Unsupported value: "Sometimes": supported values: "Always", "IfNotPresent", "Never"`}},
		"restart policy":      {spec: `restartPolicy: Maybe`, want: []string{`spec.restartPolicy: Unsupported value: "Maybe": supported values: "Always", "OnFailure", "Never"`}},
		"port out of range":   {container: `ports: [{containerPort: 70000}]`, want: []string{c + `ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive`}},
		"port missing":        {container: `ports: [{name: a}]`, want: []string{c + `ports[0].containerPort: Required value`}},
		"port name":           {container: `ports: [{containerPort: 1, name: UPPER}]`, want: []string{c + `ports[0].name: Invalid value: "UPPER": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)`, c + `ports[0].name: Invalid value: "UPPER": must contain at least one letter (a-z)`}},
		"port name twice":     {container: `ports: [{containerPort: 1, name: a}, {containerPort: 2, name: a}]`, want: []string{c + `ports[1].name: Duplicate value: "a"`}},
		"host port twice":     {container: `ports: [{containerPort: 1, hostPort: 5}, {containerPort: 2, hostPort: 5}]`, want: []string{c + `ports[1].hostPort: Duplicate value: "TCP//5"`}},
		"host network":        {spec: `hostNetwork: true`, container: `ports: [{containerPort: 1, hostPort: 5}]`, want: []string{c + `ports[0].hostPort: Invalid value: 5: must match ` + "`containerPort` when `hostNetwork` is true"}},
		"env name":            {container: `env: [{name: a=b}]`, want: []string{c + `env[0].name: Invalid value: "a=b": a valid environment variable name must consist only of printable ASCII characters other than '='`}},
		"env empty":           {container: `env: [{value: b}]`, want: []string{c + `env[0].name: Required value`}},
		"env two sources":     {container: `env: [{name: a, value: b, valueFrom: {secretKeyRef: {name: s, key: k}}}]`, want: []string{c + "env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty"}},
		"env no source":       {container: `env: [{name: a, valueFrom: {}}]`, want: []string{c + "env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"}},
		"env field":           {container: `env: [{name: a, valueFrom: {fieldRef: {fieldPath: spec.foo}}}]`, want: []string{c + `env[0].valueFrom.fieldRef.fieldPath: Invalid value: "spec.foo": error converting fieldPath: field label not supported: spec.foo`}},
		"env not this field":  {container: `env: [{name: a, valueFrom: {fieldRef: {fieldPath: metadata.labels}}}]`, want: []string{c + `env[0].valueFrom.fieldRef.fieldPath: Unsupported value: "metadata.labels": supported values: "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"`}},
		"env divisor":         {container: `env: [{name: a, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: "3"}}}]`, want: []string{c + `env[0].valueFrom.resourceFieldRef.divisor: Invalid value: "3": only divisor's values 1m and 1 are supported with the cpu resource`}},
		"env key":             {container: `env: [{name: a, valueFrom: {configMapKeyRef: {name: m, key: ".."}}}]`, want: []string{c + `env[0].valueFrom.configMapKeyRef.key: Invalid value: ".."…`}},
		"request over limit":  {container: `resources: {limits: {cpu: 1}, requests: {cpu: 2}}`, want: []string{c + `resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1`}},
		"extended request":    {container: `resources: {limits: {a.b/c: 2}, requests: {a.b/c: 1}}`, want: []string{c + `resources.requests: Invalid value: "1": must be equal to a.b/c limit of 2`}},
		"extended half":       {container: `resources: {limits: {a.b/c: 1500m}}`, want: []string{c + `resources.limits[a.b/c]: Invalid value: "1500m": must be an integer`, c + `resources.requests[a.b/c]: Invalid value: "1500m": must be an integer`}},
		"negative":            {container: `resources: {requests: {cpu: -1}}`, want: []string{c + `resources.requests[cpu]: Invalid value: "-1": must be greater than or equal to 0`}},
		"unknown resource":    {container: `resources: {requests: {foo: 1}}`, want: []string{c + `resources.requests[foo]: Invalid value: "foo": must be a standard resource type or fully qualified`, c + `resources.requests[foo]: Invalid value: "foo": must be a standard resource for containers`}},
		"huge pages alone":    {container: `resources: {limits: {hugepages-2Mi: 2Mi}}`, want: []string{`spec: Forbidden: HugePages require cpu or memory`}},
		"probe":               {container: `livenessProbe: {}`, want: []string{c + `livenessProbe: Required value: must specify a handler type`}},
		"probe two":           {container: `livenessProbe: {exec: {command: [a]}, tcpSocket: {port: 1}}`, want: []string{c + `livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type`}},
		"probe threshold":     {container: `livenessProbe: {exec: {command: [a]}, successThreshold: 2}`, want: []string{c + `livenessProbe.successThreshold: Invalid value: 2: must be 1`}},
		"probe negative":      {container: `readinessProbe: {exec: {command: [a]}, periodSeconds: -1}`, want: []string{c + `readinessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0`}},
		"probe grace":         {container: `readinessProbe: {exec: {command: [a]}, terminationGracePeriodSeconds: 1}`, want: []string{c + `readinessProbe.terminationGracePeriodSeconds: Invalid value: 1: must not be set for readinessProbes`}},
		"probe scheme":        {container: `livenessProbe: {httpGet: {port: 0, scheme: FTP}}`, want: []string{c + `livenessProbe.httpGet.port: Invalid value: 0: must be between 1 and 65535, inclusive`, c + `livenessProbe.httpGet.scheme: Unsupported value: "FTP": supported values: "HTTP", "HTTPS"`}},
		"stop signal":         {spec: "os: {name: linux}", container: "lifecycle: {stopSignal: SIGRTMAX-14}"},
		"stop signal, no os":  {container: "lifecycle: {stopSignal: SIGTERM}", want: []string{c + "lifecycle.stopSignal: Forbidden: may not be set for containers with empty `spec.os.name`"}},
		"stop signal unknown": {spec: "os: {name: linux}", container: "lifecycle: {stopSignal: TERM}", want: []string{c + `lifecycle.stopSignal: Unsupported value: "TERM"…`}},
		"hook sleep":          {container: `lifecycle: {preStop: {sleep: {seconds: 31}}}`, want: []string{c + `lifecycle.preStop.sleep: Invalid value: 31: must be non-negative and less than terminationGracePeriodSeconds (30)`}},
		"mount unknown":       {container: `volumeMounts: [{name: x, mountPath: /x}]`, want: []string{c + `volumeMounts[0].name: Not found: "x"`}},
		"mount twice":         {spec: `volumes: [{name: x}]`, container: `volumeMounts: [{name: x, mountPath: /x}, {name: x, mountPath: /x}]`, want: []string{c + `volumeMounts[1].mountPath: Invalid value: "/x": must be unique`}},
		"mount climbs":        {spec: `volumes: [{name: x}]`, container: `volumeMounts: [{name: x, mountPath: /x, subPath: ../a}]`, want: []string{c + `volumeMounts[0].subPath: Invalid value: "../a": must not contain '..'`}},
		"mount absolute":      {spec: `volumes: [{name: x}]`, container: `volumeMounts: [{name: x, mountPath: /x, subPath: /a}]`, want: []string{c + `volumeMounts[0].subPath: Invalid value: "/a": must be a relative path`}},
		"privileged":          {container: `securityContext: {privileged: true, allowPrivilegeEscalation: false}`, want: []string{c + `securityContext: Invalid value: {"privileged":true,"allowPrivilegeEscalation":false}: cannot set ` + "`allowPrivilegeEscalation` to false and `privileged` to true"}},
		"user":                {container: `securityContext: {runAsUser: -1}`, want: []string{c + `securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive`}},
		"seccomp":             {container: `securityContext: {seccompProfile: {type: Localhost}}`, want: []string{c + `securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost`}},
		"container name":      {spec: `initContainers: [{name: c, image: a}]`, want: []string{`spec.initContainers[0].name: Duplicate value: "c"`}},
		"init probe":          {spec: `initContainers: [{name: i, image: a, livenessProbe: {exec: {command: [a]}}}]`, want: []string{`spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always`}},
		"ephemeral":           {spec: `ephemeralContainers: [{name: d, image: a}]`, want: []string{`spec.ephemeralContainers: Forbidden: cannot be set on create`}},
		"volume name":         {spec: `volumes: [{name: A, emptyDir: {}}, {name: b}, {name: b}]`, want: []string{`spec.volumes[0].name: Invalid value: "A": a lowercase RFC 1123 label…`, `spec.volumes[2].name: Duplicate value: "b"`}},
		"volume two types":    {spec: `volumes: [{name: a, emptyDir: {}, hostPath: {path: /a}}]`, want: []string{`spec.volumes[0].emptyDir: Forbidden: may not specify more than 1 volume type`}},
		"devices": {
			spec:      "volumes: [{name: disk, persistentVolumeClaim: {claimName: d}}, {name: own, ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], volumeMode: Block, resources: {requests: {storage: 1}}}}}}]\ninitContainers: [{name: first, image: i, volumeDevices: [{name: disk, devicePath: /dev/xvda}]}]",
			container: "volumeDevices: [{name: disk, devicePath: /dev/xvda}, {name: own, devicePath: dev/any}]",
		},
		"bad devices": {
			spec:      "hostUsers: false\nvolumes: [{name: disk, persistentVolumeClaim: {claimName: d}}, {name: dir, emptyDir: {}}]",
			container: "volumeMounts: [{name: disk, mountPath: /disk}]\nvolumeDevices: [{name: disk, devicePath: /disk}, {name: disk, devicePath: /a/../b}, {name: dir, devicePath: /c}, {name: none, devicePath: /c}, {}]",
			want: []string{
				c + `volumeMounts[0].name: Invalid value: "disk": must not already exist in volumeDevices`, c + `volumeMounts[0].mountPath: Invalid value: "/disk": must not already exist as a path in volumeDevices`,
				c + "volumeDevices: Forbidden: when `hostUsers` is false",
				c + `volumeDevices[0].name: Invalid value: "disk": must not already exist in volumeMounts`, c + `volumeDevices[0].devicePath: Invalid value: "/disk": must not already exist as a path in volumeMounts`,
				c + `volumeDevices[1].name: Invalid value: "disk": must be unique`, c + `volumeDevices[1].devicePath: Invalid value: "/a/../b": can not contain backsteps ('..')`,
				c + `volumeDevices[1].name: Invalid value: "disk": must not already exist in volumeMounts`,
				c + `volumeDevices[2].name: Invalid value: "dir": can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode`,
				c + `volumeDevices[3].name: Not found: "none"`, c + `volumeDevices[3].devicePath: Invalid value: "/c": must be unique`,
				c + "volumeDevices[4].name: Required value", c + "volumeDevices[4].devicePath: Required value"},
		},
		"volume host path": {spec: `volumes: [{name: a, hostPath: {path: /a/../b, type: Odd}}]`, want: []string{`spec.volumes[0].hostPath.path: Invalid value: "/a/../b": must not contain '..'`, `spec.volumes[0].hostPath.type: Unsupported value: "Odd": supported values: "", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"`}},
		"volume secret":    {spec: `volumes: [{name: a, secret: {defaultMode: 512, items: [{key: k, path: ..x}]}}]`, want: []string{`spec.volumes[0].secret.secretName: Required value`, `spec.volumes[0].secret.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive`, `spec.volumes[0].secret.items[0].path: Invalid value: "..x": must not start with '..'`}},
		"volume token":     {spec: `volumes: [{name: a, projected: {sources: [{serviceAccountToken: {path: t, expirationSeconds: 5}}]}}]`, want: []string{`spec.volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 5: may not specify a duration less than 10 minutes`}},
		"volume nothing":   {spec: `volumes: [{name: a, projected: {sources: [{}]}}]`, want: []string{`spec.volumes[0].projected.sources[0]: Required value: must specify a volume type`}},
		"volume nfs":       {spec: `volumes: [{name: a, nfs: {server: s, path: rel}}]`, want: []string{`spec.volumes[0].nfs.path: Invalid value: "rel": must be an absolute path`}},
		"toleration":       {spec: `tolerations: [{key: a, operator: Exists, value: b}]`, want: []string{`spec.tolerations[0].operator: Invalid value: {"key":"a","operator":"Exists","value":"b"}: value must be empty when ` + "`operator` is 'Exists'"}},
		"toleration key":   {spec: `tolerations: [{operator: Equal}]`, want: []string{"spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \"match all values and all keys\""}},
		"affinity":         {spec: `affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: []}}}`, want: []string{`spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term`}},
		"affinity weight":  {spec: `affinity: {podAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 101, podAffinityTerm: {}}]}}`, want: []string{`spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 101: must be in the range 1-100`, `spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.topologyKey: Required value: can not be empty`}},
		"spread":           {spec: `topologySpreadConstraints: [{maxSkew: 0, whenUnsatisfiable: Odd}]`, want: []string{`spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero`, `spec.topologySpreadConstraints[0].topologyKey: Required value: can not be empty`, `spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: "Odd": supported values: "DoNotSchedule", "ScheduleAnyway"`}},
		"dns":              {spec: `dnsPolicy: None`, want: []string{"spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"}},
		"nameservers":      {spec: `dnsConfig: {nameservers: [1.1.1.1, 1.1.1.2, 1.1.1.3, 1.1.1.4]}`, want: []string{`spec.dnsConfig.nameservers: Invalid value: ["1.1.1.1","1.1.1.2","1.1.1.3","1.1.1.4"]: must not have more than 3 nameservers`}},
		"deadline":         {spec: `activeDeadlineSeconds: 0`, want: []string{`spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive`}},
		"host alias":       {spec: `hostAliases: [{ip: 1.2.3, hostnames: [A]}]`, want: []string{`spec.hostAliases[0].ip: Invalid value: "1.2.3": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)`, `spec.hostAliases[0].hostnames: Invalid value: "A": a lowercase RFC 1123 subdomain…`}},
		"sysctl":           {spec: `securityContext: {sysctls: [{name: A b, value: x}]}`, want: []string{`spec.securityContext.sysctls[0].name: Invalid value: "A b": must have at most 253 characters and match regex ([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?`}},
		"gates":            {spec: "schedulingGates: [{name: a}, {name: a}]\nnodeName: node", want: []string{`spec.schedulingGates[1]: Duplicate value: "a"`, `spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared`}},
		"os":               {spec: `os: {name: linux}`, container: `securityContext: {windowsOptions: {runAsUserName: x}}`, want: []string{c + `securityContext.windowsOptions: Forbidden: windows options cannot be set for a linux pod`}},
		"pod resources":    {spec: `resources: {requests: {cpu: 1}}`, container: `resources: {requests: {cpu: 2}}`, want: []string{`spec.resources.requests[cpu]: Invalid value: "1": must be greater than or equal to aggregate container requests of 2`}},
		"node name":        {spec: `nodeName: A_b`, want: []string{`spec.nodeName: Invalid value: "A_b": a lowercase RFC 1123 subdomain…`}},
	} {
		t.Run(name, func(t *testing.T) {
			pod := parse[*corev1.Pod](t, "pods", podWith(tc.spec, tc.container))
			table["pods"].PrepareForCreate(pod)
			expect(t, table["pods"].Validate(pod), tc.want...)
		})
	}
	t.Run("nothing at all", func(t *testing.T) {
		pod := parse[*corev1.Pod](t, "pods", "spec: {}")
		expect(t, table["pods"].Validate(pod),
			"metadata.name: Required value: name or generateName is required", "metadata.namespace: Required value", "spec.containers: Required value")
	})
	t.Run("no image", func(t *testing.T) {
		pod := parse[*corev1.Pod](t, "pods", "metadata: {name: p, namespace: d}\nspec: {containers: [{name: a}, {image: ' x'}]}")
		expect(t, table["pods"].Validate(pod), "spec.containers[0].image: Required value", "spec.containers[1].name: Required value",
			`spec.containers[1].image: Invalid value: " x": must not have leading or trailing whitespace`)
	})
}

func TestUpdatePod(t *testing.T) {
	k := table["pods"]
	base := func(t *testing.T) *corev1.Pod {
		pod := parse[*corev1.Pod](t, "pods", podWith("nodeName: node\nactiveDeadlineSeconds: 60\ntolerations: [{key: a, operator: Exists}]\ninitContainers: [{name: i, image: a}]", ""))
		k.PrepareForCreate(pod)
		pod.UID, pod.ResourceVersion, pod.Status.Phase = "u", "1", corev1.PodRunning
		return pod
	}
	for name, tc := range map[string]struct {
		change     func(pod *corev1.Pod)
		want       []string
		generation int64
	}{
		"nothing":    {change: func(*corev1.Pod) {}, generation: 1},
		"generation": {change: func(pod *corev1.Pod) { pod.Generation = 40 }, generation: 1},
		"status":     {change: func(pod *corev1.Pod) { pod.Status.Phase = corev1.PodFailed }, generation: 1},
		"images": {change: func(pod *corev1.Pod) {
			pod.Spec.Containers[0].Image, pod.Spec.InitContainers[0].Image = "b", "c"
		}, generation: 2},
		"shorter": {change: func(pod *corev1.Pod) { pod.Spec.ActiveDeadlineSeconds = ptr.To[int64](50) }, generation: 2},
		"longer":  {change: func(pod *corev1.Pod) { pod.Spec.ActiveDeadlineSeconds = ptr.To[int64](70) }, generation: 2, want: []string{"spec.activeDeadlineSeconds: Invalid value: 70: must be less than or equal to previous value"}},
		"tolerate": {change: func(pod *corev1.Pod) {
			pod.Spec.Tolerations = append(pod.Spec.Tolerations, corev1.Toleration{Key: "b", Operator: corev1.TolerationOpExists})
		}, generation: 2},
		"intolerant": {change: func(pod *corev1.Pod) { pod.Spec.Tolerations = nil }, generation: 2,
			want: []string{"spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"}},
		"more containers": {change: func(pod *corev1.Pod) { pod.Spec.Containers = append(pod.Spec.Containers, pod.Spec.Containers[0]) }, generation: 2,
			want: []string{"spec.containers: Forbidden: pod updates may not add or remove containers"}},
		"command": {change: func(pod *corev1.Pod) { pod.Spec.Containers[0].Command = []string{"sh"} }, generation: 2,
			want: []string{"spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n…"}},
		"node":   {change: func(pod *corev1.Pod) { pod.Spec.NodeName = "m" }, generation: 2, want: []string{"spec: Forbidden: pod updates may not change fields other than…"}},
		"labels": {change: func(pod *corev1.Pod) { pod.Labels = map[string]string{"a": "b"} }, generation: 1},
		"name": {change: func(pod *corev1.Pod) { pod.Name = "q" }, generation: 1,
			want: []string{`metadata.name: Invalid value: "q": field is immutable`}},
	} {
		t.Run(name, func(t *testing.T) {
			old := base(t)
			pod := old.DeepCopy()
			tc.change(pod)
			k.Default(pod)
			k.PrepareForUpdate(pod, old)
			expect(t, k.ValidateUpdate(pod, old), tc.want...)
			if pod.Generation != tc.generation {
				t.Errorf("generation is %d, want %d", pod.Generation, tc.generation)
			}
			if pod.Status.Phase != corev1.PodRunning {
				t.Errorf("a plain update made the phase %s", pod.Status.Phase)
			}
		})
	}

	t.Run("gated", func(t *testing.T) {
		old := parse[*corev1.Pod](t, "pods", podWith("schedulingGates: [{name: a}, {name: b}]\nnodeSelector: {x: one}", ""))
		k.PrepareForCreate(old)
		old.ResourceVersion = "1"
		pod := old.DeepCopy()
		pod.Spec.SchedulingGates = pod.Spec.SchedulingGates[1:]
		pod.Spec.NodeSelector["z"] = "1"
		pod.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
			NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "k", Operator: corev1.NodeSelectorOpExists}}}},
		}}}
		expect(t, k.ValidateUpdate(pod, old))
		pod.Spec.SchedulingGates = append(pod.Spec.SchedulingGates, corev1.PodSchedulingGate{Name: "c"})
		pod.Spec.NodeSelector = nil
		expect(t, k.ValidateUpdate(pod, old), `spec.schedulingGates[1]: Forbidden: only deletion is allowed, but found new scheduling gate 'c'`,
			`spec.nodeSelector: Invalid value: null: only additions to spec.nodeSelector are allowed (no deletions or mutations)`)
	})

	t.Run("status", func(t *testing.T) {
		old := base(t)
		old.Spec.RestartPolicy = corev1.RestartPolicyNever
		old.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 3}}}}
		pod := old.DeepCopy()
		pod.Spec.Containers[0].Image = "other"
		pod.Status.Phase, pod.Status.PodIP = corev1.PodFailed, "10.244.0.7"
		k.Default(pod)
		k.PrepareForStatusUpdate(pod, old)
		expect(t, k.ValidateStatusUpdate(pod, old))
		if pod.Spec.Containers[0].Image != "nginx:1" || pod.Status.Phase != corev1.PodFailed || len(pod.Status.PodIPs) != 1 {
			t.Errorf("a status update gave image %s, status %+v", pod.Spec.Containers[0].Image, pod.Status)
		}
		pod.Status.ContainerStatuses[0].State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
		pod.Status.QOSClass = corev1.PodQOSGuaranteed
		expect(t, k.ValidateStatusUpdate(pod, old), `status.qosClass: Invalid value: "Guaranteed": field is immutable`,
			`status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state`)
	})
}

func TestEphemeralContainers(t *testing.T) {
	sub := table["pods"].Sub("ephemeralcontainers")
	stored := func() *corev1.Pod {
		pod := parse[*corev1.Pod](t, "pods", podWith("ephemeralContainers: [{name: debug, image: i}]", ""))
		table["pods"].Default(pod)
		pod.Generation, pod.ResourceVersion = 3, "1"
		return pod
	}
	add := func(pod *corev1.Pod, text string) {
		pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, parse[*corev1.Pod](t, "pods", podWith("ephemeralContainers: ["+text+"]", "")).Spec.EphemeralContainers...)
	}
	for name, tc := range map[string]struct {
		edit func(pod, old *corev1.Pod)
		want []string
	}{
		"one more": {func(pod, _ *corev1.Pod) { add(pod, "{name: more, image: i, targetContainerName: c}") }, nil},
		"all else stays": {func(pod, _ *corev1.Pod) {
			add(pod, "{name: more, image: i}")
			pod.Labels, pod.Spec.Containers, pod.Spec.NodeName = map[string]string{"a": "b"}, nil, "elsewhere"
		}, nil},
		"removed": {func(pod, _ *corev1.Pod) { pod.Spec.EphemeralContainers = nil }, []string{
			"spec.ephemeralContainers: Forbidden: existing ephemeral containers \"debug\" may not be removed\n"}},
		"a name that is taken": {func(pod, _ *corev1.Pod) { add(pod, "{name: c, image: i}") }, []string{`spec.ephemeralContainers[1].name: Duplicate value: "c"`}},
		"no such target": {func(pod, _ *corev1.Pod) { add(pod, "{name: more, image: i, targetContainerName: none}") }, []string{
			`spec.ephemeralContainers[1].targetContainerName: Not found: "none"`}},
		"what it may not have": {func(pod, _ *corev1.Pod) {
			add(pod, "{name: more, image: i, ports: [{containerPort: 1, protocol: TCP}], restartPolicy: Never, resources: {limits: {cpu: 1}}, lifecycle: {}}")
		}, []string{
			"spec.ephemeralContainers[1].ports: Forbidden: cannot be set for an Ephemeral Container",
			"spec.ephemeralContainers[1].lifecycle: Forbidden: cannot be set for an Ephemeral Container",
			"spec.ephemeralContainers[1].resources: Forbidden: cannot be set for an Ephemeral Container",
			"spec.ephemeralContainers[1].restartPolicy: Forbidden: cannot be set for an Ephemeral Container"}},
		"a static pod": {func(pod, old *corev1.Pod) {
			old.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
			add(pod, "{name: more, image: i}")
		}, []string{"[]: Forbidden: static pods do not support ephemeral containers"}},
	} {
		t.Run(name, func(t *testing.T) {
			pod, old := stored(), stored()
			tc.edit(pod, old)
			table["pods"].Default(pod)
			grown := len(pod.Spec.EphemeralContainers) != len(old.Spec.EphemeralContainers)
			sub.Prepare(pod, old)
			if len(pod.Spec.Containers) != 1 || pod.Spec.NodeName != old.Spec.NodeName || len(pod.Labels) != len(old.Labels) || (pod.Generation == 4) != grown {
				t.Errorf("the update let something else through: %+v", pod)
			}
			expect(t, sub.Validate(pod, old), tc.want...)
		})
	}
	pod, old := stored(), stored()
	pod.Spec.EphemeralContainers[0].Image = "other"
	sub.Prepare(pod, old)
	if errs := sub.Validate(pod, old); len(errs) != 1 || !strings.Contains(errs[0].Detail, `existing ephemeral containers "debug" may not be changed`) {
		t.Errorf("changed: %v", errs)
	}
}

func TestQOSClass(t *testing.T) {
	for container, want := range map[string]corev1.PodQOSClass{
		"": corev1.PodQOSBestEffort,
		"resources: {limits: {example.com/gpu: 1}}":                                          corev1.PodQOSBestEffort,
		"resources: {requests: {cpu: 1}}":                                                    corev1.PodQOSBurstable,
		"resources: {limits: {cpu: 1}}":                                                      corev1.PodQOSBurstable,
		"resources: {limits: {cpu: 1, memory: 1Gi}}":                                         corev1.PodQOSGuaranteed,
		"resources: {limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 500m, memory: 1024Mi}}":  corev1.PodQOSBurstable,
		"resources: {limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 1000m, memory: 1024Mi}}": corev1.PodQOSGuaranteed,
	} {
		pod := parse[*corev1.Pod](t, "pods", podWith("", container))
		table["pods"].PrepareForCreate(pod)
		if pod.Status.QOSClass != want || pod.Status.Phase != corev1.PodPending {
			t.Errorf("%s: class %s, want %s; phase %s", container, pod.Status.QOSClass, want, pod.Status.Phase)
		}
	}
}

func TestWarnings(t *testing.T) {
	k := table["pods"]
	for name, tc := range map[string]struct {
		spec, container string
		want            []string
	}{
		"all works": {
			spec:      "hostNetwork: true\nsecurityContext: {fsGroup: 1, seccompProfile: {type: RuntimeDefault}, supplementalGroupsPolicy: Strict, seLinuxOptions: {level: s0}}\nvolumes: [{name: a, emptyDir: {medium: Memory, sizeLimit: 1Mi}}, {name: b, secret: {secretName: s}}]",
			container: "livenessProbe: {exec: {command: [a]}}\nvolumeMounts: [{name: a, mountPath: /a, mountPropagation: None, readOnly: true, recursiveReadOnly: Enabled, bindMountOptions: [noexec]}]",
		},
		"startup":        {container: "startupProbe: {exec: {command: [a]}}"},
		"probe protocol": {container: "readinessProbe: {httpGet: {port: 1, protocol: HTTP2}}"},
		"restart rules":  {container: "restartPolicy: Never\nrestartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [1]}}]"},
		"hook":           {spec: "os: {name: linux}", container: "lifecycle: {preStop: {exec: {command: [a]}}, stopSignal: SIGTERM}"},
		"sidecar":        {spec: "initContainers: [{name: a, image: b, restartPolicy: Always}]"},
		"device":         {spec: "volumes: [{name: a, persistentVolumeClaim: {claimName: b}}]", container: "volumeDevices: [{name: a, devicePath: /dev/a}]"},
		"projected": {spec: "volumes: [{name: a, projected: {sources: [{downwardAPI: {}}, {clusterTrustBundle: {name: a, path: b}}, {podCertificate: {signerName: a/b, keyType: RSA3072, credentialBundlePath: c}}]}}]", want: []string{
			"spec.volumes[0].projected.sources[1].clusterTrustBundle: this type of source is not supported by Conclave yet, the pod will not start",
			"spec.volumes[0].projected.sources[2].podCertificate: this type of source is not supported by Conclave yet, the pod will not start"}},
		"user namespace": {spec: "hostUsers: false", container: "securityContext: {procMount: Unmasked}"},
		"host users":     {spec: "hostUsers: true"},
		"volume": {spec: "volumes: [{name: a, iscsi: {targetPortal: s, iqn: iqn.x, lun: 0}}, {name: b, emptyDir: {sizeLimit: 1Mi}}, {name: d, persistentVolumeClaim: {claimName: b}}, {name: c, emptyDir: {medium: HugePages}}]", want: []string{
			"spec.volumes[0].iscsi: this type of volume is not supported by Conclave yet, the pod will not start",
			"spec.volumes[3].emptyDir.medium: not supported by Conclave yet, it has no effect"}},
		"double": {container: "env: [{name: A}, {name: A}]\nports: [{containerPort: 1}, {containerPort: 1}]\nresources: {limits: {memory: 100m}}", want: []string{
			`spec.containers[0].env[1]: hides previous definition of "A", which may be dropped when using apply`,
			`spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]`,
			`spec.containers[0].resources.limits[memory]: fractional byte value "100m" is invalid, must be an integer`,
			`spec.containers[0].resources.requests[memory]: fractional byte value "100m" is invalid, must be an integer`}},
	} {
		t.Run(name, func(t *testing.T) {
			pod := parse[*corev1.Pod](t, "pods", podWith(tc.spec, tc.container))
			if got := k.Warnings(pod, nil); fmt.Sprintf("%q", got) != fmt.Sprintf("%q", tc.want) {
				t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(tc.want, "\n\t"))
			}
			if again := k.Warnings(pod, pod); len(again) > 0 {
				t.Errorf("an update that changed nothing warned: %s", again)
			}
		})
	}
}

// Numbers that only an attacker writes cost no more than others.
func TestAbsurdQuantities(t *testing.T) {
	for _, q := range []string{"1e2147483647", "-1e2147483647", "1e999999", "9e19", "1e-2147483", "123456789012345678901234567890"} {
		pod := parse[*corev1.Pod](t, "pods", podWith("volumes: [{name: a, emptyDir: {sizeLimit: "+q+"}}]",
			"resources: {limits: {memory: "+q+", cpu: "+q+", a.b/c: "+q+"}, requests: {memory: 1}}\nenv: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: "+q+"}}}]"))
		table["pods"].PrepareForCreate(pod)
		table["pods"].Validate(pod)
		memory := pod.Spec.Containers[0].Resources.Limits[corev1.ResourceMemory]
		if strings.Contains(q, "e2147483647") && memory.Value() != int64(memory.Sign())*math.MaxInt64 {
			t.Errorf("%s became %s", q, memory.String())
		}
	}
}

// A volume may be a device only where there can be one.
func TestVolumeWarnings(t *testing.T) {
	for source, want := range map[string]string{
		"local: {path: /dev/sdb}":                  "",
		"csi: {driver: a.b, volumeHandle: c}":      "",
		"hostPath: {path: /x}":                     "spec.volumeMode: a volume of type hostPath is no block device, pods that use it will not start",
		"iscsi: {targetPortal: s, iqn: i, lun: 0}": "spec.iscsi: this type of volume is not supported by Conclave yet, pods that use it will not start",
	} {
		v := parse[*corev1.PersistentVolume](t, "persistentvolumes", "metadata: {name: x}\nspec: {volumeMode: Block, "+source+"}")
		if got := strings.Join(volumeWarnings(v), "; "); got != want {
			t.Errorf("%s: %q, want %q", source, got, want)
		}
	}
}

// TestAppArmorAnnotations: what pods said before there were fields.
func TestAppArmorAnnotations(t *testing.T) {
	k := table["pods"]
	const key = "container.apparmor.security.beta.kubernetes.io/"
	at := "metadata.annotations[" + key
	for name, tc := range map[string]struct {
		annotation, spec, container string
		becomes                     string // the container's field
		want                        []string
	}{
		"local":       {annotation: "c: localhost/web", becomes: "Localhost web"},
		"default":     {annotation: "c: runtime/default", becomes: "RuntimeDefault"},
		"unconfined":  {annotation: "c: unconfined", becomes: "Unconfined"},
		"empty":       {annotation: "c: ''"},
		"as the pod":  {annotation: "c: unconfined", spec: "securityContext: {appArmorProfile: {type: Unconfined}}"},
		"both":        {annotation: "c: localhost/web", container: "securityContext: {appArmorProfile: {type: Localhost, localhostProfile: web}}", becomes: "Localhost web"},
		"type":        {annotation: "c: unconfined", container: "securityContext: {appArmorProfile: {type: Localhost, localhostProfile: web}}", becomes: "Localhost web", want: []string{"spec.containers[0].securityContext.appArmorProfile.type: Forbidden: apparmor type in annotation and field must match"}},
		"profile":     {annotation: "c: localhost/x", container: "securityContext: {appArmorProfile: {type: Localhost, localhostProfile: web}}", becomes: "Localhost web", want: []string{"spec.containers[0].securityContext.appArmorProfile.localhostProfile: Forbidden: apparmor profile in annotation and field must match"}},
		"no profile":  {annotation: "c: odd", want: []string{at + `c]: Invalid value: "odd": invalid AppArmor profile name: "odd"`}},
		"nobody":      {annotation: "d: unconfined", want: []string{at + `d]: Invalid value: "d": container not found`}},
		"nameless":    {annotation: "c: localhost/"},
		"not for all": {annotation: "c: unconfined", spec: "securityContext: {appArmorProfile: {type: RuntimeDefault}}", becomes: "Unconfined"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(podWith(tc.spec, tc.container), "namespace: default}", "namespace: default, annotations: {"+key+tc.annotation+"}}", 1)
			pod := parse[*corev1.Pod](t, "pods", text)
			k.PrepareForCreate(pod)
			expect(t, k.Validate(pod), tc.want...)
			got := ""
			if sc := pod.Spec.Containers[0].SecurityContext; sc != nil && sc.AppArmorProfile != nil {
				got = strings.TrimSpace(string(sc.AppArmorProfile.Type) + " " + ptr.Deref(sc.AppArmorProfile.LocalhostProfile, ""))
			}
			if got != tc.becomes {
				t.Errorf("its field says %q, want %q", got, tc.becomes)
			}
			if w := k.Warnings(pod, nil); len(w) != 1 || !strings.HasSuffix(w[0], `]: deprecated since v1.30; use the "appArmorProfile" field instead`) {
				t.Errorf("warnings %q", w)
			}
			if len(tc.want) > 0 {
				return
			}
			pod.ResourceVersion = "1"
			changed := pod.DeepCopy()
			name, _, _ := strings.Cut(tc.annotation, ":")
			delete(changed.Annotations, key+name)
			expect(t, k.ValidateUpdate(changed, pod), at+name+"]: Forbidden: may not remove or update AppArmor annotations")
			expect(t, k.ValidateUpdate(pod, changed), at+name+"]: Forbidden: may not add AppArmor annotations")
		})
	}
}
