package agent

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

const (
	maxNameservers = 3
	maxSearches    = 32
	maxSearchChars = 2048
)

// resolver is the content of a resolv.conf.
type resolver struct{ nameservers, searches, options []string }

func (r resolver) String() string {
	var b strings.Builder
	if len(r.searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(r.searches, " "))
	}
	for _, n := range r.nameservers {
		fmt.Fprintf(&b, "nameserver %s\n", n)
	}
	if len(r.options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(r.options, " "))
	}
	return b.String()
}

// parseResolver reads a resolv.conf; the last search line counts.
func parseResolver(data []byte) resolver {
	var r resolver
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") || strings.HasPrefix(fields[0], ";") {
			continue
		}
		switch fields[0] {
		case "nameserver":
			if len(fields) > 1 {
				r.nameservers = append(r.nameservers, fields[1])
			}
		case "search", "domain":
			r.searches = nil
			for _, s := range fields[1:] {
				if s != "." {
					s = strings.TrimSuffix(s, ".")
				}
				r.searches = append(r.searches, s)
			}
		case "options":
			r.options = append(r.options, fields[1:]...)
		}
	}
	return r
}

// hostResolver is the host's own, past a stub of systemd-resolved, which
// listens where pods cannot reach it.
func hostResolver() resolver {
	var r resolver
	for _, path := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if r = parseResolver(data); len(r.nameservers) != 1 || r.nameservers[0] != "127.0.0.53" {
			return r
		}
	}
	return r
}

// podResolver is what a pod's resolv.conf says by its dnsPolicy and dnsConfig.
func podResolver(pod *corev1.Pod, host resolver, clusterDNS, domain string) resolver {
	policy := pod.Spec.DNSPolicy
	if policy == corev1.DNSClusterFirst && pod.Spec.HostNetwork || policy == corev1.DNSClusterFirstWithHostNet && !pod.Spec.HostNetwork {
		policy = map[bool]corev1.DNSPolicy{true: corev1.DNSDefault, false: corev1.DNSClusterFirst}[pod.Spec.HostNetwork]
	}
	var r resolver
	switch policy {
	case corev1.DNSNone:
	case corev1.DNSDefault:
		r = host
	default:
		if clusterDNS == "" {
			r = host
			break
		}
		r.nameservers = []string{clusterDNS}
		if domain != "" {
			svc := "svc." + domain
			r.searches = append([]string{pod.Namespace + "." + svc, svc, domain}, host.searches...)
		}
		r.options = []string{"ndots:5"}
	}
	if c := pod.Spec.DNSConfig; c != nil {
		r.nameservers = union(r.nameservers, c.Nameservers)
		r.searches = union(r.searches, c.Searches)
		r.options = mergeOptions(r.options, c.Options)
	}
	return r
}

// fit leaves out what resolvers do not read, and says so in kubelet's words.
func (r resolver) fit() (_ resolver, omitted []string) {
	if len(r.nameservers) > maxNameservers {
		r.nameservers = r.nameservers[:maxNameservers]
		omitted = append(omitted, "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: "+strings.Join(r.nameservers, " "))
	}
	all := len(r.searches)
	for len(r.searches) > maxSearches || len(strings.Join(r.searches, " ")) > maxSearchChars {
		r.searches = r.searches[:len(r.searches)-1]
	}
	if len(r.searches) < all {
		omitted = append(omitted, "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: "+strings.Join(r.searches, " "))
	}
	return r, omitted
}

// resolverOf is what a pod's resolv.conf says here, and what had to be left out.
func (a *Agent) resolverOf(pod *corev1.Pod) (resolver, []string) {
	dns := ""
	if a.cfg.ClusterDNS.IsValid() {
		dns = a.cfg.ClusterDNS.String()
	}
	return podResolver(pod, hostResolver(), dns, a.cfg.ClusterDomain).fit()
}

func union(a, b []string) []string {
	seen := map[string]bool{}
	var out []string
	for _, list := range [][]string{a, b} {
		for _, s := range list {
			if !seen[s] {
				seen[s] = true
				out = append(out, s)
			}
		}
	}
	return out
}

func mergeOptions(have []string, more []corev1.PodDNSConfigOption) []string {
	var out []string
	override := map[string]bool{}
	for _, o := range more {
		override[o.Name] = true
	}
	for _, o := range have {
		if name, _, _ := strings.Cut(o, ":"); !override[name] {
			out = append(out, o)
		}
	}
	for _, o := range more {
		if o.Value != nil && *o.Value != "" {
			out = append(out, o.Name+":"+*o.Value)
		} else {
			out = append(out, o.Name)
		}
	}
	return out
}

// podHostname is the pod's host name, and its name in the cluster's domain if
// it has a subdomain.
func podHostname(pod *corev1.Pod, domain string) (hostname, fqdn string) {
	if o := pod.Spec.HostnameOverride; o != nil && *o != "" {
		return *o, "" // whatever its names in the cluster's domain
	}
	hostname = pod.Spec.Hostname
	if hostname == "" {
		hostname = strings.TrimRight(pod.Name[:min(len(pod.Name), 63)], "-.")
	}
	if pod.Spec.Subdomain != "" {
		fqdn = fmt.Sprintf("%s.%s.%s.svc.%s", hostname, pod.Spec.Subdomain, pod.Namespace, domain)
	}
	if isTrue(pod.Spec.SetHostnameAsFQDN) && fqdn != "" {
		hostname = fqdn
	}
	return hostname, fqdn
}

const managedHosts = `# Kubernetes-managed hosts file.
127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
fe00::0	ip6-localnet
fe00::0	ip6-mcastprefix
fe00::1	ip6-allnodes
fe00::2	ip6-allrouters
`

// hostsFile is the pod's /etc/hosts. A pod of the host network sees the host's.
func hostsFile(pod *corev1.Pod, hostHosts []byte, ips []string, domain string) []byte {
	var b bytes.Buffer
	if pod.Spec.HostNetwork {
		b.WriteString("# Kubernetes-managed hosts file (host network).\n")
		b.Write(hostHosts)
		if n := b.Len(); b.Bytes()[n-1] != '\n' {
			b.WriteByte('\n')
		}
	} else {
		b.WriteString(managedHosts)
		hostname, fqdn := podHostname(pod, domain)
		for _, ip := range ips {
			if fqdn != "" {
				fmt.Fprintf(&b, "%s\t%s\t%s\n", ip, fqdn, strings.SplitN(hostname, ".", 2)[0])
			} else {
				fmt.Fprintf(&b, "%s\t%s\n", ip, hostname)
			}
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, h := range pod.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", h.IP, strings.Join(h.Hostnames, "\t"))
		}
	}
	return b.Bytes()
}

// writeEtc writes the three files that pods find in /etc. Unless the sandbox is
// a new one, they are rewritten only if they are not there: containers may have
// changed theirs. dns is resolverOf's.
func (a *Agent) writeEtc(pod *corev1.Pod, d podDirs, ips []string, dns resolver, fresh bool) error {
	if err := os.MkdirAll(d.etc, dirMode); err != nil {
		return err
	}
	hostname, _ := podHostname(pod, a.cfg.ClusterDomain)
	if pod.Spec.HostNetwork {
		if h, err := os.Hostname(); err == nil {
			hostname = h
		}
	}
	hostHosts, err := os.ReadFile("/etc/hosts")
	if err != nil && pod.Spec.HostNetwork {
		a.log.Warn("the host's hosts file cannot be read", "err", err)
	}
	for name, content := range map[string][]byte{
		"hostname":    []byte(hostname + "\n"),
		"hosts":       hostsFile(pod, hostHosts, ips, a.cfg.ClusterDomain),
		"resolv.conf": []byte(dns.String()),
	} {
		path := filepath.Join(d.etc, name)
		if name != "hosts" && !fresh {
			if _, err := os.Lstat(path); err == nil {
				continue
			}
		} else if old, err := readPart(path, 0, int64(len(content))); !fresh && err == nil && bytes.Equal(old, content) {
			continue
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
		if err := os.Chmod(path, 0o644); err != nil {
			return err
		}
	}
	return nil
}
