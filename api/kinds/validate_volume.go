package kinds

import (
	"path"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// volumes are checked one by one; and returned by name, for mounts to
// refer to.
func (e *problems) volumes(p *field.Path, spec *corev1.PodSpec) map[string]corev1.VolumeSource {
	known := map[string]corev1.VolumeSource{}
	for i := range spec.Volumes {
		v, at := &spec.Volumes[i], p.Index(i)
		if e.nonEmpty(at.Child("name"), v.Name) {
			e.dnsLabel(at.Child("name"), v.Name)
		}
		if _, twice := known[v.Name]; twice {
			e.duplicate(at.Child("name"), v.Name)
		}
		e.volumeSource(at, &v.VolumeSource)
		// A volume with something wrong is known all the same: one complaint is
		// enough, its mounts are not to be blamed for not finding it.
		known[v.Name] = v.VolumeSource
	}
	return known
}

// Types of volumes, of persistent volumes and of what is projected are structs
// of pointers, of which one is to be set.

// membersOf are the JSON names of those that are, one if v is in order.
func membersOf[T any](v *T) []string {
	var out []string
	value := reflect.ValueOf(v).Elem()
	for i := range value.NumField() {
		if !value.Field(i).IsNil() {
			out = append(out, memberName(value.Type(), i))
		}
	}
	return out
}

func memberName(t reflect.Type, i int) string {
	name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
	return name
}

// member is the pointer of this JSON name; the zero value if there is none.
func member(v reflect.Value, name string) reflect.Value {
	for i := range v.NumField() {
		if memberName(v.Type(), i) == name {
			return v.Field(i)
		}
	}
	return reflect.Value{}
}

func (e *problems) volumeSource(p *field.Path, v *corev1.VolumeSource) {
	sources := membersOf(v)
	if len(sources) == 0 {
		e.required(p, "must specify a volume type")
		return
	}
	for _, more := range sources[1:] {
		e.forbidden(p.Child(more), "may not specify more than 1 volume type")
	}
	at := p.Child(sources[0])
	switch sources[0] {
	case "emptyDir":
		s := v.EmptyDir
		if s.SizeLimit != nil && s.SizeLimit.Sign() < 0 {
			e.forbidden(at.Child("sizeLimit"), "SizeLimit field must be a valid resource quantity")
		}
		if s.Mode != nil && (*s.Mode < 0 || *s.Mode > 0o1777) {
			e.invalid(at.Child("mode"), *s.Mode, "must be a number between 0 and 01777 (octal), both inclusive")
		}
	case "hostPath":
		s := v.HostPath
		if !e.nonEmpty(at.Child("path"), s.Path) {
			return
		}
		e.noBacksteps(at.Child("path"), s.Path)
		if s.Type != nil {
			maybeOneOf(e, at.Child("type"), *s.Type, corev1.HostPathUnset, corev1.HostPathDirectoryOrCreate, corev1.HostPathDirectory,
				corev1.HostPathFileOrCreate, corev1.HostPathFile, corev1.HostPathSocket, corev1.HostPathCharDev, corev1.HostPathBlockDev)
		}
	case "secret":
		e.nonEmpty(at.Child("secretName"), v.Secret.SecretName)
		e.fileMode(at.Child("defaultMode"), v.Secret.DefaultMode)
		e.keys(at.Child("items"), v.Secret.Items)
	case "configMap":
		e.nonEmpty(at.Child("name"), v.ConfigMap.Name)
		e.fileMode(at.Child("defaultMode"), v.ConfigMap.DefaultMode)
		e.keys(at.Child("items"), v.ConfigMap.Items)
	case "downwardAPI":
		e.fileMode(at.Child("defaultMode"), v.DownwardAPI.DefaultMode)
		e.downward(at, v.DownwardAPI.Items)
	case "projected":
		e.fileMode(at.Child("defaultMode"), v.Projected.DefaultMode)
		e.projections(at, v.Projected.Sources)
	case "image":
		if v.Image.Reference == "" {
			e.required(at.Child("reference"), "")
		}
		oneOf(e, at.Child("pullPolicy"), v.Image.PullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
	case "persistentVolumeClaim":
		e.nonEmpty(at.Child("claimName"), v.PersistentVolumeClaim.ClaimName)
	case "ephemeral":
		e.ephemeral(at, v.Ephemeral)
	case "csi":
		if e.nonEmpty(at.Child("driver"), v.CSI.Driver) {
			e.each(at.Child("driver"), v.CSI.Driver, validation.IsDNS1123Subdomain(strings.ToLower(v.CSI.Driver)))
		}
		if r := v.CSI.NodePublishSecretRef; r != nil {
			e.nonEmpty(at.Child("nodePublishSecretRef", "name"), r.Name)
		}
	case "nfs":
		e.nonEmpty(at.Child("server"), v.NFS.Server)
		if e.nonEmpty(at.Child("path"), v.NFS.Path) && !path.IsAbs(v.NFS.Path) {
			e.invalid(at.Child("path"), v.NFS.Path, "must be an absolute path")
		}
	case "iscsi":
		e.nonEmpty(at.Child("targetPortal"), v.ISCSI.TargetPortal)
		if e.nonEmpty(at.Child("iqn"), v.ISCSI.IQN) && !strings.HasPrefix(v.ISCSI.IQN, "iqn") && !strings.HasPrefix(v.ISCSI.IQN, "eui") && !strings.HasPrefix(v.ISCSI.IQN, "naa") {
			e.invalid(at.Child("iqn"), v.ISCSI.IQN, "must be valid format")
		}
		if v.ISCSI.Lun < 0 || v.ISCSI.Lun > 255 {
			e.invalid(at.Child("lun"), v.ISCSI.Lun, validation.InclusiveRangeError(0, 255))
		}
		if (v.ISCSI.DiscoveryCHAPAuth || v.ISCSI.SessionCHAPAuth) && v.ISCSI.SecretRef == nil {
			e.required(at.Child("secretRef"), "")
		}
	case "fc":
		if len(v.FC.TargetWWNs) < 1 && len(v.FC.WWIDs) < 1 {
			e.required(at.Child("targetWWNs"), "must specify either targetWWNs or wwids, but not both")
		}
		if len(v.FC.TargetWWNs) > 0 && len(v.FC.WWIDs) > 0 {
			e.invalid(at.Child("targetWWNs"), v.FC.TargetWWNs, "targetWWNs and wwids can not be specified simultaneously")
		}
		if len(v.FC.TargetWWNs) > 0 && v.FC.Lun == nil {
			e.required(at.Child("lun"), "lun is required if targetWWNs is specified")
		}
	case "gitRepo":
		e.nonEmpty(at.Child("repository"), v.GitRepo.Repository)
		e.localPath(at.Child("directory"), v.GitRepo.Directory)
	case "flocker":
		f := v.Flocker
		if f.DatasetName == "" && f.DatasetUUID == "" {
			e.required(at, "one of datasetName and datasetUUID is required")
		}
		if f.DatasetName != "" && f.DatasetUUID != "" {
			e.invalid(at, "resource", "datasetName and datasetUUID can not be specified simultaneously")
		}
		if strings.Contains(f.DatasetName, "/") {
			e.invalid(at.Child("datasetName"), f.DatasetName, "must not contain '/'")
		}
	default:
		// The rest have drivers of their own; only that nothing is missing can
		// be said of them here.
		e.requiredFields(at, sources[0], v)
	}
}

// requiredFields of the types of volumes that no node of ours mounts.
func (e *problems) requiredFields(p *field.Path, source string, v *corev1.VolumeSource) {
	type required struct{ name, value string }
	var list []required
	switch source {
	case "gcePersistentDisk":
		list = []required{{"pdName", v.GCEPersistentDisk.PDName}}
		if n := v.GCEPersistentDisk.Partition; n < 0 || n > 255 {
			e.invalid(p.Child("partition"), n, validation.InclusiveRangeError(0, 255))
		}
	case "awsElasticBlockStore":
		list = []required{{"volumeID", v.AWSElasticBlockStore.VolumeID}}
		if n := v.AWSElasticBlockStore.Partition; n < 0 || n > 255 {
			e.invalid(p.Child("partition"), n, validation.InclusiveRangeError(0, 255))
		}
	case "glusterfs":
		list = []required{{"endpoints", v.Glusterfs.EndpointsName}, {"path", v.Glusterfs.Path}}
	case "rbd":
		if len(v.RBD.CephMonitors) == 0 {
			e.required(p.Child("monitors"), "")
		}
		list = []required{{"image", v.RBD.RBDImage}}
	case "cinder":
		list = []required{{"volumeID", v.Cinder.VolumeID}}
	case "cephfs":
		if len(v.CephFS.Monitors) == 0 {
			e.required(p.Child("monitors"), "")
		}
	case "azureFile":
		list = []required{{"secretName", v.AzureFile.SecretName}, {"shareName", v.AzureFile.ShareName}}
	case "azureDisk":
		list = []required{{"diskName", v.AzureDisk.DiskName}, {"diskURI", v.AzureDisk.DataDiskURI}}
	case "flexVolume":
		list = []required{{"driver", v.FlexVolume.Driver}}
	case "vsphereVolume":
		list = []required{{"volumePath", v.VsphereVolume.VolumePath}}
	case "quobyte":
		list = []required{{"registry", v.Quobyte.Registry}, {"volume", v.Quobyte.Volume}}
	case "photonPersistentDisk":
		list = []required{{"pdID", v.PhotonPersistentDisk.PdID}}
	case "portworxVolume":
		list = []required{{"volumeID", v.PortworxVolume.VolumeID}}
	case "scaleIO":
		list = []required{{"gateway", v.ScaleIO.Gateway}, {"system", v.ScaleIO.System}, {"volumeName", v.ScaleIO.VolumeName}}
	case "storageos":
		list = []required{{"volumeName", v.StorageOS.VolumeName}}
	}
	for _, r := range list {
		e.nonEmpty(p.Child(r.name), r.value)
	}
}

func (e *problems) keys(p *field.Path, items []corev1.KeyToPath) {
	for i, item := range items {
		at := p.Index(i)
		e.nonEmpty(at.Child("key"), item.Key)
		if e.nonEmpty(at.Child("path"), item.Path) {
			e.localFile(at.Child("path"), item.Path)
		}
		e.fileMode(at.Child("mode"), item.Mode)
	}
}

func (e *problems) downward(p *field.Path, items []corev1.DownwardAPIVolumeFile) {
	for _, f := range items {
		if e.nonEmpty(p.Child("path"), f.Path) {
			e.localFile(p.Child("path"), f.Path)
		}
		switch {
		case f.FieldRef != nil:
			e.fieldRef(p.Child("fieldRef"), f.FieldRef, fileFields)
			if f.ResourceFieldRef != nil {
				e.invalid(p, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously")
			}
		case f.ResourceFieldRef != nil:
			e.resourceFieldRef(p.Child("resourceFieldRef"), f.ResourceFieldRef, true)
		default:
			e.required(p, "one of fieldRef and resourceFieldRef is required")
		}
		e.fileMode(p.Child("mode"), f.Mode)
	}
}

func (e *problems) projections(p *field.Path, sources []corev1.VolumeProjection) {
	paths := map[string]bool{}
	// once says of a file that it is written twice.
	once := func(at *field.Path, file, conflict string) {
		if file == "" {
			return
		}
		if paths[file] {
			e.invalid(at, conflict, "conflicting duplicate paths")
		}
		paths[file] = true
	}
	for i, s := range sources {
		at := p.Child("sources").Index(i)
		n := 0
		only := func(name string) *field.Path {
			if n++; n > 1 {
				e.forbidden(at.Child(name), "may not specify more than 1 volume type per source")
				return nil
			}
			return at.Child(name)
		}
		if s.Secret != nil {
			if at := only("secret"); at != nil {
				e.nonEmpty(at.Child("name"), s.Secret.Name)
				e.keys(at.Child("items"), s.Secret.Items)
				for _, item := range s.Secret.Items {
					once(p, item.Path, s.Secret.Name)
				}
			}
		}
		if s.ConfigMap != nil {
			if at := only("configMap"); at != nil {
				e.nonEmpty(at.Child("name"), s.ConfigMap.Name)
				e.keys(at.Child("items"), s.ConfigMap.Items)
				for _, item := range s.ConfigMap.Items {
					once(p, item.Path, s.ConfigMap.Name)
				}
			}
		}
		if s.DownwardAPI != nil {
			if at := only("downwardAPI"); at != nil {
				e.downward(at, s.DownwardAPI.Items)
				for _, item := range s.DownwardAPI.Items {
					once(p, item.Path, item.Path)
				}
			}
		}
		if t := s.ServiceAccountToken; t != nil {
			if at := only("serviceAccountToken"); at != nil {
				if t.ExpirationSeconds != nil {
					if *t.ExpirationSeconds < 10*60 {
						e.invalid(at.Child("expirationSeconds"), *t.ExpirationSeconds, "may not specify a duration less than 10 minutes")
					}
					if *t.ExpirationSeconds > 1<<32 {
						e.invalid(at.Child("expirationSeconds"), *t.ExpirationSeconds, "may not specify a duration larger than 2^32 seconds")
					}
				}
				if e.nonEmpty(at.Child("path"), t.Path) {
					e.localFile(at.Child("path"), t.Path)
					once(at, t.Path, t.Path)
				}
			}
		}
		if t := s.ClusterTrustBundle; t != nil {
			if at := only("clusterTrustBundle"); at != nil {
				switch {
				case t.Name != nil && t.SignerName != nil:
					e.invalid(at, t, "only one of name and signerName may be used")
				case t.Name == nil && t.SignerName == nil:
					e.required(at, "either name or signerName must be specified")
				case t.Name != nil && *t.Name == "":
					e.required(at.Child("name"), "must be a valid object name")
				case t.Name != nil && t.LabelSelector != nil:
					e.invalid(at.Child("labelSelector"), t.LabelSelector, "labelSelector must be unset if name is specified")
				}
				labelSelector(e, at.Child("labelSelector"), t.LabelSelector)
				if e.nonEmpty(at.Child("path"), t.Path) {
					e.localFile(at.Child("path"), t.Path)
					once(p, t.Path, t.Path)
				}
			}
		}
		if c := s.PodCertificate; c != nil {
			if at := only("podCertificate"); at != nil {
				e.nonEmpty(at.Child("signerName"), c.SignerName)
				oneOf(e, at.Child("keyType"), c.KeyType, "RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519")
				if c.MaxExpirationSeconds != nil && (*c.MaxExpirationSeconds < 3600 || *c.MaxExpirationSeconds > 91*24*3600) {
					e.invalid(at.Child("maxExpirationSeconds"), *c.MaxExpirationSeconds, validation.InclusiveRangeError(3600, 91*24*3600))
				}
				files := map[string]string{"credentialBundlePath": c.CredentialBundlePath, "keyPath": c.KeyPath, "certificateChainPath": c.CertificateChainPath}
				for name, file := range sorted(files) {
					if file != "" {
						e.localFile(at.Child(name), file)
						once(at.Child(name), file, file)
					}
				}
				if c.CredentialBundlePath == "" && c.KeyPath == "" && c.CertificateChainPath == "" {
					e.required(at, "specify at least one of credentialBundlePath, keyPath, and certificateChainPath")
				}
			}
		}
		if n == 0 {
			e.required(at, "must specify a volume type")
		}
	}
}

func (e *problems) ephemeral(p *field.Path, s *corev1.EphemeralVolumeSource) {
	if s.VolumeClaimTemplate == nil {
		e.required(p.Child("volumeClaimTemplate"), "")
		return
	}
	e.claimSpec(p.Child("volumeClaimTemplate", "spec"), &s.VolumeClaimTemplate.Spec)
}
