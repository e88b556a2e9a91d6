package api_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"conclave/api"
)

// sixAlone is a cluster of IPv6 alone.
func sixAlone(c *api.Config) { c.ServiceCIDR = netip.MustParsePrefix("fd00::ff00:0/112") }

func dualStack(c *api.Config) { c.ServiceCIDR6 = netip.MustParsePrefix("fd00::ff00:0/112") }

// families says what a Service has: its policy, its families, and of its
// addresses which family each is of.
func families(s *corev1.Service) string {
	var addresses []string
	for _, ip := range s.Spec.ClusterIPs {
		switch a, err := netip.ParseAddr(ip); {
		case err != nil:
			addresses = append(addresses, ip)
		case a.Is4():
			addresses = append(addresses, "4")
		default:
			addresses = append(addresses, "6")
		}
	}
	policy := corev1.IPFamilyPolicy("")
	if s.Spec.IPFamilyPolicy != nil {
		policy = *s.Spec.IPFamilyPolicy
	}
	return fmt.Sprintf("%s %v %v", policy, s.Spec.IPFamilies, addresses)
}

func TestServiceFamilies(t *testing.T) {
	const taken = `Service "s" is invalid: `
	for name, tc := range map[string]struct {
		single bool   // the cluster: of IPv4 alone
		six    bool   // of IPv6 alone
		spec   string // beside a port
		update string // "" for none
		want   string
	}{
		"nothing is said":                      {spec: ``, want: "SingleStack [IPv4] [4]"},
		"nothing is said, IPv6 alone":          {six: true, want: "SingleStack [IPv6] [6]"},
		"IPv6, alone":                          {six: true, spec: `ipFamilies: [IPv6]`, want: "SingleStack [IPv6] [6]"},
		"IPv4, on IPv6 alone":                  {six: true, spec: `ipFamilies: [IPv4]`, want: taken + `spec.ipFamilies[0]: Invalid value: "IPv4": not configured on this cluster`},
		"an IPv4 address, on IPv6 alone":       {six: true, spec: `clusterIP: 10.96.3.4`, want: taken + `spec.clusterIPs[0]: Invalid value: ["10.96.3.4"]: IPv4 is not configured on this cluster`},
		"prefers, on IPv6 alone":               {six: true, spec: `ipFamilyPolicy: PreferDualStack`, want: "PreferDualStack [IPv6] [6]"},
		"requires, on IPv6 alone":              {six: true, spec: `ipFamilyPolicy: RequireDualStack`, want: taken + `spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services`},
		"headless, on IPv6 alone":              {six: true, spec: `{clusterIP: None, selector: {a: b}}`, want: "SingleStack [IPv6] [None]"},
		"bare, on IPv6 alone":                  {six: true, spec: `clusterIP: None`, want: "RequireDualStack [IPv6 IPv4] [None]"},
		"nothing is said, on one stack":        {single: true, want: "SingleStack [IPv4] [4]"},
		"IPv6":                                 {spec: `ipFamilies: [IPv6]`, want: "SingleStack [IPv6] [6]"},
		"IPv6 by an address":                   {spec: `clusterIP: "fd00::ff00:99"`, want: "SingleStack [IPv6] [6]"},
		"IPv6, on one stack":                   {single: true, spec: `ipFamilies: [IPv6]`, want: taken + `spec.ipFamilies[0]: Invalid value: "IPv6": not configured on this cluster`},
		"an IPv6 address, on one stack":        {single: true, spec: `clusterIP: "fd00::ff00:99"`, want: taken + `spec.clusterIPs[0]: Invalid value: ["fd00::ff00:99"]: IPv6 is not configured on this cluster`},
		"prefers":                              {spec: `ipFamilyPolicy: PreferDualStack`, want: "PreferDualStack [IPv4 IPv6] [4 6]"},
		"prefers, IPv6 first":                  {spec: `{ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv6]}`, want: "PreferDualStack [IPv6 IPv4] [6 4]"},
		"prefers, on one stack":                {single: true, spec: `ipFamilyPolicy: PreferDualStack`, want: "PreferDualStack [IPv4] [4]"},
		"requires":                             {spec: `ipFamilyPolicy: RequireDualStack`, want: "RequireDualStack [IPv4 IPv6] [4 6]"},
		"requires, one address named":          {spec: `{ipFamilyPolicy: RequireDualStack, clusterIP: "fd00::ff00:98"}`, want: "RequireDualStack [IPv6 IPv4] [6 4]"},
		"requires, both addresses named":       {spec: `{ipFamilyPolicy: RequireDualStack, clusterIP: 10.96.3.4, clusterIPs: [10.96.3.4, "fd00::ff00:97"]}`, want: "RequireDualStack [IPv4 IPv6] [4 6]"},
		"requires, on one stack":               {single: true, spec: `ipFamilyPolicy: RequireDualStack`, want: taken + `spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services`},
		"two families and no policy":           {spec: `ipFamilies: [IPv4, IPv6]`, want: taken + `spec.ipFamilyPolicy: Invalid value: "SingleStack": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified`},
		"two addresses and no policy":          {spec: `{clusterIP: 10.96.3.4, clusterIPs: [10.96.3.4, "fd00::ff00:97"]}`, want: taken + `spec.ipFamilyPolicy: Invalid value: "SingleStack": must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified`},
		"an address of another family":         {spec: `{ipFamilies: [IPv6], clusterIP: 10.96.3.4}`, want: taken + "spec.clusterIPs[0]: Invalid value: \"10.96.3.4\": expected an IPv6 value as indicated by `ipFamilies[0]`"},
		"two addresses of one family":          {spec: `{ipFamilyPolicy: RequireDualStack, clusterIP: 10.96.3.4, clusterIPs: [10.96.3.4, 10.96.3.5]}`, want: taken + `spec.clusterIPs: Invalid value: ["10.96.3.4","10.96.3.5"]: may specify no more than one IP for each IP family`},
		"an address outside":                   {spec: `clusterIP: "fd00:1::1"`, want: taken + `spec.clusterIPs: Invalid value: ["fd00:1::1"]: failed to allocate IP fd00:1::1: the provided network does not match the current range: The range of valid IPs is fd00::ff00:0/112`},
		"no such family":                       {spec: `ipFamilies: [IPv5]`, want: taken + `spec.ipFamilies[0]: Unsupported value: "IPv5": supported values: "IPv4", "IPv6"`},
		"headless":                             {spec: `{clusterIP: None, selector: {a: b}}`, want: "SingleStack [IPv4] [None]"},
		"headless, both":                       {spec: `{clusterIP: None, selector: {a: b}, ipFamilyPolicy: RequireDualStack}`, want: "RequireDualStack [IPv4 IPv6] [None]"},
		"headless, both, on one stack":         {single: true, spec: `{clusterIP: None, selector: {a: b}, ipFamilyPolicy: RequireDualStack}`, want: taken + `spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services`},
		"headless, no selector":                {spec: `clusterIP: None`, want: "RequireDualStack [IPv4 IPv6] [None]"},
		"headless, no selector, on one stack":  {single: true, spec: `clusterIP: None`, want: "RequireDualStack [IPv4 IPv6] [None]"},
		"headless, no selector, IPv6 alone":    {single: true, spec: `{clusterIP: None, ipFamilyPolicy: SingleStack, ipFamilies: [IPv6]}`, want: "SingleStack [IPv6] [None]"},
		"an external name":                     {spec: `{type: ExternalName, externalName: example.org}`, want: " [] []"},
		"an external name with a policy":       {spec: `{type: ExternalName, externalName: example.org, ipFamilyPolicy: SingleStack}`, want: taken + `spec.ipFamilyPolicy: Forbidden: may not be set for ExternalName services`},
		"gains a family":                       {update: `{ipFamilyPolicy: PreferDualStack}`, want: "PreferDualStack [IPv4 IPv6] [4 6]"},
		"requires later, on one stack":         {single: true, update: `{ipFamilyPolicy: RequireDualStack}`, want: taken + `spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services`},
		"loses a family by its policy":         {spec: `ipFamilyPolicy: RequireDualStack`, update: `{ipFamilyPolicy: SingleStack}`, want: "SingleStack [IPv4] [4]"},
		"loses a family by the list":           {spec: `ipFamilyPolicy: RequireDualStack`, update: `{ipFamilies: [IPv4]}`, want: taken + `spec.ipFamilyPolicy: Invalid value: "RequireDualStack": must be 'SingleStack' to release the secondary IP family`},
		"the first family stays":               {update: `{ipFamilies: [IPv6]}`, want: taken + "spec.clusterIPs[0]: Invalid value: "},
		"the first family stays first":         {spec: `ipFamilyPolicy: RequireDualStack`, update: `{ipFamilies: [IPv6, IPv4]}`, want: taken + "[spec.clusterIPs[0]: Invalid value: "},
		"keeps what it prefers":                {spec: `ipFamilyPolicy: PreferDualStack`, update: `{sessionAffinity: ClientIP}`, want: "PreferDualStack [IPv4 IPv6] [4 6]"},
		"becomes an external name":             {spec: `ipFamilyPolicy: RequireDualStack`, update: `{type: ExternalName, externalName: example.org, selector: null}`, want: " [] []"},
		"headless ones change their families":  {spec: `{clusterIP: None, selector: {a: b}}`, update: `{ipFamilies: [IPv6]}`, want: "SingleStack [IPv6] [None]"},
		"headless ones gain them":              {spec: `{clusterIP: None, selector: {a: b}}`, update: `{ipFamilyPolicy: PreferDualStack}`, want: "PreferDualStack [IPv4 IPv6] [None]"},
		"what is not headless does not become": {update: `{clusterIP: None, clusterIPs: [None]}`, want: taken + "spec.clusterIPs[0]: Invalid value: "},
	} {
		t.Run(name, func(t *testing.T) {
			var edit []func(*api.Config)
			switch {
			case tc.six:
				edit = append(edit, sixAlone)
			case !tc.single:
				edit = append(edit, dualStack)
			}
			st := newSite(t, edit...)
			st.namespace("shop")
			svcs, ctx := st.clientset("").CoreV1().Services("shop"), t.Context()
			s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s"}}
			if err := yaml.Unmarshal([]byte(tc.spec), &s.Spec); err != nil {
				t.Fatal(err)
			}
			s.Spec.Ports = []corev1.ServicePort{{Port: 80}}
			dry, dryErr := svcs.Create(ctx, s, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			made, err := svcs.Create(ctx, s, metav1.CreateOptions{})
			if (err == nil) != (dryErr == nil) && !strings.Contains(err.Error(), "allocate") || err == nil && fmt.Sprint(dry.Spec.IPFamilies) != fmt.Sprint(made.Spec.IPFamilies) {
				t.Errorf("a dry run says %v, %v", dry.Spec.IPFamilies, dryErr)
			}
			if tc.update != "" && err == nil {
				patch, yerr := yaml.YAMLToJSON([]byte("{spec: " + tc.update + "}"))
				if yerr != nil {
					t.Fatal(yerr)
				}
				made, err = svcs.Patch(ctx, "s", "application/merge-patch+json", patch, metav1.PatchOptions{})
			}
			got := ""
			if err != nil {
				if got = err.Error(); !apierrors.IsInvalid(err) {
					t.Errorf("it is refused as %v", apierrors.ReasonForError(err))
				}
			} else {
				got = families(made)
			}
			if err == nil && got != tc.want || err != nil && !strings.HasPrefix(got, tc.want) {
				t.Errorf("got\n%s\nwant\n%s", got, tc.want)
			}
			// Whatever happened, what is reserved is what Services have.
			held := 0
			all, err := st.clientset("").CoreV1().Services("").List(ctx, metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range all.Items {
				for _, ip := range s.Spec.ClusterIPs {
					if ip != corev1.ClusterIPNone {
						held++
					}
				}
			}
			if r, _ := st.store.List("ipaddresses.networking.k8s.io", ""); len(r) != held {
				t.Errorf("%d addresses are reserved, Services have %d", len(r), held)
			}
		})
	}
}

// The cluster's own range and addresses say which families there are.
func TestSixAloneObjects(t *testing.T) {
	st := newSite(t, sixAlone)
	cs, ctx := st.clientset(""), t.Context()
	cidr, err := cs.NetworkingV1().ServiceCIDRs().Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil || fmt.Sprint(cidr.Spec.CIDRs) != "[fd00::ff00:0/112]" {
		t.Errorf("%v, %v", cidr.Spec.CIDRs, err)
	}
	kubernetes, err := cs.CoreV1().Services("default").Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil || families(kubernetes) != "SingleStack [IPv6] [6]" || kubernetes.Spec.ClusterIP != "fd00::ff00:1" {
		t.Errorf("%s at %s, %v", families(kubernetes), kubernetes.Spec.ClusterIP, err)
	}
}

func TestDualStackObjects(t *testing.T) {
	st := newSite(t, dualStack)
	cs, ctx := st.clientset(""), t.Context()
	cidr, err := cs.NetworkingV1().ServiceCIDRs().Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil || fmt.Sprint(cidr.Spec.CIDRs) != "[10.96.0.0/16 fd00::ff00:0/112]" {
		t.Errorf("%v, %v", cidr.Spec.CIDRs, err)
	}
	kubernetes, err := cs.CoreV1().Services("default").Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil || families(kubernetes) != "SingleStack [IPv4] [4]" {
		t.Errorf("%s, %v", families(kubernetes), err)
	}
	six, err := cs.CoreV1().Services("default").Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "six"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}, IPFamilies: []corev1.IPFamily{corev1.IPv6Protocol}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	address, err := cs.NetworkingV1().IPAddresses().Get(ctx, six.Spec.ClusterIP, metav1.GetOptions{})
	if err != nil || address.Labels["ipaddress.kubernetes.io/ip-family"] != "IPv6" || address.Spec.ParentRef.Name != "six" {
		t.Errorf("%v of %v, %v", address.Labels, address.Spec.ParentRef, err)
	}
}
