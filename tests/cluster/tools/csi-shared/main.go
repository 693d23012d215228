// SPDX-License-Identifier: Apache-2.0

// Somebody else's storage: a CSI driver whose volumes are files of one directory that all nodes share, as a disk array would
// be. A volume is published to one node at a time. It stands in for kubernetes-csi/csi-driver-host-path, which the module
// proxy does not have, and whose volumes would not move between nodes. Block and Filesystem (ext4) mode, of the same volume too;
// no snapshots. With the parameter kind=directory a volume is a directory, as those of that driver and of NFS are, and no block
// device.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	name         = "shared.test.tidemark.io"
	smallest     = 1 << 20
	defaultBytes = 1 << 30
)

var validID = regexp.MustCompile(`^[a-z0-9-]{1,120}$`)

type driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer
	directory, node string
}

func (d *driver) file(id string) string      { return filepath.Join(d.directory, id+".img") }
func (d *driver) tree(id string) string      { return filepath.Join(d.directory, id+".dir") }
func (d *driver) publisher(id string) string { return filepath.Join(d.directory, id+".node") }

// volume gives the size of a volume, or NotFound.
func (d *driver) volume(id string) (int64, error) {
	if !validID.MatchString(id) {
		return 0, status.Errorf(codes.InvalidArgument, "volume id %q", id)
	}
	info, err := os.Stat(d.file(id))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, status.Errorf(codes.NotFound, "volume %s does not exist", id)
	}
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func run(program string, arguments ...string) (string, error) {
	output, err := exec.Command(program, arguments...).CombinedOutput()
	if err != nil {
		return "", status.Errorf(codes.Internal, "%s %s: %v: %s", program, strings.Join(arguments, " "), err, output)
	}
	return strings.TrimSpace(string(output)), nil
}

// mounted: the mount table knows device nodes that are bind mounts, too.
func mounted(path string) bool {
	table, err := os.ReadFile("/proc/self/mountinfo")
	return err == nil && strings.Contains(string(table), " "+path+" ")
}

func (d *driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: name, VendorVersion: "1"}, nil
}

func (d *driver) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{
		{Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: csi.PluginCapability_Service_CONTROLLER_SERVICE}}},
		{Type: &csi.PluginCapability_VolumeExpansion_{VolumeExpansion: &csi.PluginCapability_VolumeExpansion{Type: csi.PluginCapability_VolumeExpansion_ONLINE}}},
	}}, nil
}

func (d *driver) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}

func (d *driver) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	reply := &csi.ControllerGetCapabilitiesResponse{}
	for _, kind := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
	} {
		reply.Capabilities = append(reply.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: kind}}})
	}
	return reply, nil
}

func (d *driver) CreateVolume(_ context.Context, request *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	size := request.CapacityRange.GetRequiredBytes()
	if size == 0 {
		size = defaultBytes
	}
	size = (max(size, smallest) + 4095) &^ 4095
	if !validID.MatchString(request.Name) || len(request.VolumeCapabilities) == 0 {
		return nil, status.Error(codes.InvalidArgument, "a name and capabilities are needed")
	}
	present, err := d.volume(request.Name)
	switch {
	case err == nil && present != size:
		return nil, status.Errorf(codes.AlreadyExists, "volume %s has %d bytes", request.Name, present)
	case err != nil && status.Code(err) != codes.NotFound:
		return nil, err
	case err != nil:
		if err := resize(d.file(request.Name), size); err != nil {
			return nil, err
		}
	}
	attributes := map[string]string{}
	if kind := request.Parameters["kind"]; kind != "" {
		attributes["kind"] = kind
	}
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: request.Name, CapacityBytes: size, VolumeContext: attributes}}, nil
}

func resize(path string, size int64) error {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	return file.Truncate(size)
}

func (d *driver) DeleteVolume(_ context.Context, request *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if _, err := d.volume(request.VolumeId); status.Code(err) == codes.NotFound {
		return &csi.DeleteVolumeResponse{}, nil
	} else if err != nil {
		return nil, err
	}
	if node, err := os.ReadFile(d.publisher(request.VolumeId)); err == nil {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s is published to %s", request.VolumeId, node)
	}
	if err := os.RemoveAll(d.tree(request.VolumeId)); err != nil {
		return nil, err
	}
	return &csi.DeleteVolumeResponse{}, os.Remove(d.file(request.VolumeId))
}

func (d *driver) ControllerPublishVolume(_ context.Context, request *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	if _, err := d.volume(request.VolumeId); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(d.publisher(request.VolumeId), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		node, err := os.ReadFile(d.publisher(request.VolumeId))
		if err != nil || string(node) != request.NodeId {
			return nil, status.Errorf(codes.FailedPrecondition, "volume %s is published to %s", request.VolumeId, node)
		}
		return &csi.ControllerPublishVolumeResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if _, err := file.WriteString(request.NodeId); err != nil {
		return nil, err
	}
	return &csi.ControllerPublishVolumeResponse{}, nil
}

func (d *driver) ControllerUnpublishVolume(_ context.Context, request *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	node, err := os.ReadFile(d.publisher(request.VolumeId))
	if err == nil && (request.NodeId == "" || string(node) == request.NodeId) {
		err = os.Remove(d.publisher(request.VolumeId))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return &csi.ControllerUnpublishVolumeResponse{}, nil
}

func (d *driver) ValidateVolumeCapabilities(_ context.Context, request *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if _, err := d.volume(request.VolumeId); err != nil {
		return nil, err
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeCapabilities: request.VolumeCapabilities}}, nil
}

func (d *driver) ControllerExpandVolume(_ context.Context, request *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	present, err := d.volume(request.VolumeId)
	if err != nil {
		return nil, err
	}
	size := max(present, (request.CapacityRange.GetRequiredBytes()+4095)&^4095)
	if err := resize(d.file(request.VolumeId), size); err != nil {
		return nil, err
	}
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: size, NodeExpansionRequired: true}, nil
}

func (d *driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	reply := &csi.NodeGetCapabilitiesResponse{}
	for _, kind := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
	} {
		reply.Capabilities = append(reply.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: kind}}})
	}
	return reply, nil
}

func (d *driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.node}, nil
}

// loop gives the loop device of a volume, and attaches it when it has none and attach is true. The list of devices is the
// machine's, so a device of a lost node would be found too: the file's path is the same on all nodes.
func (d *driver) loop(id string, attach bool) (string, error) {
	devices, err := run("losetup", "--noheadings", "--output", "NAME", "--associated", d.file(id))
	if err != nil {
		return "", err
	}
	if first, _, _ := strings.Cut(devices, "\n"); first != "" || !attach {
		return strings.TrimSpace(first), nil
	}
	return run("losetup", "--find", "--show", "--direct-io=on", d.file(id))
}

func (d *driver) NodeStageVolume(_ context.Context, request *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	if _, err := d.volume(request.VolumeId); err != nil {
		return nil, err
	}
	if request.VolumeContext["kind"] == "directory" {
		return d.stageTree(request)
	}
	device, err := d.loop(request.VolumeId, true)
	if err != nil || request.VolumeCapability.GetBlock() != nil || mounted(request.StagingTargetPath) {
		return &csi.NodeStageVolumeResponse{}, err
	}
	if exec.Command("blkid", "-p", device).Run() != nil {
		if _, err := run("mkfs.ext4", "-q", device); err != nil {
			return nil, err
		}
	}
	_, err = run("mount", "-t", "ext4", device, request.StagingTargetPath)
	return &csi.NodeStageVolumeResponse{}, err
}

func (d *driver) stageTree(request *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	if request.VolumeCapability.GetBlock() != nil {
		return nil, status.Errorf(codes.InvalidArgument, "volume %s is a directory, and cannot be a block device", request.VolumeId)
	}
	if mounted(request.StagingTargetPath) {
		return &csi.NodeStageVolumeResponse{}, nil
	}
	if err := os.MkdirAll(d.tree(request.VolumeId), 0o755); err != nil {
		return nil, err
	}
	_, err := run("mount", "--bind", d.tree(request.VolumeId), request.StagingTargetPath)
	return &csi.NodeStageVolumeResponse{}, err
}

func (d *driver) NodeUnstageVolume(_ context.Context, request *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	if mounted(request.StagingTargetPath) {
		if _, err := run("umount", request.StagingTargetPath); err != nil {
			return nil, err
		}
	}
	if device, err := d.loop(request.VolumeId, false); err != nil {
		return nil, err
	} else if device != "" {
		if _, err := run("losetup", "--detach", device); err != nil {
			return nil, err
		}
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}

func (d *driver) NodePublishVolume(_ context.Context, request *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	if mounted(request.TargetPath) {
		return &csi.NodePublishVolumeResponse{}, nil
	}
	source := request.StagingTargetPath
	if request.VolumeCapability.GetBlock() != nil {
		device, err := d.loop(request.VolumeId, true)
		if err != nil {
			return nil, err
		}
		source = device
		if err := os.MkdirAll(filepath.Dir(request.TargetPath), 0o750); err != nil {
			return nil, err
		}
		if err := os.WriteFile(request.TargetPath, nil, 0o600); err != nil {
			return nil, err
		}
	} else if err := os.MkdirAll(request.TargetPath, 0o750); err != nil {
		return nil, err
	}
	_, err := run("mount", "--bind", source, request.TargetPath)
	return &csi.NodePublishVolumeResponse{}, err
}

func (d *driver) NodeUnpublishVolume(_ context.Context, request *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if mounted(request.TargetPath) {
		if _, err := run("umount", request.TargetPath); err != nil {
			return nil, err
		}
	}
	if err := os.Remove(request.TargetPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

func (d *driver) NodeExpandVolume(_ context.Context, request *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	device, err := d.loop(request.VolumeId, true)
	if err != nil {
		return nil, err
	}
	if _, err := run("losetup", "--set-capacity", device); err != nil {
		return nil, err
	}
	if request.VolumeCapability.GetMount() != nil {
		if _, err := run("resize2fs", device); err != nil {
			return nil, err
		}
	}
	return &csi.NodeExpandVolumeResponse{}, nil
}

func main() {
	d := &driver{}
	socket := flag.String("csi-address", "/csi/csi.sock", "the socket to serve")
	flag.StringVar(&d.directory, "directory", "/var/lib/tidemark-shared", "where the volumes are, the same on all nodes")
	flag.StringVar(&d.node, "node", "", "the node's name")
	flag.Parse()
	if err := os.Remove(*socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Fatal(err)
	}
	listener, err := net.Listen("unix", *socket)
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		reply, err := next(ctx, request)
		if err != nil {
			log.Printf("%s: %v", info.FullMethod, err)
		}
		return reply, err
	}))
	csi.RegisterIdentityServer(server, d)
	csi.RegisterControllerServer(server, d)
	csi.RegisterNodeServer(server, d)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-signals
		server.Stop()
	}()
	fmt.Println("serving", *socket)
	if err := server.Serve(listener); err != nil {
		log.Fatal(err)
	}
}
