package hosts

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"conclave/test/cluster"
)

// What webhooks leave to expressions: matchConditions, and admission policies.

func conditionsOf(expressions ...string) func(*admissionv1.MutatingWebhook) {
	return func(w *admissionv1.MutatingWebhook) {
		for i, text := range expressions {
			w.MatchConditions = append(w.MatchConditions, admissionv1.MatchCondition{Name: fmt.Sprintf("c%d.example.com", i), Expression: text})
		}
	}
}

const notSkipped = `object.metadata.name != 'skip-me'`

func hookConditions(k *hookTest) {
	k.mutating("skip", k.hook("/first", rulesOf("v1", "configmaps", "CREATE"), conditionsOf(notSkipped)))
	for name, want := range map[string]string{"skip-me": "", "others": "yes"} {
		made, err := k.client.CoreV1().ConfigMaps(k.own).Create(k.Context(), configMap(name, start), metav1.CreateOptions{})
		if err != nil {
			k.Fatal(err)
		}
		if made.Data["mutation-stage-1"] != want || made.Data["mutation-start"] != "yes" {
			k.Errorf("%s became %v", name, made.Data)
		}
	}
}

var wanted = []admissionv1.MatchCondition{
	{Name: "c0.example.com", Expression: notSkipped},
	{Name: "c1.example.com", Expression: `request.userInfo.username != 'nobody'`},
}

func (k *hookTest) keeps(when string, conditions, want []admissionv1.MatchCondition) {
	k.Helper()
	if fmt.Sprint(conditions) != fmt.Sprint(want) {
		k.Errorf("%s the conditions are %v, not %v", when, conditions, want)
	}
}

func hookKeepValidating(k *hookTest) {
	made := k.validating("keep", k.hook("/deny-marked", rulesOf("v1", "configmaps", "CREATE"), conditionsOf(notSkipped)))
	k.keeps("made,", made.Webhooks[0].MatchConditions, wanted[:1])
	api := k.client.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	made.Webhooks[0].MatchConditions = wanted
	if _, err := api.Update(k.Context(), made, metav1.UpdateOptions{}); err != nil {
		k.Fatal(err)
	}
	now, err := api.Get(k.Context(), made.Name, metav1.GetOptions{})
	if err != nil {
		k.Fatal(err)
	}
	k.keeps("updated,", now.Webhooks[0].MatchConditions, wanted)
}

func hookKeepMutating(k *hookTest) {
	made := k.mutating("keep", k.hook("/first", rulesOf("v1", "configmaps", "CREATE"), conditionsOf(notSkipped)))
	k.keeps("made,", made.Webhooks[0].MatchConditions, wanted[:1])
	api := k.client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	made.Webhooks[0].MatchConditions = wanted
	if _, err := api.Update(k.Context(), made, metav1.UpdateOptions{}); err != nil {
		k.Fatal(err)
	}
	now, err := api.Get(k.Context(), made.Name, metav1.GetOptions{})
	if err != nil {
		k.Fatal(err)
	}
	k.keeps("updated,", now.Webhooks[0].MatchConditions, wanted)
}

func hookBadConditions(k *hookTest, kind string) {
	w := k.hook("/deny-marked", rulesOf("v1", "configmaps", "CREATE"), conditionsOf(`true`, `object.metadata.name != 'x`))
	meta := metav1.ObjectMeta{Name: k.own + "-bad"}
	var err error
	if kind == "Mutating" {
		_, err = k.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(k.Context(), &admissionv1.MutatingWebhookConfiguration{ObjectMeta: meta, Webhooks: []admissionv1.MutatingWebhook{w}}, metav1.CreateOptions{})
	} else {
		v := admissionv1.ValidatingWebhook{
			Name: w.Name, ClientConfig: w.ClientConfig, Rules: w.Rules, SideEffects: w.SideEffects, AdmissionReviewVersions: w.AdmissionReviewVersions, MatchConditions: w.MatchConditions,
		}
		_, err = k.client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(k.Context(), &admissionv1.ValidatingWebhookConfiguration{ObjectMeta: meta, Webhooks: []admissionv1.ValidatingWebhook{v}}, metav1.CreateOptions{})
	}
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "webhooks[0].matchConditions[1].expression") || !strings.Contains(err.Error(), "compilation failed") {
		k.Errorf("a condition that is none: %v", err)
	}
}

// policyTest is one test of policies, in a namespace of its own to which they are
// bound.
type policyTest struct {
	*testing.T
	c   *cluster.Cluster
	own string
}

// TestAdmissionPolicies shows what policies refuse and change, on whichever host.
func TestAdmissionPolicies(t *testing.T) {
	c := three(t)
	for _, tc := range []struct {
		name, codename string
		f              func(*policyTest)
	}{
		{"validate", "[sig-api-machinery] ValidatingAdmissionPolicy [Privileged:ClusterAdmin] should validate against a Deployment [Conformance]", func(p *policyTest) {
			p.validates(admissionv1.ValidatingAdmissionPolicySpec{Validations: []admissionv1.Validation{{
				Expression: "object.spec.replicas > 1", MessageExpression: "'wants replicas > 1, got ' + string(object.spec.replicas)",
			}}})
		}},
		{"variables", "[sig-api-machinery] ValidatingAdmissionPolicy [Privileged:ClusterAdmin] should allow expressions to refer variables. [Conformance]", func(p *policyTest) {
			p.validates(admissionv1.ValidatingAdmissionPolicySpec{
				Variables:   []admissionv1.Variable{{Name: "replicas", Expression: "object.spec.replicas"}, {Name: "few", Expression: "variables.replicas <= 1"}},
				Validations: []admissionv1.Validation{{Expression: "!variables.few", MessageExpression: "'wants replicas > 1, got ' + string(variables.replicas)"}},
			})
		}},
		{"mutate", "[sig-api-machinery] MutatingAdmissionPolicy [Privileged:ClusterAdmin] should mutate a Deployment [Conformance]", func(p *policyTest) {
			p.mutates("Object{spec: Object.spec{replicas: object.spec.replicas + 1}}", func(d *appsv1.Deployment) error {
				if *d.Spec.Replicas != 1 || len(d.Spec.Template.Spec.Containers) != 1 {
					return fmt.Errorf("it became %+v", d.Spec)
				}
				return nil
			})
		}},
		{"annotate", "[sig-api-machinery] MutatingAdmissionPolicy [Privileged:ClusterAdmin] should mutate a Deployment with annotations [Conformance]", func(p *policyTest) {
			p.mutates(`Object{metadata: Object.metadata{annotations: {"by.example.com/policy": "yes"}}}`, func(d *appsv1.Deployment) error {
				if d.Annotations["by.example.com/policy"] != "yes" || d.Annotations["own"] != "kept" {
					return fmt.Errorf("it is annotated with %v", d.Annotations)
				}
				return nil
			})
		}},
	} {
		shows(t, tc.codename, func(t *testing.T) { tc.f(&policyTest{t, c, namespace(t, c)}) })
	}
}

func ofDeployments() *admissionv1.MatchResources {
	return &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: rulesOf("apps/v1", "deployments", "CREATE")}}}
}

func (p *policyTest) here() *admissionv1.MatchResources {
	return &admissionv1.MatchResources{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: p.own}}}
}

// deploy makes a Deployment by way of a host.
func (p *policyTest) deploy(host int, replicas int32) (*appsv1.Deployment, error) {
	client, err := p.c.ClientFor(p.c.Hosts[host].Name, func(*rest.Config) {})
	if err != nil {
		p.Fatal(err)
	}
	labels := map[string]string{"app": "web"}
	return client.AppsV1().Deployments(p.own).Create(p.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "web-", Annotations: map[string]string{"own": "kept"}},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To(replicas), Selector: &metav1.LabelSelector{MatchLabels: labels}, Paused: true,
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "none.conclave.test/none"}}}},
		},
	}, metav1.CreateOptions{})
}

// validates has a policy refuse, on every host, Deployments of one replica and let
// those of two be, and the leader say that it fits to Deployments.
func (p *policyTest) validates(spec admissionv1.ValidatingAdmissionPolicySpec) {
	spec.MatchConstraints = ofDeployments()
	client := p.c.Client.AdmissionregistrationV1()
	meta := metav1.ObjectMeta{Name: p.own}
	if _, err := client.ValidatingAdmissionPolicies().Create(p.Context(), &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: meta, Spec: spec}, metav1.CreateOptions{}); err != nil {
		p.Fatal(err)
	}
	p.afterwards("validatingadmissionpolicy")
	if _, err := client.ValidatingAdmissionPolicyBindings().Create(p.Context(), &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: meta, Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
		PolicyName: p.own, MatchResources: p.here(), ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny},
	}}, metav1.CreateOptions{}); err != nil {
		p.Fatal(err)
	}
	p.afterwards("validatingadmissionpolicybinding")
	eventually(p.T, "the leader looks at the policy", func() error {
		o, err := client.ValidatingAdmissionPolicies().Get(p.Context(), p.own, metav1.GetOptions{})
		if err == nil && (o.Status.ObservedGeneration != o.Generation || o.Status.TypeChecking == nil) {
			err = fmt.Errorf("its status is %+v", o.Status)
		}
		if err == nil && len(o.Status.TypeChecking.ExpressionWarnings) > 0 {
			p.Errorf("it does not fit: %+v", o.Status.TypeChecking)
		}
		return err
	})
	for i := range p.c.Hosts {
		eventually(p.T, "the policy refuses", func() error { // another master may hear of it later
			_, err := p.deploy(i, 1)
			if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), fmt.Sprintf("ValidatingAdmissionPolicy '%s' with binding '%s' denied request: wants replicas > 1, got 1", p.own, p.own)) {
				return fmt.Errorf("one replica: %v", err)
			}
			return nil
		})
	}
	if _, err := p.deploy(0, 0); !apierrors.IsInvalid(err) {
		p.Errorf("no replica: %v", err)
	}
	// None of these is ever to run.
	for i := range p.c.Hosts {
		if _, err := p.deploy(i, 2); err != nil {
			p.Errorf("two replicas: %v", err)
		}
	}
}

// mutates has a policy change, on every host, what is a Deployment of no replica.
func (p *policyTest) mutates(expression string, became func(*appsv1.Deployment) error) {
	client := p.c.Client.AdmissionregistrationV1()
	meta := metav1.ObjectMeta{Name: p.own}
	if _, err := client.MutatingAdmissionPolicies().Create(p.Context(), &admissionv1.MutatingAdmissionPolicy{ObjectMeta: meta, Spec: admissionv1.MutatingAdmissionPolicySpec{
		MatchConstraints: ofDeployments(), ReinvocationPolicy: admissionv1.NeverReinvocationPolicy,
		Mutations: []admissionv1.Mutation{{PatchType: admissionv1.PatchTypeApplyConfiguration, ApplyConfiguration: &admissionv1.ApplyConfiguration{Expression: expression}}},
	}}, metav1.CreateOptions{}); err != nil {
		p.Fatal(err)
	}
	p.afterwards("mutatingadmissionpolicy")
	if _, err := client.MutatingAdmissionPolicyBindings().Create(p.Context(), &admissionv1.MutatingAdmissionPolicyBinding{ObjectMeta: meta, Spec: admissionv1.MutatingAdmissionPolicyBindingSpec{
		PolicyName: p.own, MatchResources: p.here(),
	}}, metav1.CreateOptions{}); err != nil {
		p.Fatal(err)
	}
	p.afterwards("mutatingadmissionpolicybinding")
	for i := range p.c.Hosts {
		eventually(p.T, "the policy changes it", func() error { // another master may hear of it later
			d, err := p.deploy(i, 0)
			if err != nil {
				return err
			}
			return became(d)
		})
	}
}

// afterwards removes what was made.
func (p *policyTest) afterwards(kind string) {
	p.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(p.Context()), time.Minute)
		defer cancel()
		if _, err := p.c.Kubectl(ctx, "delete", kind, p.own, "--ignore-not-found"); err != nil {
			p.Error(err)
		}
	})
}
