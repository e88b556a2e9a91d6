package flow

import (
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"conclave/api/types"
)

// AutoUpdate is the annotation by which an object of the system lets itself be kept
// up ("true") or does not ("false").
const AutoUpdate = "apf.kubernetes.io/autoupdate-spec"

// Names of what has to be, of both kinds.
const (
	Exempt   = "exempt"
	CatchAll = "catch-all"
)

func mandatory(name string) bool { return name == Exempt || name == CatchAll }

// The levels that every cluster has, as Kubernetes has them: name, shares of the
// seats, percent of them that it lends, then queues, how many of them are a hand, and
// how many requests are in one; without those, what finds no seat is refused. The
// first waits for no seat.
const levelTable = `
exempt 0 0
catch-all 5 0
system 30 33 64 6 50
node-high 40 25 64 6 50
leader-election 10 0 16 4 50
workload-high 40 50 128 6 50
workload-low 100 90 128 6 50
global-default 20 50 128 6 50
`

// The FlowSchemas that every cluster has, as Kubernetes has them: name, level,
// precedence, and by what its flows are told apart; then its rule: the subjects (a
// user, a group or a service account, with its first letter), and below what they ask
// for: verbs, groups, resources and namespaces, of which "cluster" means none; or
// verbs and paths. A group "core" is the one without a name. Lists have commas.
//
// The users of Kubernetes' own controllers and scheduler are in them: here they are
// parts of the masters, and ask for no seat.
const schemaTable = `
exempt exempt 1 -
 g:system:masters
  * * * *,cluster
  * *
probes exempt 2 -
 g:system:unauthenticated g:system:authenticated
  get /healthz,/readyz,/livez
system-leader-election leader-election 100 ByUser
 u:system:kube-controller-manager u:system:kube-scheduler s:kube-system/*
  get,create,update coordination.k8s.io leases *
endpoint-controller workload-high 150 ByUser
 u:system:kube-controller-manager s:kube-system/endpoint-controller s:kube-system/endpointslicemirroring-controller
  get,create,update core endpoints *
workload-leader-election leader-election 200 ByUser
 s:kube-system/*
  get,create,update core endpoints,configmaps *
  get,create,update coordination.k8s.io leases *
system-node-high node-high 400 ByUser
 g:system:nodes
  * core nodes,nodes/status *,cluster
  * coordination.k8s.io leases *
system-nodes system 500 ByUser
 g:system:nodes
  * * * *,cluster
  * *
kube-controller-manager workload-high 800 ByNamespace
 u:system:kube-controller-manager
  * * * *,cluster
  * *
kube-scheduler workload-high 800 ByNamespace
 u:system:kube-scheduler
  * * * *,cluster
  * *
kube-system-service-accounts workload-high 900 ByNamespace
 s:kube-system/*
  * * * *,cluster
  * *
service-accounts workload-low 9000 ByUser
 g:system:serviceaccounts
  * * * *,cluster
  * *
global-default global-default 9900 ByUser
 g:system:unauthenticated g:system:authenticated
  * * * *,cluster
  * *
catch-all catch-all 10000 ByUser
 g:system:unauthenticated g:system:authenticated
  * * * *,cluster
  * *
`

func systemMeta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Annotations: map[string]string{AutoUpdate: "true"}}
}

// Levels are the PriorityLevelConfigurations that every cluster has.
func Levels() (levels []*types.PriorityLevelConfiguration) {
	for line := range strings.Lines(levelTable) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		o := &types.PriorityLevelConfiguration{ObjectMeta: systemMeta(words[0])}
		if o.Name == Exempt {
			o.Spec = types.PriorityLevelSpec{Type: types.Exempt, Exempt: &types.ExemptedLevel{
				NominalConcurrencyShares: ptr.To(number(words[1])), LendablePercent: ptr.To(number(words[2])),
			}}
		} else {
			o.Spec = types.PriorityLevelSpec{Type: types.Limited, Limited: &types.LimitedLevel{
				NominalConcurrencyShares: ptr.To(number(words[1])), LendablePercent: ptr.To(number(words[2])),
				LimitResponse: types.LimitResponse{Type: types.Reject},
			}}
		}
		if len(words) > 3 {
			o.Spec.Limited.LimitResponse = types.LimitResponse{Type: types.Queue, Queuing: &types.QueuingConfiguration{
				Queues: number(words[3]), HandSize: number(words[4]), QueueLengthLimit: number(words[5]),
			}}
		}
		levels = append(levels, o)
	}
	return levels
}

func number(word string) int32 {
	n, err := strconv.ParseInt(word, 10, 32)
	if err != nil {
		panic("flow: the table has " + word + " where a number belongs")
	}
	return int32(n)
}

// Schemas are the FlowSchemas that every cluster has.
func Schemas() (schemas []*types.FlowSchema) {
	for line := range strings.Lines(schemaTable) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if line[0] != ' ' {
			o := &types.FlowSchema{ObjectMeta: systemMeta(words[0])}
			o.Spec.PriorityLevelConfiguration.Name, o.Spec.MatchingPrecedence = words[1], number(words[2])
			if words[3] != "-" {
				o.Spec.DistinguisherMethod = &types.FlowDistinguisherMethod{Type: words[3]}
			}
			o.Spec.Rules = []types.PolicyRulesWithSubjects{{}}
			schemas = append(schemas, o)
			continue
		}
		r := &schemas[len(schemas)-1].Spec.Rules[0]
		switch {
		case line[1] != ' ':
			for _, w := range words {
				r.Subjects = append(r.Subjects, readSubject(w))
			}
		case len(words) == 2:
			r.NonResourceRules = append(r.NonResourceRules, types.NonResourcePolicyRule{Verbs: strings.Split(words[0], ","), NonResourceURLs: strings.Split(words[1], ",")})
		default:
			r.ResourceRules = append(r.ResourceRules, readRule(words))
		}
	}
	return schemas
}

func readSubject(word string) types.FlowSubject {
	kind, name := word[:2], word[2:]
	switch kind {
	case "u:":
		return types.FlowSubject{Kind: types.UserKind, User: &types.NamedSubject{Name: name}}
	case "g:":
		return types.FlowSubject{Kind: types.GroupKind, Group: &types.NamedSubject{Name: name}}
	}
	namespace, account, _ := strings.Cut(name, "/")
	return types.FlowSubject{Kind: types.ServiceAccountKind, ServiceAccount: &types.ServiceAccountSubject{Namespace: namespace, Name: account}}
}

func readRule(words []string) types.ResourcePolicyRule {
	r := types.ResourcePolicyRule{
		Verbs: strings.Split(words[0], ","), APIGroups: strings.Split(words[1], ","), Resources: strings.Split(words[2], ","),
	}
	if words[1] == "core" {
		r.APIGroups = []string{""}
	}
	namespaces, cluster := strings.CutSuffix(words[3], ",cluster")
	r.Namespaces, r.ClusterScope = strings.Split(namespaces, ","), cluster
	return r
}
