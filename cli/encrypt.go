package cli

import (
	"errors"

	"conclave/identity"
	"conclave/network"
)

// agreeEncrypted says whether what is asked for is what the cluster of this
// node has, and whether this node can do it.
func (s *Server) agreeEncrypted(c identity.Cluster) error {
	if s.config.Encrypt && !c.Encrypt {
		return errors.New("this node's cluster was founded without --encrypt, and that stays: found another cluster, or leave --encrypt away")
	}
	return s.canEncrypt(c)
}

// canEncrypt refuses a cluster that encrypts where this node cannot.
func (s *Server) canEncrypt(c identity.Cluster) error {
	if !c.Encrypt {
		return nil
	}
	return network.ProbeEncryption(s.config.DirectRoutes)
}

// encryption is what the network needs in a cluster that encrypts.
func (s *Server) encryption(c identity.Cluster) *network.Encryption {
	if !c.Encrypt {
		return nil
	}
	return &network.Encryption{Start: s.engine.StartBeside}
}

// nodeAnnotations are what other nodes have to know of this one's network.
func (s *Server) nodeAnnotations() map[string]string {
	if key := s.net.PublicKey(); key != "" {
		return map[string]string{network.AnnotationWireGuardKey: key}
	}
	return nil
}
