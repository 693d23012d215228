// SPDX-License-Identifier: Apache-2.0

// A stand-in for kubernetes-csi/node-driver-registrar, which the module proxy does not have: it tells the kubelet of a CSI
// driver's socket, over the kubelet's plugin registration, with upstream's options.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

type server struct {
	registration.UnimplementedRegistrationServer
	name, endpoint string
}

func (s *server) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              s.name,
		Endpoint:          s.endpoint,
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

// A refusal ends the process, so that it is started again and tries again.
func (s *server) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if !status.PluginRegistered {
		log.Fatalf("the kubelet refused %s: %s", s.name, status.Error)
	}
	log.Printf("%s is registered", s.name)
	return &registration.RegistrationStatusResponse{}, nil
}

// driverName waits for the driver to answer: it may start after this process.
func driverName(address string) string {
	connection, err := grpc.NewClient("unix:"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	reply, err := csi.NewIdentityClient(connection).GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
	if err != nil {
		log.Fatalf("%s does not answer: %v", address, err)
	}
	return reply.Name
}

func main() {
	address := flag.String("csi-address", "/csi/csi.sock", "the driver's socket")
	endpoint := flag.String("kubelet-registration-path", "", "the same socket as the kubelet sees it")
	directory := flag.String("plugin-registration-path", "/registration", "where the kubelet looks for registrations")
	flag.Parse()
	s := &server{name: driverName(*address), endpoint: *endpoint}
	socket := filepath.Join(*directory, s.name+"-reg.sock")
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		log.Fatal(err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		log.Fatal(err)
	}
	service := grpc.NewServer()
	registration.RegisterRegistrationServer(service, s)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-signals
		service.Stop() // removes the socket
	}()
	if err := service.Serve(listener); err != nil {
		log.Fatal(err)
	}
}
