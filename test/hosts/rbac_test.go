package hosts

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"conclave/test/cluster"
)

// denied runs kubectl, which must fail, and returns what it printed.
func denied(t *testing.T, c *cluster.Cluster, args ...string) string {
	t.Helper()
	out, err := c.Kubectl(t.Context(), args...)
	if err == nil {
		t.Errorf("kubectl %s was not refused: %s", strings.Join(args, " "), out)
	}
	return out
}

// TestRBAC gives and takes rights as people do.
func TestRBAC(t *testing.T) {
	c := three(t)
	t.Parallel()
	ns := namespace(t, c)
	account(t, c, ns, "default")
	in := func(args ...string) []string { return append([]string{"-n", ns}, args...) }
	jane, boss := ns+"-jane", ns+"-boss" // the shared cluster has other tests' users

	t.Run("role and binding", func(t *testing.T) {
		say := denied(t, c, in("get", "configmaps", "--as", jane)...)
		mustContain(t, "the refusal", say, fmt.Sprintf(`Error from server (Forbidden): configmaps is forbidden: User %q cannot list resource "configmaps" in API group "" in the namespace %q`, jane, ns))
		kubectl(t, c, in("create", "role", "reader", "--verb=get,list", "--resource=configmaps,pods/log")...)
		kubectl(t, c, in("create", "rolebinding", "readers", "--role=reader", "--user="+jane, "--serviceaccount="+ns+":default")...)
		// At every node, at once.
		for _, h := range c.Hosts {
			client, err := c.ClientFor(h.Name, func(r *rest.Config) { r.Impersonate = rest.ImpersonationConfig{UserName: jane} })
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.CoreV1().ConfigMaps(ns).List(t.Context(), metav1.ListOptions{}); err != nil {
				t.Errorf("at %s: %v", h.Name, err)
			}
			if _, err := client.CoreV1().Secrets(ns).List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
				t.Errorf("at %s: %v", h.Name, err)
			}
		}
		mustContain(t, "get", kubectl(t, c, in("get", "rolebindings", "-o", "wide")...), "ROLE", "Role/reader", "USERS", jane, "SERVICEACCOUNTS", ns+"/default")
		mustContain(t, "get", kubectl(t, c, in("get", "roles")...), "CREATED AT")
	})
	t.Run("can-i", func(t *testing.T) {
		if out := kubectl(t, c, in("auth", "can-i", "list", "configmaps", "--as", jane)...); out != "yes\n" {
			t.Errorf("%q", out)
		}
		if out := denied(t, c, in("auth", "can-i", "delete", "configmaps", "--as", jane)...); out != "no\n" {
			t.Errorf("%q", out)
		}
		if out := kubectl(t, c, in("auth", "can-i", "get", "pods", "--subresource=log", "--as", "system:serviceaccount:"+ns+":default")...); out != "yes\n" {
			t.Errorf("%q", out)
		}
		mustContain(t, "can-i --list", kubectl(t, c, in("auth", "can-i", "--list", "--as", jane)...), "configmaps", "pods/log", "[get list]", "selfsubjectreviews.authentication.k8s.io", "/apis/*")
		mustContain(t, "can-i --list of an administrator", kubectl(t, c, "auth", "can-i", "--list"), "*.*")
	})
	t.Run("token", func(t *testing.T) {
		token := strings.TrimSpace(kubectl(t, c, in("create", "token", "default")...))
		holder := as(t, c, func(r *rest.Config) { r.BearerToken = token })
		if _, err := holder.CoreV1().ConfigMaps(ns).List(t.Context(), metav1.ListOptions{}); err != nil {
			t.Error(err)
		}
		if err := holder.CoreV1().ConfigMaps(ns).Delete(t.Context(), "kube-root-ca.crt", metav1.DeleteOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("%v", err)
		}
		kubectl(t, c, in("delete", "rolebinding", "readers")...)
		eventually(t, "the right is gone", func() error {
			if _, err := holder.CoreV1().ConfigMaps(ns).List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
				return fmt.Errorf("the answer is %v", err)
			}
			return nil
		})
	})
	t.Run("escalation", func(t *testing.T) {
		kubectl(t, c, in("create", "rolebinding", "bosses", "--clusterrole=admin", "--user="+boss)...)
		kubectl(t, c, in("create", "role", "runner", "--verb=create", "--resource=pods", "--as", boss)...)
		say := denied(t, c, in("create", "role", "too-much", "--verb=get,list", "--resource=nodes", "--as", boss)...)
		mustContain(t, "the refusal", say, `roles.rbac.authorization.k8s.io "too-much" is forbidden: user "`+boss+`" (groups=["system:authenticated"]) is attempting to grant RBAC permissions not currently held:`,
			`{APIGroups:[""], Resources:["nodes"], Verbs:["get" "list"]}`)
		kubectl(t, c, in("create", "rolebinding", "editors", "--clusterrole=edit", "--user="+jane, "--as", boss)...)
		mustContain(t, "the refusal", denied(t, c, in("create", "rolebinding", "masters", "--clusterrole=cluster-admin", "--user="+boss, "--as", boss)...),
			"is attempting to grant RBAC permissions not currently held", `{APIGroups:["*"], Resources:["*"], Verbs:["*"]}`)
		mustContain(t, "another role", denied(t, c, in("patch", "rolebinding", "editors", "--type=merge", "-p", `{"roleRef":{"name":"view"}}`)...), "cannot change roleRef")
	})
	t.Run("aggregation", func(t *testing.T) {
		name, mice := "mice-"+ns, "mice."+ns+".example.com"
		t.Cleanup(func() { removeLater(t, c, "clusterrole", name) })
		kubectl(t, c, "create", "clusterrole", name, "--verb=get", "--resource=pods", "--non-resource-url=/unused")
		kubectl(t, c, "patch", "clusterrole", name, "--type=merge", "-p",
			`{"metadata":{"labels":{"rbac.authorization.k8s.io/aggregate-to-view":"true"}},"rules":[{"verbs":["get"],"apiGroups":["`+strings.TrimPrefix(mice, "mice.")+`"],"resources":["mice"]}]}`)
		for _, role := range []string{"view", "edit", "admin"} {
			eventually(t, role+" has what was added to view", func() error {
				out, err := c.Kubectl(t.Context(), "describe", "clusterrole", role)
				if err == nil && !strings.Contains(out, mice) {
					err = fmt.Errorf("it is %s", out)
				}
				return err
			})
		}
	})
	t.Run("reconcile", func(t *testing.T) {
		manifest := "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: runner, namespace: " + ns + "}\nrules: [{verbs: [watch], apiGroups: [''], resources: [pods]}]\n"
		out, err := c.KubectlInput(t.Context(), manifest, in("auth", "reconcile", "-f", "-")...)
		if err != nil {
			t.Fatal(err)
		}
		mustContain(t, "auth reconcile", out, "runner reconciled", "missing rules added")
		r, err := c.Client.RbacV1().Roles(ns).Get(t.Context(), "runner", metav1.GetOptions{})
		if err != nil || len(r.Rules) != 2 {
			t.Errorf("%v %+v", err, r.Rules)
		}
	})
	t.Run("roles of the system", func(t *testing.T) {
		r, err := c.Client.RbacV1().ClusterRoles().Get(t.Context(), "cluster-admin", metav1.GetOptions{})
		if err != nil || r.Labels["kubernetes.io/bootstrapping"] != "rbac-defaults" || r.Annotations[rbacv1.AutoUpdateAnnotationKey] != "true" {
			t.Errorf("%v %+v", err, r)
		}
	})
}

// removeLater deletes what belongs to no namespace, when a test has ended.
func removeLater(t *testing.T, c *cluster.Cluster, kind, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := c.Kubectl(ctx, "delete", kind, name, "--ignore-not-found"); err != nil {
		t.Error(err)
	}
}

// operator is what operators bring: an account, what it may, and the program.
const operator = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: operator}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: operator}
rules:
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: operator}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: operator}
subjects:
- {kind: ServiceAccount, name: operator}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: operator}
spec:
  selector: {matchLabels: {app: operator}}
  template:
    metadata: {labels: {app: operator}}
    spec:
      serviceAccountName: operator
      terminationGracePeriodSeconds: 0
      containers:
      - name: operator
        image: conclave.test/tool:1
        command: [sh, -c, "while /tool whoami /api/v1/namespaces/$NAMESPACE/configmaps /api/v1/namespaces/$NAMESPACE/secrets; do sleep 1; done"]
        env:
        - {name: NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
`

// TestOperator applies such a manifest; its pod does with its token what the role
// says, and no more.
func TestOperator(t *testing.T) {
	c := three(t)
	t.Parallel()
	if err := c.Import(t.Context(), "tool"); err != nil {
		t.Fatal(err)
	}
	ns := namespace(t, c)
	if _, err := c.KubectlInput(t.Context(), operator, "-n", ns, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	says := func(what string, wanted ...string) {
		t.Helper()
		eventually(t, what, func() error {
			out, err := c.Kubectl(t.Context(), "-n", ns, "logs", "deployment/operator", "--tail=3")
			for _, w := range wanted {
				if err == nil && !strings.Contains(out, w) {
					err = fmt.Errorf("%q is not in %s", w, out)
				}
			}
			return err
		})
	}
	user := "system:serviceaccount:" + ns + ":operator"
	says("it lists what it may", user+"\n", "/api/v1/namespaces/"+ns+"/configmaps ConfigMapList\n",
		`secrets is forbidden: User \"`+user+`\" cannot list resource \"secrets\" in API group \"\" in the namespace \"`+ns+`\"`)
	kubectl(t, c, "-n", ns, "delete", "rolebinding", "operator")
	says("without its binding it may not", `configmaps is forbidden: User \"`+user+`\" cannot list resource \"configmaps\"`)
}
