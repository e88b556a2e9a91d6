package rbac

import (
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// AutoUpdate is the annotation by which a role or binding of the system lets
// itself be kept up ("true") or does not ("false").
const AutoUpdate = rbacv1.AutoUpdateAnnotationKey

const aggregateTo = "rbac.authorization.k8s.io/aggregate-to-"

// Verbs, by short names in the table below.
var verbs = map[string]string{
	"READ":  "get list watch",
	"WRITE": "create delete deletecollection patch update",
	"BOTH":  "create delete deletecollection get list patch update watch",
	"EVENT": "create patch update",
}

// The roles that every cluster has: name, then the role that gathers it and the
// label by which it gathers others itself, then its rules, one a line: verbs,
// groups and resources, or verbs and paths. A group "core" is the one without a
// name. Lists have commas.
//
// They are Kubernetes', but for those of components that are no users here:
// controllers, scheduler, DNS and service routing are parts of the masters and
// nodes, and a node's rights follow from its pods, which no role can say.
// system:aggregated-metrics-reader comes with metrics-server elsewhere.
const roleTable = `
cluster-admin
  * * *
  * *
admin <admin
edit >admin <edit
view >edit <view
system:aggregate-to-admin >admin
  create authorization.k8s.io localsubjectaccessreviews
  BOTH rbac.authorization.k8s.io rolebindings,roles
system:aggregate-to-edit >edit
  READ core pods/attach,pods/exec,pods/portforward,pods/proxy,secrets,services/proxy
  impersonate core serviceaccounts
  WRITE core pods,pods/attach,pods/exec,pods/portforward,pods/proxy
  create core pods/eviction
  WRITE core configmaps,events,persistentvolumeclaims,replicationcontrollers,replicationcontrollers/scale,secrets,serviceaccounts,services,services/proxy
  create core serviceaccounts/token
  WRITE apps daemonsets,deployments,deployments/rollback,deployments/scale,replicasets,replicasets/scale,statefulsets,statefulsets/scale
  WRITE autoscaling horizontalpodautoscalers
  WRITE batch cronjobs,jobs
  WRITE extensions daemonsets,deployments,deployments/rollback,deployments/scale,ingresses,networkpolicies,replicasets,replicasets/scale,replicationcontrollers/scale
  WRITE policy poddisruptionbudgets
  WRITE networking.k8s.io ingresses,networkpolicies
  BOTH coordination.k8s.io leases
  WRITE resource.k8s.io resourceclaims,resourceclaimtemplates
system:aggregate-to-view >view
  READ core configmaps,endpoints,persistentvolumeclaims,persistentvolumeclaims/status,pods,replicationcontrollers,replicationcontrollers/scale,serviceaccounts,services,services/status
  READ core bindings,events,limitranges,namespaces/status,pods/log,pods/status,replicationcontrollers/status,resourcequotas,resourcequotas/status
  READ core namespaces
  READ discovery.k8s.io endpointslices
  READ apps controllerrevisions,daemonsets,daemonsets/status,deployments,deployments/scale,deployments/status,replicasets,replicasets/scale,replicasets/status,statefulsets,statefulsets/scale,statefulsets/status
  READ autoscaling horizontalpodautoscalers,horizontalpodautoscalers/status
  READ batch cronjobs,cronjobs/status,jobs,jobs/status
  READ extensions daemonsets,daemonsets/status,deployments,deployments/scale,deployments/status,ingresses,ingresses/status,networkpolicies,replicasets,replicasets/scale,replicasets/status,replicationcontrollers/scale
  READ policy poddisruptionbudgets,poddisruptionbudgets/status
  READ networking.k8s.io ingresses,ingresses/status,networkpolicies
  READ resource.k8s.io resourceclaims,resourceclaims/status,resourceclaimtemplates
system:aggregated-metrics-reader >admin >edit >view
  READ metrics.k8s.io nodes,pods
system:auth-delegator
  create authentication.k8s.io tokenreviews
  create authorization.k8s.io subjectaccessreviews
system:basic-user
  create authorization.k8s.io selfsubjectaccessreviews,selfsubjectrulesreviews
  create authentication.k8s.io selfsubjectreviews
system:discovery
  get /api,/api/*,/apis,/apis/*,/healthz,/livez,/openapi,/openapi/*,/readyz,/version,/version/
system:monitoring
  get /healthz,/healthz/*,/livez,/livez/*,/metrics,/metrics/slis,/readyz,/readyz/*
system:node-problem-detector
  get core nodes
  patch core nodes/status
  EVENT core,events.k8s.io events
system:persistent-volume-provisioner
  create,delete,get,list,watch core persistentvolumes
  get,list,update,watch core persistentvolumeclaims
  READ storage.k8s.io storageclasses
  watch core events
  EVENT core,events.k8s.io events
system:public-info-viewer
  get /healthz,/livez,/readyz,/version,/version/
system:service-account-issuer-discovery
  get /.well-known/openid-configuration,/.well-known/openid-configuration/,/openid/v1/jwks,/openid/v1/jwks/
`

// Which groups have which of these roles in the whole cluster, by a binding of
// the role's name.
const bindingTable = `
cluster-admin system:masters
system:basic-user system:authenticated
system:discovery system:authenticated
system:monitoring system:monitoring
system:public-info-viewer system:authenticated system:unauthenticated
system:service-account-issuer-discovery system:serviceaccounts
`

func systemMeta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: name, Labels: map[string]string{"kubernetes.io/bootstrapping": "rbac-defaults"},
		Annotations: map[string]string{AutoUpdate: "true"},
	}
}

// Roles are the ClusterRoles that every cluster has, without the rules that
// aggregation adds.
func Roles() (roles []*rbacv1.ClusterRole) {
	for line := range strings.Lines(roleTable) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case line[0] == ' ':
			r := roles[len(roles)-1]
			r.Rules = append(r.Rules, readRule(words))
		default:
			roles = append(roles, readRole(words))
		}
	}
	return roles
}

func readRole(words []string) *rbacv1.ClusterRole {
	r := &rbacv1.ClusterRole{ObjectMeta: systemMeta(words[0])}
	for _, w := range words[1:] {
		label := map[string]string{aggregateTo + w[1:]: "true"}
		if w[0] == '>' {
			r.Labels[aggregateTo+w[1:]] = "true"
			continue
		}
		r.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: label}}}
	}
	return r
}

func readRule(words []string) (r rbacv1.PolicyRule) {
	if short, ok := verbs[words[0]]; ok {
		r.Verbs = strings.Fields(short)
	} else {
		r.Verbs = strings.Split(words[0], ",")
	}
	if len(words) == 2 {
		r.NonResourceURLs = strings.Split(words[1], ",")
		return r
	}
	r.APIGroups, r.Resources = strings.Split(words[1], ","), strings.Split(words[2], ",")
	for i, g := range r.APIGroups {
		if g == "core" {
			r.APIGroups[i] = ""
		}
	}
	return r
}

// AuthenticationReader is the Role by which API servers behind the cluster's may
// read a ConfigMap of kube-system, which says by whom they are asked.
func AuthenticationReader(config string) *rbacv1.Role {
	r := &rbacv1.Role{ObjectMeta: systemMeta(config + "-reader"), Rules: []rbacv1.PolicyRule{
		{Verbs: []string{"get", "list", "watch"}, APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{config}},
	}}
	r.Namespace = metav1.NamespaceSystem
	return r
}

// Bindings are the ClusterRoleBindings that every cluster has.
func Bindings() (bindings []*rbacv1.ClusterRoleBinding) {
	for line := range strings.Lines(bindingTable) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		b := &rbacv1.ClusterRoleBinding{
			ObjectMeta: systemMeta(words[0]),
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: words[0]},
		}
		for _, group := range words[1:] {
			b.Subjects = append(b.Subjects, rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: group})
		}
		bindings = append(bindings, b)
	}
	return bindings
}
