package kinds

import (
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

func TestDefaults(t *testing.T) {
	inputs, err := filepath.Glob("testdata/defaults/*.in.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatal("no inputs", err)
	}
	for _, in := range inputs {
		resource := strings.TrimSuffix(filepath.Base(in), ".in.yaml")
		t.Run(resource, func(t *testing.T) {
			text, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			got := asYAML(t, parse[runtime.Object](t, resource, string(text)))
			golden := strings.Replace(in, ".in.", ".golden.", 1)
			if *rewrite {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	const meta = "metadata: {name: x, namespace: default}\n"
	const claim = "{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}"
	template := "template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}"
	for _, tc := range []struct {
		resource, name, object string
		want                   []string
	}{
		{"namespaces", "good", "metadata: {name: a}", nil},
		{"namespaces", "dots", "metadata: {name: a.b}", []string{`metadata.name: Invalid value: "a.b": must not contain dots`}},
		{"namespaces", "namespaced", "metadata: {name: a, namespace: b}", []string{"metadata.namespace: Forbidden: not allowed on this type"}},
		{"configmaps", "good", meta + "data: {a: b}\nbinaryData: {c: eA==}", nil},
		{"configmaps", "key", meta + "data: {'a b': b}", []string{`data[a b]: Invalid value: "a b": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')`}},
		{"configmaps", "key in both", meta + "data: {a: b}\nbinaryData: {a: eA==}", []string{`data[a]: Invalid value: "a": duplicate of key present in binaryData`}},
		{"configmaps", "too large", meta + "data: {a: " + strings.Repeat("x", 1<<20+1) + "}", []string{`[]: Too long: may not be more than 1048576 bytes`}},
		{"secrets", "good", meta + "stringData: {a: b}", nil},
		{"secrets", "tls", meta + "type: kubernetes.io/tls\nstringData: {tls.crt: b}", []string{"data[tls.key]: Required value"}},
		{"secrets", "docker", meta + "type: kubernetes.io/dockerconfigjson\nstringData: {.dockerconfigjson: '{'}", []string{`data[.dockerconfigjson]: Invalid value: "<secret contents redacted>": invalid character…`}},
		{"secrets", "token", meta + "type: kubernetes.io/service-account-token", []string{"metadata.annotations[kubernetes.io/service-account.name]: Required value"}},
		{"serviceaccounts", "good", meta, nil},
		{"nodes", "good", "metadata: {name: node}\nspec: {podCIDR: 10.244.0.0/24, taints: [{key: a, effect: NoSchedule}]}\nstatus: {capacity: {cpu: 1, pods: 110}}", nil},
		{"nodes", "taints", "metadata: {name: node}\nspec: {taints: [{key: a, effect: Odd}, {key: b}, {key: c, effect: NoExecute}, {key: c, effect: NoExecute}]}", []string{
			`spec.taints[0].effect: Unsupported value: "Odd": supported values: "NoSchedule", "PreferNoSchedule", "NoExecute"`, `spec.taints[1].effect: Required value`,
			`spec.taints[3]: Duplicate value: {"key":"c","effect":"NoExecute"}: taints must be unique by key and effect pair`}},
		{"nodes", "range", "metadata: {name: node}\nspec: {podCIDRs: [10.244.0.1/24]}", []string{`spec.podCIDRs[0]: Invalid value: "10.244.0.1/24": must not have bits set beyond the prefix length`}},
		{"services", "good", meta + "spec: {ports: [{port: 80}], selector: {a: b}}", nil},
		{"services", "headless", meta + "spec: {clusterIP: None}", nil},
		{"services", "external", meta + "spec: {type: ExternalName, externalName: a.b.}", nil},
		{"services", "name", "metadata: {name: 1x, namespace: default}\nspec: {ports: [{port: 80}]}", nil},
		{"services", "bad name", "metadata: {name: a.b, namespace: default}\nspec: {ports: [{port: 80}]}", []string{`metadata.name: Invalid value: "a.b": must not contain dots`}},
		{"services", "no ports", meta + "spec: {}", []string{"spec.ports: Required value"}},
		{"services", "ports", meta + "spec: {ports: [{port: 0}, {port: 80, name: a}, {port: 80, name: a}]}", []string{
			"spec.ports[0].name: Required value", "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
			"spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive", `spec.ports[2].name: Duplicate value: "a"`,
			`spec.ports[2]: Duplicate value: {"protocol":"TCP","port":80,"targetPort":0}`}},
		{"services", "type", meta + "spec: {type: Odd, ports: [{port: 80}]}", []string{`spec.type: Unsupported value: "Odd": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort"`}},
		{"services", "node port", meta + "spec: {ports: [{port: 80, nodePort: 30000}]}", []string{"spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"}},
		{"services", "address", meta + "spec: {clusterIP: 1.2, ports: [{port: 80}]}", []string{`spec.clusterIPs[0]: Invalid value: "1.2": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)`}},
		{"services", "external name", meta + "spec: {type: ExternalName}", []string{"spec.externalName: Required value"}},
		{"services", "affinity", meta + "spec: {ports: [{port: 80}], sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}}", []string{"spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 0: must be greater than 0 and less than 86400"}},
		{"services", "loopback", meta + "spec: {ports: [{port: 80}], externalIPs: [127.0.0.1]}", []string{`spec.externalIPs[0]: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)`}},
		{"services", "traffic", meta + "spec: {ports: [{port: 80}], externalTrafficPolicy: Local, internalTrafficPolicy: Odd}", []string{
			`spec.externalTrafficPolicy: Invalid value: "Local": may only be set for externally-accessible services`,
			`spec.internalTrafficPolicy: Unsupported value: "Odd": supported values: "Cluster", "Local"`}},
		{"endpoints", "good", meta + "subsets: [{addresses: [{ip: 10.0.0.1}], ports: [{port: 80}]}]", nil},
		{"endpoints", "bad", meta + "subsets: [{}, {addresses: [{ip: 127.0.0.1}], ports: [{port: 0}, {port: 1, name: a}]}]", []string{
			"subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`",
			`subsets[1].addresses[0].ip: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)`,
			"subsets[1].ports[0].name: Required value", "subsets[1].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"}},
		{"endpointslices.discovery.k8s.io", "good", meta + "addressType: IPv4\nendpoints: [{addresses: [10.0.0.1]}]\nports: [{port: 80}]", nil},
		{"endpointslices.discovery.k8s.io", "bad", meta + "addressType: IPv6\nendpoints: [{addresses: [10.0.0.1]}, {addresses: []}]\nports: [{}, {}]", []string{
			`endpoints[0].addresses[0]: Invalid value: "10.0.0.1": must be an IPv6 address`, "endpoints[1].addresses: Required value: must contain at least 1 address", `ports[1].name: Duplicate value: ""`}},
		{"deployments.apps", "good", meta + "spec: {selector: {matchLabels: {a: b}}, " + template + "}", nil},
		{"deployments.apps", "nothing", meta + "spec: {}", []string{"spec.selector: Required value", "spec.template.spec.containers: Required value"}},
		{"deployments.apps", "selector", meta + "spec: {selector: {matchLabels: {a: c}}, " + template + "}", []string{"spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`"}},
		{"deployments.apps", "empty selector", meta + "spec: {selector: {}, " + template + "}", []string{"spec.selector: Invalid value: {}: empty selector is invalid for deployment"}},
		{"deployments.apps", "numbers", meta + "spec: {replicas: -1, progressDeadlineSeconds: 5, minReadySeconds: 5, selector: {matchLabels: {a: b}}, strategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 0%}}, " + template + "}", []string{
			"spec.replicas: Invalid value: -1: must be greater than or equal to 0",
			"spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
			"spec.progressDeadlineSeconds: Invalid value: 5: must be greater than minReadySeconds"}},
		{"deployments.apps", "percent", meta + "spec: {selector: {matchLabels: {a: b}}, strategy: {rollingUpdate: {maxSurge: lots, maxUnavailable: 101%}}, " + template + "}", []string{
			`spec.strategy.rollingUpdate.maxSurge: Invalid value: "lots": a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')`,
			`spec.strategy.rollingUpdate.maxUnavailable: Invalid value: "101%": must not be greater than 100%`}},
		{"deployments.apps", "recreate", meta + "spec: {selector: {matchLabels: {a: b}}, strategy: {type: Recreate, rollingUpdate: {}}, " + template + "}", []string{"spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"}},
		{"deployments.apps", "restart", meta + "spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {restartPolicy: Never, containers: [{name: c}]}}}", []string{
			"spec.template.spec.containers[0].image: Required value", `spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"`}},
		{"replicasets.apps", "good", meta + "spec: {selector: {matchLabels: {a: b}}, " + template + "}", nil},
		{"replicasets.apps", "selector", meta + "spec: {selector: {}, " + template + "}", []string{"spec.selector: Invalid value: {}: empty selector is invalid for ReplicaSet"}},
		{"statefulsets.apps", "good", meta + "spec: {selector: {matchLabels: {a: b}}, serviceName: s, volumeClaimTemplates: [" + claim + "], template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i, volumeMounts: [{name: data, mountPath: /data}]}]}}}", nil},
		{"statefulsets.apps", "nothing", meta + "spec: {}", []string{"spec.selector: Required value", "spec.template.spec.containers: Required value"}},
		{"statefulsets.apps", "policies", meta + "spec: {podManagementPolicy: Odd, persistentVolumeClaimRetentionPolicy: {whenScaled: Keep}, updateStrategy: {type: Recreate}, selector: {matchLabels: {a: b}}, " + template + "}", []string{
			`spec.podManagementPolicy: Unsupported value: "Odd": supported values: "OrderedReady", "Parallel"`,
			`spec.updateStrategy: Invalid value: {"type":"Recreate"}: must be 'RollingUpdate' or 'OnDelete'`,
			`spec.persistentVolumeClaimRetentionPolicy.whenScaled: Unsupported value: "Keep": supported values: "Retain", "Delete"`}},
		{"statefulsets.apps", "numbers", meta + "spec: {replicas: -1, ordinals: {start: -1}, minReadySeconds: -1, revisionHistoryLimit: -1, updateStrategy: {rollingUpdate: {partition: -1, maxUnavailable: 0}}, selector: {matchLabels: {a: b}}, " + template + "}", []string{
			"spec.updateStrategy.rollingUpdate.partition: Invalid value: -1: must be greater than or equal to 0",
			"spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: 0: cannot be 0",
			"spec.replicas: Invalid value: -1: must be greater than or equal to 0", "spec.minReadySeconds: Invalid value: -1: must be greater than or equal to 0",
			"spec.ordinals.start: Invalid value: -1: must be greater than or equal to 0", "spec.revisionHistoryLimit: Invalid value: -1: must be greater than or equal to 0"}},
		{"statefulsets.apps", "on delete", meta + "spec: {updateStrategy: {type: OnDelete, rollingUpdate: {partition: 1}}, selector: {matchLabels: {a: b}}, " + template + "}", []string{
			`spec.updateStrategy.rollingUpdate: Invalid value: {"partition":1}: only allowed for updateStrategy 'RollingUpdate'`}},
		{"statefulsets.apps", "claims", meta + "spec: {selector: {matchLabels: {a: b}}, volumeClaimTemplates: [{metadata: {name: a.b}, spec: {}}], " + template + "}", []string{
			`spec.volumeClaimTemplates[0].metadata.name: Invalid value: "a.b": …`, "spec.volumeClaimTemplates[0].spec.accessModes: Required value: at least 1 access mode is required",
			"spec.volumeClaimTemplates[0].spec.resources[storage]: Required value", `spec.template.spec.volumes[0].name: Invalid value: "a.b"…`}},
		{"statefulsets.apps", "restart", meta + "spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {restartPolicy: Never, activeDeadlineSeconds: 3, containers: [{name: c, image: i}]}}}", []string{
			`spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"`, "spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in StatefulSet is not Supported"}},
		{"controllerrevisions.apps", "good", meta + "data: {spec: {}}\nrevision: 1", nil},
		{"controllerrevisions.apps", "bad", meta + "revision: -1", []string{"data: Required value: data is mandatory", "revision: Invalid value: -1: must be greater than or equal to 0"}},
		{"persistentvolumeclaims", "good", meta + "spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}", nil},
		{"persistentvolumeclaims", "nothing", meta + "spec: {}", []string{"spec.accessModes: Required value: at least 1 access mode is required", "spec.resources[storage]: Required value"}},
		{"persistentvolumeclaims", "bad", meta + "spec: {accessModes: [ReadWriteOncePod, Odd], storageClassName: A, volumeMode: Odd, resources: {requests: {storage: 0}}, dataSource: {name: x, kind: Pod}}", []string{
			`spec.accessModes: Unsupported value: "Odd": supported values: "ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"`,
			"spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes", `spec.resources[storage]: Invalid value: "0": must be greater than zero`,
			`spec.storageClassName: Invalid value: "A": …`, `spec.volumeMode: Unsupported value: "Odd": supported values: "Block", "Filesystem"`,
			`spec.dataSource: Invalid value: "Pod": must be 'PersistentVolumeClaim' when referencing the default apiGroup`,
			`spec.dataSourceRef: Invalid value: "Pod": must be 'PersistentVolumeClaim' when referencing the default apiGroup`}},
		{"persistentvolumes", "good", "metadata: {name: x}\nspec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], hostPath: {path: /x}}", nil},
		{"persistentvolumes", "local", "metadata: {name: x}\nspec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], local: {path: /x}, nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Exists}]}]}}}", nil},
		{"persistentvolumes", "csi", "metadata: {name: x}\nspec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], csi: {driver: a.b, volumeHandle: c}}", nil},
		{"persistentvolumes", "nothing", "metadata: {name: x}\nspec: {}", []string{"spec.accessModes: Required value", "spec.capacity: Required value", "spec: Required value: must specify a volume type"}},
		{"persistentvolumes", "bad", "metadata: {name: x}\nspec: {capacity: {cpu: 1}, accessModes: [ReadWriteOnce], persistentVolumeReclaimPolicy: Odd, nodeAffinity: {}, local: {path: ../x}, nfs: {}}", []string{
			`spec.capacity: Unsupported value: {"cpu":"1"}: supported values: "storage"`, `spec.persistentVolumeReclaimPolicy: Unsupported value: "Odd": supported values: "Delete", "Recycle", "Retain"`,
			"spec.nodeAffinity.required: Required value: must specify required node constraints", "spec.local: Forbidden: may not specify more than 1 volume type",
			"spec.nfs.server: Required value", "spec.nfs.path: Required value"}},
		{"persistentvolumes", "local without a node", "metadata: {name: x}\nspec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], local: {path: ../x}}", []string{
			`spec.local.path: Invalid value: "../x": must not contain '..'`, "spec.nodeAffinity: Required value: Local volume requires node affinity"}},
		{"persistentvolumes", "recycle root", "metadata: {name: x}\nspec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], hostPath: {path: /}, persistentVolumeReclaimPolicy: Recycle}", []string{
			"spec.persistentVolumeReclaimPolicy: Forbidden: may not be 'recycle' for a hostPath mount of '/'"}},
		{"storageclasses.storage.k8s.io", "good", "metadata: {name: x}\nprovisioner: conclave.io/local-path", nil},
		{"storageclasses.storage.k8s.io", "bad", "metadata: {name: x}\nreclaimPolicy: Recycle\nvolumeBindingMode: Odd\nparameters: {'': a}\nallowedTopologies: [{matchLabelExpressions: [{key: a}, {key: a, values: [b]}]}]", []string{
			"provisioner: Required value", `parameters: Invalid value: "": field can not be empty.`, `reclaimPolicy: Unsupported value: "Recycle": supported values: "Delete", "Retain"`,
			`volumeBindingMode: Unsupported value: "Odd": supported values: "Immediate", "WaitForFirstConsumer"`,
			"allowedTopologies[0].matchLabelExpressions[0].values: Required value", `allowedTopologies[0].matchLabelExpressions[1].key: Duplicate value: "a"`}},
		{"csidrivers.storage.k8s.io", "good", "metadata: {name: csi.example.com}\nspec: {tokenRequests: [{audience: a}, {audience: ''}], volumeLifecycleModes: [Ephemeral, Persistent]}", nil},
		{"csidrivers.storage.k8s.io", "bad", "metadata: {name: csi.example.com}\nspec: {fsGroupPolicy: Odd, volumeLifecycleModes: [Odd], tokenRequests: [{audience: a, expirationSeconds: 5}, {audience: a}], nodeAllocatableUpdatePeriodSeconds: 1}", []string{
			`spec.fsGroupPolicy: Unsupported value: "Odd": supported values: "File", "None", "ReadWriteOnceWithFSType"`, `spec.volumeLifecycleModes[0]: Unsupported value: "Odd": supported values: "Ephemeral", "Persistent"`,
			"spec.tokenRequests[0].expirationSeconds: Invalid value: 5: may not specify a duration less than 10 minutes", `spec.tokenRequests[1].audience: Duplicate value: "a"`,
			"spec.nodeAllocatableUpdatePeriodSeconds: Invalid value: 1: must be greater than or equal to 10 seconds"}},
		{"csinodes.storage.k8s.io", "good", "metadata: {name: x}\nspec: {drivers: [{name: a.b, nodeID: n, topologyKeys: [a.b/zone], allocatable: {count: 3}}]}", nil},
		{"csinodes.storage.k8s.io", "bad", "metadata: {name: x}\nspec: {drivers: [{name: a.b, nodeID: '', topologyKeys: [k, k]}, {name: a.b, nodeID: n, topologyKeys: ['a b'], allocatable: {count: -1}}]}", []string{
			"spec.drivers[0].nodeID: Required value", `spec.drivers[0]: Duplicate value: "k"`, `spec.drivers[1].name: Duplicate value: "a.b"`,
			"spec.drivers[1].allocatable.count: Invalid value: -1: must be greater than or equal to 0", `spec.drivers[1]: Invalid value: "a b": name part must consist of…`}},
		{"csistoragecapacities.storage.k8s.io", "good", meta + "storageClassName: fast\ncapacity: 1Gi\nnodeTopology: {matchLabels: {a: b}}", nil},
		{"csistoragecapacities.storage.k8s.io", "bad", meta + "storageClassName: ''\ncapacity: -1", []string{"storageClassName: Required value", `capacity: Invalid value: "-1": must be greater than or equal to 0`}},
		{"volumeattributesclasses.storage.k8s.io", "good", "metadata: {name: gold}\ndriverName: a.b\nparameters: {iops: '3'}", nil},
		{"volumeattributesclasses.storage.k8s.io", "bad", "metadata: {name: gold}\ndriverName: ''", []string{"driverName: Required value", "parameters: Required value: must contain at least one key/value pair"}},
		{"volumeattachments.storage.k8s.io", "good", "metadata: {name: x}\nspec: {attacher: a.b, nodeName: n, source: {persistentVolumeName: v}}", nil},
		{"volumeattachments.storage.k8s.io", "bad", "metadata: {name: x}\nspec: {nodeName: n}", []string{
			"spec.attacher: Required value", "spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName"}},
		{"leases.coordination.k8s.io", "good", meta + "spec: {holderIdentity: a, leaseDurationSeconds: 15}", nil},
		{"leases.coordination.k8s.io", "bad", meta + "spec: {leaseDurationSeconds: 0, leaseTransitions: -1}", []string{
			"spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0", "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0"}},
		{"events", "good", meta + "involvedObject: {namespace: default}", nil},
		{"events", "elsewhere", meta + "involvedObject: {namespace: other}", []string{`involvedObject.namespace: Invalid value: "other": does not match event.namespace`}},
		{"events", "of a node", "metadata: {name: x, namespace: other}\ninvolvedObject: {kind: Node}", []string{`involvedObject.namespace: Invalid value: "": does not match event.namespace`}},
		{"events.events.k8s.io", "good", meta + "regarding: {namespace: default}\neventTime: '2026-01-01T00:00:00.000000Z'\ntype: Normal\nreason: r\naction: a\nreportingController: a/b\nreportingInstance: i", nil},
		{"events.events.k8s.io", "bad", meta + "regarding: {namespace: default}\ntype: Odd\ndeprecatedCount: 3", []string{
			"eventTime: Required value", `type: Invalid value: "": has invalid value: Odd`, "deprecatedCount: Invalid value: 3: needs to be unset"}},
		{"ipaddresses.networking.k8s.io", "good", "metadata: {name: 10.96.0.1}\nspec: {parentRef: {resource: services, name: kubernetes, namespace: default}}", nil},
		{"ipaddresses.networking.k8s.io", "bad", "metadata: {name: 10.96.0.01}\nspec: {parentRef: {name: a/b}}", []string{
			`metadata.name: Invalid value: "10.96.0.01": must not have leading 0s`, "spec.parentRef.resource: Required value", `spec.parentRef.name: Invalid value: "a/b": may not contain '/'`}},
		{"networkpolicies.networking.k8s.io", "good", meta + "spec: {podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {}, namespaceSelector: {}}, {ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}], ports: [{protocol: TCP, port: 80, endPort: 90}, {protocol: SCTP, port: web}]}]}", nil},
		{"networkpolicies.networking.k8s.io", "peers", meta + "spec: {podSelector: {matchLabels: {'a b': c}}, policyTypes: [Ingress], ingress: [{from: [{}, {ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16, 10.0.0.0/8, x]}, podSelector: {}}, {ipBlock: {}}]}]}", []string{
			`spec.podSelector.matchLabels: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')`,
			"spec.ingress[0].from[0]: Required value: must specify a peer",
			"spec.ingress[0].from[1].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
			"spec.ingress[0].from[1].ipBlock.except[1]: Invalid value: \"10.0.0.0/8\": must be a strict subset of `cidr`",
			`spec.ingress[0].from[1].ipBlock.except[2]: Invalid value: "x": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)`,
			"spec.ingress[0].from[1]: Forbidden: may not specify both ipBlock and another peer",
			"spec.ingress[0].from[2].ipBlock.cidr: Required value"}},
		{"networkpolicies.networking.k8s.io", "ports", meta + "spec: {podSelector: {}, policyTypes: [Egress, All], egress: [{ports: [{protocol: ICMP, port: 0}, {protocol: TCP, port: 90, endPort: 80}, {protocol: TCP, port: Web, endPort: 80}, {protocol: TCP, endPort: 80}]}]}", []string{
			`spec.egress[0].ports[0].protocol: Unsupported value: "ICMP": supported values: "TCP", "UDP", "SCTP"`,
			"spec.egress[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
			"spec.egress[0].ports[1].endPort: Invalid value: 90: must be greater than or equal to `port`",
			"spec.egress[0].ports[2].endPort: Invalid value: 80: may not be specified when `port` is non-numeric",
			`spec.egress[0].ports[2].port: Invalid value: "Web": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)`,
			"spec.egress[0].ports[3].endPort: Invalid value: 80: may not be specified when `port` is not specified",
			`spec.policyTypes[1]: Unsupported value: "All": supported values: "Egress", "Ingress"`}},
		{"networkpolicies.networking.k8s.io", "types", meta + "spec: {podSelector: {}, policyTypes: [Egress, Ingress, Egress]}", []string{
			`spec.policyTypes: Invalid value: ["Egress","Ingress","Egress"]: may not specify more than two policyTypes`}},
	} {
		t.Run(tc.resource+"/"+tc.name, func(t *testing.T) {
			k := table[tc.resource]
			obj := parse[runtime.Object](t, tc.resource, tc.object)
			k.PrepareForCreate(obj)
			expect(t, k.Validate(obj), tc.want...)
		})
	}
}

func TestValidateUpdate(t *testing.T) {
	const meta = "metadata: {name: x, namespace: default, resourceVersion: '1'}\n"
	deployment := func(selector, more string) string {
		return meta + "spec: {selector: {matchLabels: " + selector + "}, " + more + "template: {metadata: {labels: {a: b, c: d}}, spec: {containers: [{name: c, image: i}]}}}"
	}
	statefulSet := func(more string) string {
		return meta + "spec: {selector: {matchLabels: {a: b}}, " + more + ", template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}"
	}
	claim := func(size string) string {
		return "accessModes: [ReadWriteOnce], resources: {requests: {storage: " + size + "}}"
	}
	volume := func(more string) string {
		return "metadata: {name: x, resourceVersion: '1'}\nspec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], " + more + "}"
	}
	for _, tc := range []struct {
		resource, name, old, now string
		want                     []string
	}{
		{"configmaps", "immutable", meta + "immutable: true\ndata: {a: b}", meta + "data: {a: c}", []string{
			"immutable: Forbidden: field is immutable when `immutable` is set", "data: Forbidden: field is immutable when `immutable` is set"}},
		{"secrets", "type", meta + "type: Opaque", meta + "type: other/type", []string{`type: Invalid value: "other/type": field is immutable`}},
		{"secrets", "immutable", meta + "immutable: true\nstringData: {a: b}", meta + "immutable: true", []string{"data: Forbidden: field is immutable when `immutable` is set"}},
		{"nodes", "range once", "metadata: {name: node, resourceVersion: '1'}", "metadata: {name: node, resourceVersion: '1'}\nspec: {podCIDR: 10.244.0.0/24}", nil},
		{"nodes", "range twice", "metadata: {name: node, resourceVersion: '1'}\nspec: {podCIDR: 10.244.1.0/24}", "metadata: {name: node, resourceVersion: '1'}\nspec: {podCIDR: 10.244.0.0/24}",
			[]string{`spec.podCIDRs: Forbidden: node updates may not change podCIDR except from "" to valid`}},
		{"services", "address kept", meta + "spec: {clusterIP: 10.96.0.5, clusterIPs: [10.96.0.5], ports: [{port: 80}]}", meta + "spec: {ports: [{port: 81}]}", nil},
		{"services", "address changed", meta + "spec: {clusterIP: 10.96.0.5, clusterIPs: [10.96.0.5], ports: [{port: 80}]}", meta + "spec: {clusterIP: 10.96.0.6, ports: [{port: 80}]}",
			[]string{`spec.clusterIPs[0]: Invalid value: ["10.96.0.6"]: may not change once set`}},
		{"services", "to external name", meta + "spec: {clusterIP: 10.96.0.5, clusterIPs: [10.96.0.5], ports: [{port: 80}]}", meta + "spec: {type: ExternalName, externalName: a.b, clusterIP: 10.96.0.5, clusterIPs: [10.96.0.5], ports: [{port: 80}]}", nil},
		{"services", "from node port", meta + "spec: {type: NodePort, clusterIP: 10.96.0.5, clusterIPs: [10.96.0.5], ports: [{port: 80, nodePort: 30001}]}",
			meta + "spec: {type: ClusterIP, externalTrafficPolicy: Cluster, clusterIP: 10.96.0.5, clusterIPs: [10.96.0.5], ports: [{port: 80, nodePort: 30001}]}", nil},
		{"deployments.apps", "selector", deployment("{a: b}", ""), deployment("{c: d}", ""), []string{`spec.selector: Invalid value: {"matchLabels":{"c":"d"}}: field is immutable`}},
		{"deployments.apps", "replicas", deployment("{a: b}", ""), deployment("{a: b}", "replicas: 3, "), nil},
		{"replicasets.apps", "selector", deployment("{a: b}", ""), deployment("{c: d}", ""), []string{`spec.selector: Invalid value: {"matchLabels":{"c":"d"}}: field is immutable`}},
		{"statefulsets.apps", "what may change", statefulSet("serviceName: s"), statefulSet("serviceName: s, replicas: 5, ordinals: {start: 2}, minReadySeconds: 3, revisionHistoryLimit: 1, updateStrategy: {type: OnDelete}, persistentVolumeClaimRetentionPolicy: {whenScaled: Delete}"), nil},
		{"statefulsets.apps", "what may not", statefulSet("serviceName: s"), statefulSet("serviceName: t"), []string{
			"spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"}},
		{"controllerrevisions.apps", "data", meta + "data: {a: 1}", meta + "data: {a: 2}\nrevision: 3", []string{`data: Invalid value: {"a":2}: field is immutable`}},
		{"persistentvolumeclaims", "binding", meta + "spec: {" + claim("1Gi") + "}", meta + "spec: {volumeName: v, storageClassName: c, " + claim("1Gi") + "}", nil},
		{"persistentvolumeclaims", "another volume", meta + "spec: {volumeName: u, " + claim("1Gi") + "}", meta + "spec: {volumeName: v, " + claim("1Gi") + "}", []string{
			"spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"}},
		{"persistentvolumeclaims", "growth", meta + "spec: {" + claim("1Gi") + "}\nstatus: {phase: Bound, capacity: {storage: 1Gi}}", meta + "spec: {" + claim("2Gi") + "}", nil},
		{"persistentvolumeclaims", "growth of an unbound one", meta + "spec: {" + claim("1Gi") + "}", meta + "spec: {" + claim("2Gi") + "}", []string{
			"spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"}},
		{"persistentvolumeclaims", "shrinking", meta + "spec: {" + claim("2Gi") + "}\nstatus: {phase: Bound, capacity: {storage: 2Gi}}", meta + "spec: {" + claim("1Gi") + "}", []string{
			"spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"}},
		{"persistentvolumes", "source", volume("hostPath: {path: /a}"), volume("hostPath: {path: /b}"), []string{"spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation"}},
		{"persistentvolumes", "claim", volume("hostPath: {path: /a}"), volume("hostPath: {path: /a}, claimRef: {name: c, namespace: default}, persistentVolumeReclaimPolicy: Delete"), nil},
		{"storageclasses.storage.k8s.io", "fixed", "metadata: {name: x, resourceVersion: '1'}\nprovisioner: a/b", "metadata: {name: x, resourceVersion: '1'}\nprovisioner: a/c\nreclaimPolicy: Retain\nparameters: {a: b}\nvolumeBindingMode: WaitForFirstConsumer", []string{
			"parameters: Forbidden: updates to parameters are forbidden.", "provisioner: Forbidden: updates to provisioner are forbidden.", "reclaimPolicy: Forbidden: updates to reclaimPolicy are forbidden.",
			`volumeBindingMode: Invalid value: "WaitForFirstConsumer": field is immutable`}},
		{"storageclasses.storage.k8s.io", "free", "metadata: {name: x, resourceVersion: '1'}\nprovisioner: a/b", "metadata: {name: x, resourceVersion: '1', annotations: {storageclass.kubernetes.io/is-default-class: 'true'}}\nprovisioner: a/b\nallowVolumeExpansion: true", nil},
		{"csidrivers.storage.k8s.io", "fixed", "metadata: {name: x, resourceVersion: '1'}\nspec: {}", "metadata: {name: x, resourceVersion: '1'}\nspec: {attachRequired: false, podInfoOnMount: true, volumeLifecycleModes: [Ephemeral]}", []string{
			"spec.attachedRequired: Invalid value: false: field is immutable", `spec.volumeLifecycleModes: Invalid value: ["Ephemeral"]: field is immutable`}},
		{"csinodes.storage.k8s.io", "fixed", "metadata: {name: x, resourceVersion: '1'}\nspec: {drivers: [{name: a, nodeID: n, topologyKeys: []}, {name: gone, nodeID: n, topologyKeys: []}]}",
			"metadata: {name: x, resourceVersion: '1'}\nspec: {drivers: [{name: a, nodeID: m, topologyKeys: []}, {name: b, nodeID: n, topologyKeys: []}]}", []string{"spec.drivers[0]: Invalid value: …"}},
		{"volumeattributesclasses.storage.k8s.io", "fixed", "metadata: {name: x, resourceVersion: '1'}\ndriverName: a\nparameters: {a: b}", "metadata: {name: x, resourceVersion: '1'}\ndriverName: b\nparameters: {a: b}", []string{
			`driverName: Invalid value: "b": field is immutable`}},
		{"volumeattachments.storage.k8s.io", "spec", "metadata: {name: x, resourceVersion: '1'}\nspec: {attacher: a, nodeName: n, source: {persistentVolumeName: v}}", "metadata: {name: x, resourceVersion: '1'}\nspec: {attacher: a, nodeName: m, source: {persistentVolumeName: v}}", []string{"spec: Invalid value: …"}},
		{"endpointslices.discovery.k8s.io", "type", meta + "addressType: IPv4\nendpoints: []", meta + "addressType: IPv6\nendpoints: []", []string{`addressType: Invalid value: "IPv6": field is immutable`}},
		{"ipaddresses.networking.k8s.io", "parent", "metadata: {name: 10.96.0.1, resourceVersion: '1'}\nspec: {parentRef: {resource: services, name: a}}", "metadata: {name: 10.96.0.1, resourceVersion: '1'}\nspec: {parentRef: {resource: services, name: b}}",
			[]string{`spec.parentRef: Invalid value: {"resource":"services","name":"b"}: field is immutable`}},
		{"leases.coordination.k8s.io", "version", meta + "spec: {}", "metadata: {name: x, namespace: default}\nspec: {}", []string{`metadata.resourceVersion: Invalid value: "": must be specified for an update`}},
	} {
		t.Run(tc.resource+"/"+tc.name, func(t *testing.T) {
			k := table[tc.resource]
			old, now := parse[runtime.Object](t, tc.resource, tc.old), parse[runtime.Object](t, tc.resource, tc.now)
			k.PrepareForUpdate(now, old)
			expect(t, k.ValidateUpdate(now, old), tc.want...)
		})
	}
}

func TestDeploymentGeneration(t *testing.T) {
	k := table["deployments.apps"]
	old := parse[*appsv1.Deployment](t, "deployments.apps", "metadata: {name: x}\nspec: {template: {spec: {containers: [{name: c, image: i}]}}}")
	k.PrepareForCreate(old)
	old.Status.Replicas = 5
	for name, tc := range map[string]struct {
		change func(d *appsv1.Deployment)
		want   int64
	}{
		"nothing":    {func(*appsv1.Deployment) {}, 1},
		"labels":     {func(d *appsv1.Deployment) { d.Labels = map[string]string{"a": "b"} }, 1},
		"annotation": {func(d *appsv1.Deployment) { d.Annotations = map[string]string{"a": "b"} }, 2},
		"spec":       {func(d *appsv1.Deployment) { d.Spec.Paused = true }, 2},
		"status":     {func(d *appsv1.Deployment) { d.Status.Replicas = 7 }, 1},
	} {
		d := old.DeepCopy()
		tc.change(d)
		k.PrepareForUpdate(d, old)
		if d.Generation != tc.want || d.Status.Replicas != 5 {
			t.Errorf("%s: generation %d, want %d; replicas %d", name, d.Generation, tc.want, d.Status.Replicas)
		}
	}
	d := old.DeepCopy()
	d.Status.Replicas, d.Spec.Paused = 7, true
	k.PrepareForStatusUpdate(d, old)
	if d.Status.Replicas != 7 || d.Spec.Paused || d.Generation != 1 {
		t.Errorf("status update gave %+v", d)
	}
}

func TestScale(t *testing.T) {
	for _, resource := range []string{"deployments.apps", "replicasets.apps", "statefulsets.apps"} {
		k := table[resource]
		obj := parse[runtime.Object](t, resource, "metadata: {name: x, namespace: ns, uid: u, resourceVersion: '7'}\nspec: {replicas: 3, selector: {matchLabels: {a: b}}, template: {spec: {}}}\nstatus: {replicas: 2}")
		s, err := k.GetScale(obj)
		if err != nil {
			t.Fatal(err)
		}
		if s.Name != "x" || s.Namespace != "ns" || s.UID != "u" || s.ResourceVersion != "7" || s.Spec.Replicas != 3 || s.Status.Replicas != 2 || s.Status.Selector != "a=b" || s.Kind != "Scale" {
			t.Errorf("%s: scale is %+v", resource, s)
		}
		s.Spec.Replicas = 9
		if err := k.SetScale(obj, s); err != nil {
			t.Error(err)
		}
		if s, err := k.GetScale(obj); err != nil || s.Spec.Replicas != 9 {
			t.Errorf("%s: scaled to %d: %v", resource, s.Spec.Replicas, err)
		}
	}
}

func TestEventConversion(t *testing.T) {
	k := table["events.events.k8s.io"]
	for seed := range int64(50) {
		core := &corev1.Event{}
		filler(seed).Fill(core)
		core.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Event"}
		e, err := k.FromStored(core)
		if err != nil {
			t.Fatal(err)
		}
		if gvk := e.GetObjectKind().GroupVersionKind(); gvk != k.GVK {
			t.Fatalf("converted to %s", gvk)
		}
		back, err := k.ToStored(e)
		if err != nil {
			t.Fatal(err)
		}
		if !equality.Semantic.DeepEqual(back, core) {
			t.Fatalf("seed %d: there and back\n%s\nbecame\n%s", seed, asYAML(t, core), asYAML(t, back))
		}
	}
	if _, err := k.FromStored(&corev1.Pod{}); err == nil {
		t.Error("a pod became an event")
	}
	if _, err := k.ToStored(&eventsv1.EventList{}); err == nil {
		t.Error("a list became an event")
	}
}

func TestCells(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	const meta = "metadata: {name: x, namespace: default, creationTimestamp: '2026-01-01T11:50:00Z'}\n"
	for _, tc := range []struct {
		resource, name, object string
		want                   []any
	}{
		{"namespaces", "", meta + "status: {phase: Active}", []any{"x", "Active", "10m"}},
		{"nodes", "ready", meta + "status: {conditions: [{type: Ready, status: 'True'}], addresses: [{type: InternalIP, address: 10.0.0.1}], nodeInfo: {kubeletVersion: v1, osImage: Debian, kernelVersion: '6', containerRuntimeVersion: 'conclave://1'}}",
			[]any{"x", "Ready", "<none>", "10m", "v1", "10.0.0.1", "<none>", "Debian", "6", "conclave://1"}},
		{"nodes", "cordoned", "metadata: {name: x, labels: {node-role.kubernetes.io/control-plane: '', node-role.kubernetes.io/b: ''}}\nspec: {unschedulable: true}",
			[]any{"x", "Unknown,SchedulingDisabled", "b,control-plane", "<unknown>", "", "<none>", "<none>", "<unknown>", "<unknown>", "<unknown>"}},
		{"services", "cluster", meta + "spec: {clusterIP: 10.96.0.1, ports: [{port: 80}, {port: 53, protocol: UDP}], selector: {a: b}}", []any{"x", "ClusterIP", "10.96.0.1", "<none>", "80/TCP,53/UDP", "10m", "a=b"}},
		{"services", "node port", meta + "spec: {type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30000}]}", []any{"x", "LoadBalancer", "10.96.0.1", "<pending>", "80:30000/TCP", "10m", "<none>"}},
		{"services", "external", meta + "spec: {type: ExternalName, externalName: a.b}", []any{"x", "ExternalName", "<none>", "a.b", "<none>", "10m", "<none>"}},
		{"secrets", "", meta + "stringData: {a: b}", []any{"x", "Opaque", int64(1), "10m"}},
		{"configmaps", "", meta + "data: {a: b}\nbinaryData: {c: eA==}", []any{"x", int64(2), "10m"}},
		{"serviceaccounts", "", meta, []any{"x", int64(0), "10m"}},
		{"endpoints", "", meta + "subsets: [{addresses: [{ip: 1.1.1.1}, {ip: 1.1.1.2}], ports: [{name: a, port: 1}, {name: b, port: 2}]}]", []any{"x", "1.1.1.1:1,1.1.1.1:2,1.1.1.2:1 + 1 more...", "10m"}},
		{"endpoints", "none", meta, []any{"x", "<none>", "10m"}},
		{"endpointslices.discovery.k8s.io", "", meta + "addressType: IPv4\nendpoints: [{addresses: [1.1.1.1]}]\nports: [{port: 80}]", []any{"x", "IPv4", "80", "1.1.1.1", "10m"}},
		{"deployments.apps", "", meta + "spec: {replicas: 3, selector: {matchLabels: {a: b}}, template: {spec: {containers: [{name: c, image: i}, {name: d, image: j}]}}}\nstatus: {readyReplicas: 1, updatedReplicas: 2, availableReplicas: 1}",
			[]any{"x", "1/3", int64(2), int64(1), "10m", "c,d", "i,j", "a=b"}},
		{"replicasets.apps", "", meta + "spec: {replicas: 3, selector: {matchLabels: {a: b}}, template: {spec: {containers: [{name: c, image: i}]}}}\nstatus: {replicas: 2, readyReplicas: 1}",
			[]any{"x", int64(3), int64(2), int64(1), "10m", "c", "i", "a=b"}},
		{"statefulsets.apps", "", meta + "spec: {replicas: 3, selector: {matchLabels: {a: b}}, template: {spec: {containers: [{name: c, image: i}]}}}\nstatus: {readyReplicas: 1}", []any{"x", "1/3", "10m", "c", "i"}},
		{"controllerrevisions.apps", "", "metadata: {name: x, creationTimestamp: '2026-01-01T11:50:00Z', ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: web, uid: u, controller: true}]}\nrevision: 3", []any{"x", "statefulset.apps/web", int64(3), "10m"}},
		{"persistentvolumeclaims", "pending", meta + "spec: {accessModes: [ReadWriteOnce], storageClassName: fast, resources: {requests: {storage: 1Gi}}}", []any{"x", "Pending", "", "", "", "fast", "<unset>", "10m", "Filesystem"}},
		{"persistentvolumeclaims", "bound", meta + "spec: {volumeName: v}\nstatus: {phase: Bound, capacity: {storage: 1Gi}, accessModes: [ReadWriteMany, ReadWriteOnce]}", []any{"x", "Bound", "v", "1Gi", "RWO,RWX", "", "<unset>", "10m", "Filesystem"}},
		{"persistentvolumes", "", meta + "spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOncePod], storageClassName: fast, claimRef: {namespace: ns, name: c}}\nstatus: {phase: Bound}",
			[]any{"x", "1Gi", "RWOP", "Retain", "Bound", "ns/c", "fast", "<unset>", "", "10m", "Filesystem"}},
		{"storageclasses.storage.k8s.io", "", "metadata: {name: x, creationTimestamp: '2026-01-01T11:50:00Z', annotations: {storageclass.kubernetes.io/is-default-class: 'true'}}\nprovisioner: a/b", []any{"x (default)", "a/b", "Delete", "Immediate", false, "10m"}},
		{"csidrivers.storage.k8s.io", "", "metadata: {name: x, creationTimestamp: '2026-01-01T11:50:00Z'}\nspec: {attachRequired: false, tokenRequests: [{audience: a}, {audience: b}]}", []any{"x", false, false, false, "a,b", false, "Persistent", "10m"}},
		{"csinodes.storage.k8s.io", "", "metadata: {name: x, creationTimestamp: '2026-01-01T11:50:00Z'}\nspec: {drivers: [{name: a, nodeID: n, topologyKeys: []}]}", []any{"x", int64(1), "10m"}},
		{"csistoragecapacities.storage.k8s.io", "", meta + "storageClassName: fast", []any{"x", "fast", "<unset>"}},
		{"volumeattributesclasses.storage.k8s.io", "", "metadata: {name: x, creationTimestamp: '2026-01-01T11:50:00Z'}\ndriverName: a", []any{"x", "a", "10m"}},
		{"volumeattachments.storage.k8s.io", "", meta + "spec: {attacher: a, nodeName: node, source: {persistentVolumeName: v}}\nstatus: {attached: true}", []any{"x", "a", "v", "node", true, "10m"}},
		{"leases.coordination.k8s.io", "", meta + "spec: {holderIdentity: me}", []any{"x", "me", "10m"}},
		{"ipaddresses.networking.k8s.io", "", meta + "spec: {parentRef: {resource: services, namespace: default, name: kubernetes}}", []any{"x", "services/default/kubernetes", "10m"}},
		{"events", "old", meta + "involvedObject: {kind: Pod, name: p, fieldPath: 'spec.containers{c}'}\nreason: Pulled\ntype: Normal\nmessage: \" got it\\n\"\nsource: {component: kubelet, host: host}\ncount: 4\nfirstTimestamp: '2026-01-01T11:00:00Z'\nlastTimestamp: '2026-01-01T11:59:30Z'",
			[]any{"30s", "Normal", "Pulled", "pod/p", "spec.containers{c}", "kubelet, host", "got it", "60m", int64(4), "x"}},
		{"events.events.k8s.io", "new", meta + "regarding: {kind: Node, name: node}\nreason: R\ntype: Warning\nnote: m\nreportingController: c\nreportingInstance: i\neventTime: '2026-01-01T11:00:00.000000Z'\nseries: {count: 3, lastObservedTime: '2026-01-01T11:59:00.000000Z'}",
			[]any{"60s", "Warning", "R", "node/node", "", "c, i", "m", "60m", int64(3), "x"}},
	} {
		t.Run(tc.resource+"/"+tc.name, func(t *testing.T) {
			if got := table[tc.resource].Cells(parse[runtime.Object](t, tc.resource, tc.object), now); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got\n\t%#v\nwant\n\t%#v", got, tc.want)
			}
		})
	}
}

func TestPodCells(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	running := "{name: c, ready: true, state: {running: {}}}"
	for name, tc := range map[string]struct{ spec, status, want string }{
		"pending":     {"containers: [{name: c}]", "phase: Pending", "0/1 Pending 0"},
		"creating":    {"containers: [{name: c}]", "phase: Pending, containerStatuses: [{name: c, state: {waiting: {reason: ContainerCreating}}}]", "0/1 ContainerCreating 0"},
		"running":     {"containers: [{name: c}]", "phase: Running, containerStatuses: [" + running + "]", "1/1 Running 0"},
		"crash loop":  {"containers: [{name: c}]", "phase: Running, containerStatuses: [{name: c, restartCount: 3, state: {waiting: {reason: CrashLoopBackOff}}, lastState: {terminated: {finishedAt: '2026-01-01T11:55:00Z'}}}]", "0/1 CrashLoopBackOff 3 (5m ago)"},
		"completed":   {"containers: [{name: c}]", "phase: Succeeded, containerStatuses: [{name: c, state: {terminated: {reason: Completed}}}]", "0/1 Completed 0"},
		"error":       {"containers: [{name: c}]", "phase: Failed, containerStatuses: [{name: c, state: {terminated: {reason: Error, exitCode: 1}}}]", "0/1 Error 0"},
		"exit code":   {"containers: [{name: c}]", "phase: Failed, containerStatuses: [{name: c, state: {terminated: {exitCode: 7}}}]", "0/1 ExitCode:7 0"},
		"signal":      {"containers: [{name: c}]", "phase: Failed, containerStatuses: [{name: c, state: {terminated: {exitCode: 137, signal: 9}}}]", "0/1 Signal:9 0"},
		"one of two":  {"containers: [{name: c}, {name: d}]", "phase: Running, conditions: [{type: Ready, status: 'False'}], containerStatuses: [" + running + ", {name: d, state: {terminated: {reason: Completed}}}]", "1/2 NotReady 0"},
		"still ready": {"containers: [{name: c}, {name: d}]", "phase: Running, conditions: [{type: Ready, status: 'True'}], containerStatuses: [{name: d, state: {terminated: {reason: Completed}}}, " + running + "]", "1/2 Running 0"},
		"init":        {"initContainers: [{name: a}, {name: b}], containers: [{name: c}]", "phase: Pending, initContainerStatuses: [{name: a, state: {terminated: {exitCode: 0}}}, {name: b, state: {running: {}}}]", "0/1 Init:1/2 0"},
		"init error":  {"initContainers: [{name: a}], containers: [{name: c}]", "phase: Pending, initContainerStatuses: [{name: a, restartCount: 2, state: {terminated: {exitCode: 1, reason: Error}}}]", "0/1 Init:Error 2"},
		"init loop":   {"initContainers: [{name: a}], containers: [{name: c}]", "phase: Pending, initContainerStatuses: [{name: a, state: {waiting: {reason: CrashLoopBackOff}}}]", "0/1 Init:CrashLoopBackOff 0"},
		"init done":   {"initContainers: [{name: a}], containers: [{name: c}]", "phase: Running, initContainerStatuses: [{name: a, restartCount: 4, state: {terminated: {exitCode: 0}}}], containerStatuses: [" + running + "]", "1/1 Running 0"},
		"sidecar":     {"initContainers: [{name: a, restartPolicy: Always}], containers: [{name: c}]", "phase: Running, initContainerStatuses: [{name: a, started: true, ready: true, restartCount: 1, state: {running: {}}}], containerStatuses: [" + running + "]", "2/2 Running 1"},
		"evicted":     {"containers: [{name: c}]", "phase: Failed, reason: Evicted", "0/1 Evicted 0"},
		"gated":       {"containers: [{name: c}]", "phase: Pending, conditions: [{type: PodScheduled, status: 'False', reason: SchedulingGated}]", "0/1 SchedulingGated 0"},
	} {
		t.Run(name, func(t *testing.T) {
			pod := parse[*corev1.Pod](t, "pods", "metadata: {name: p, creationTimestamp: '2026-01-01T11:00:00Z'}\nspec: {"+tc.spec+"}\nstatus: {"+tc.status+"}")
			row := table["pods"].Cells(pod, now)
			if got := row[1].(string) + " " + row[2].(string) + " " + row[3].(string); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			deleted := metav1.NewTime(now)
			pod.DeletionTimestamp = &deleted
			ended := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
			if got := table["pods"].Cells(pod, now)[2]; (got == "Terminating") == ended {
				t.Errorf("deleted in phase %s it is %s", pod.Status.Phase, got)
			}
		})
	}
	pod := parse[*corev1.Pod](t, "pods", "metadata: {name: p}\nspec: {nodeName: node, readinessGates: [{conditionType: a/b}, {conditionType: c}]}\nstatus: {podIP: 10.0.0.1, conditions: [{type: a/b, status: 'True'}]}")
	if got, want := table["pods"].Cells(pod, now)[4:], []any{"<unknown>", "10.0.0.1", "node", "<none>", "1/2"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFields(t *testing.T) {
	pod := parse[*corev1.Pod](t, "pods", "metadata: {name: p, namespace: d}\nspec: {nodeName: node, hostNetwork: true, serviceAccountName: s}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}")
	for name, want := range map[string]string{
		"metadata.name": "p", "metadata.namespace": "d", "spec.nodeName": "node", "spec.restartPolicy": "Always", "spec.schedulerName": "default-scheduler",
		"spec.serviceAccountName": "s", "spec.hostNetwork": "true", "status.phase": "Running", "status.podIP": "10.0.0.1",
		"status.podIPs": "10.0.0.1,fd00::1", "status.nominatedNodeName": "",
	} {
		if got := table["pods"].Fields(pod)[name]; got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	event := parse[*corev1.Event](t, "events", "metadata: {name: e}\ninvolvedObject: {kind: Pod, name: p}\nreportingComponent: c")
	set := table["events"].Fields(event)
	if set["involvedObject.kind"] != "Pod" || set["source"] != "c" || set["reportingComponent"] != "c" {
		t.Errorf("event's fields are %v", set)
	}
	if ns := table["namespaces"]; ns.FieldNames[0] != "metadata.name" || len(ns.Fields(&corev1.Namespace{})) != 3 {
		t.Errorf("namespace's fields are %v", ns.FieldNames)
	}
}
