package api

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What holds for the whole cluster, whatever a node's own flags say, is in a
// ConfigMap: every master reads it from its own replica, and who may change it
// is a matter of RBAC.
const (
	// SettingsName is the ConfigMap's, in kube-system. Every node may read it.
	SettingsName = "conclave"
	// settingUnreachable is how long pods that do not say so themselves stay
	// bound to a node that cannot be reached.
	settingUnreachable = "unreachable-toleration"
)

// clusterSettings are those of a new cluster.
func (s *Server) clusterSettings() *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: SettingsName},
		Data:       map[string]string{settingUnreachable: s.cfg.UnreachableToleration.String()},
	}
}

// unreachableToleration is the cluster's. What cannot be understood counts as
// what a cluster has by default.
func (s *Server) unreachableToleration() time.Duration {
	rec := s.cfg.Storage.Get(configMaps.Resource, metav1.NamespaceSystem, SettingsName)
	if rec == nil {
		return 0
	}
	settings, ok := rec.Object().(*corev1.ConfigMap)
	if !ok {
		return 0
	}
	stay, err := time.ParseDuration(settings.Data[settingUnreachable])
	if err != nil || stay < 0 {
		s.log.Warn("a setting of the cluster cannot be understood: taking 0s", "configmap", metav1.NamespaceSystem+"/"+SettingsName, "setting", settingUnreachable, "value", settings.Data[settingUnreachable])
		return 0
	}
	return stay
}
