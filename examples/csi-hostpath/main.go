// Command csi-hostpath is a CSI driver as small as one can be: its volumes are
// folders of one host, mounted by bind, or files, as loop devices; a snapshot is a
// copy, and so is a clone. It shows what an ordinary driver does, and is what
// Conclave's own tests run.
//
// A volume is a folder or a file below --state, with what is known of it in a file
// beside it. It is where it was made: its topology is the host's name. A volume in
// use is a bind mount of the folder, or of the node of its device, staged once
// and published for each pod.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

func main() {
	d := &driver{}
	endpoint := flag.String("endpoint", "/csi/csi.sock", "socket to answer at")
	register := flag.String("registration", "", "folder to register in (kubelet's plugins_registry); empty: registers nowhere")
	told := flag.String("kubelet-registration-path", "", "path of the endpoint as the kubelet sees it")
	flag.StringVar(&d.name, "name", "hostpath.csi.conclave.test", "name of the driver")
	flag.StringVar(&d.node, "node", "", "id of this node, and its topology")
	flag.StringVar(&d.state, "state", "/state", "folder that holds the volumes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := d.run(ctx, strings.TrimPrefix(*endpoint, "unix://"), *register, *told); err != nil {
		log.Fatal(err)
	}
}

func (d *driver) run(ctx context.Context, endpoint, register, told string) error {
	if err := os.MkdirAll(d.state, 0o750); err != nil {
		return err
	}
	s := grpc.NewServer(grpc.UnaryInterceptor(d.logged))
	csi.RegisterIdentityServer(s, d)
	csi.RegisterControllerServer(s, d)
	csi.RegisterNodeServer(s, d)
	l, err := listen(endpoint)
	if err != nil {
		return err
	}
	ended := make(chan error, 2)
	go func() { ended <- s.Serve(l) }()
	if register != "" {
		r := grpc.NewServer()
		registration.RegisterRegistrationServer(r, &registrar{name: d.name, endpoint: told})
		socket := filepath.Join(register, d.name+"-reg.sock")
		l, err := listen(socket)
		if err != nil {
			return err
		}
		defer os.Remove(socket)
		defer r.Stop()
		go func() { ended <- r.Serve(l) }()
	}
	log.Printf("driver %s of node %s answers at %s", d.name, d.node, endpoint)
	select {
	case <-ctx.Done():
		s.GracefulStop()
		return nil
	case err := <-ended:
		return err
	}
}

func listen(socket string) (net.Listener, error) {
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	return net.Listen("unix", socket)
}

// logged tells of every call that is more than a question; what it was asked
// with may hold secrets, and is not told.
func (d *driver) logged(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	answer, err := handle(ctx, request)
	if !strings.Contains(info.FullMethod, "Get") && !strings.HasSuffix(info.FullMethod, "Probe") {
		log.Printf("%s: %v", info.FullMethod, err)
	}
	return answer, err
}

// registrar tells the kubelet who is here.
type registrar struct {
	registration.UnsafeRegistrationServer
	name, endpoint string
}

func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: "CSIPlugin", Name: r.name, Endpoint: r.endpoint, SupportedVersions: []string{"1.0.0"}}, nil
}

func (r *registrar) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	log.Printf("registered: %v %s", s.PluginRegistered, s.Error)
	return &registration.RegistrationStatusResponse{}, nil
}
