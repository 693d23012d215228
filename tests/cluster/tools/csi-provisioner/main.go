// SPDX-License-Identifier: Apache-2.0

// A stand-in for kubernetes-csi/external-provisioner, whose library the module proxy does not have. It makes a volume for each
// claim of a class of its driver, and deletes it after the claim: binding modes, topology, fsType, reclaim policy and the
// finalizer as upstream has them; no clones, snapshots or capacity objects. Options that it does not know it refuses.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	core "k8s.io/api/core/v1"
	storage "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
)

const (
	prefix              = "csi.storage.k8s.io/"
	provisionerKey      = "volume.kubernetes.io/storage-provisioner"
	selectedNodeKey     = "volume.kubernetes.io/selected-node"
	provisionedByKey    = "pv.kubernetes.io/provisioned-by"
	deletionFinalizer   = "external-provisioner.volume.kubernetes.io/finalizer"
	protectionFinalizer = "kubernetes.io/pv-protection"
)

type provisioner struct {
	client     kubernetes.Interface
	controller csi.ControllerClient
	driver     string
	topology   bool
	fsType     string
	metadata   bool
	timeout    time.Duration
	factory    informers.SharedInformerFactory
	queue      workqueue.TypedRateLimitingInterface[string]
	events     record.EventRecorder
}

// segments gives the topology of a node as the driver sees it: the labels that CSINode names.
func (p *provisioner) segments(node string) (map[string]string, error) {
	csiNode, err := p.factory.Storage().V1().CSINodes().Lister().Get(node)
	if err != nil {
		return nil, err
	}
	object, err := p.factory.Core().V1().Nodes().Lister().Get(node)
	if err != nil {
		return nil, err
	}
	for _, driver := range csiNode.Spec.Drivers {
		if driver.Name != p.driver {
			continue
		}
		segments := map[string]string{}
		for _, key := range driver.TopologyKeys {
			segments[key] = object.Labels[key]
		}
		return segments, nil
	}
	return nil, fmt.Errorf("the driver is not on node %s yet", node)
}

// requirement: all topologies where the driver is, the selected node's first.
func (p *provisioner) requirement(selected string) (*csi.TopologyRequirement, error) {
	if !p.topology {
		return nil, nil
	}
	requirement := &csi.TopologyRequirement{}
	csiNodes, err := p.factory.Storage().V1().CSINodes().Lister().List(labels.Everything())
	if err != nil {
		return nil, err
	}
	slices.SortFunc(csiNodes, func(a, b *storage.CSINode) int {
		if (a.Name == selected) != (b.Name == selected) {
			if a.Name == selected {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	for _, node := range csiNodes {
		segments, err := p.segments(node.Name)
		if err != nil || len(segments) == 0 {
			if node.Name == selected {
				return nil, err
			}
			continue
		}
		known := func(t *csi.Topology) bool { return maps.Equal(t.Segments, segments) }
		if !slices.ContainsFunc(requirement.Requisite, known) {
			requirement.Requisite = append(requirement.Requisite, &csi.Topology{Segments: segments})
		}
	}
	requirement.Preferred = requirement.Requisite
	return requirement, nil
}

func accessMode(modes []core.PersistentVolumeAccessMode) csi.VolumeCapability_AccessMode_Mode {
	switch {
	case slices.Contains(modes, core.ReadWriteMany):
		return csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
	case slices.Contains(modes, core.ReadOnlyMany) && len(modes) == 1:
		return csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
	}
	return csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
}

func capability(claim *core.PersistentVolumeClaim, class *storage.StorageClass, fsType string) *csi.VolumeCapability {
	result := &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{Mode: accessMode(claim.Spec.AccessModes)}}
	if claim.Spec.VolumeMode != nil && *claim.Spec.VolumeMode == core.PersistentVolumeBlock {
		result.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	} else {
		result.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{
			FsType: fsType, MountFlags: class.MountOptions}}
	}
	return result
}

func affinity(topologies []*csi.Topology) *core.VolumeNodeAffinity {
	if len(topologies) == 0 {
		return nil
	}
	selector := &core.NodeSelector{}
	for _, topology := range topologies {
		term := core.NodeSelectorTerm{}
		for _, key := range slices.Sorted(maps.Keys(topology.Segments)) {
			term.MatchExpressions = append(term.MatchExpressions, core.NodeSelectorRequirement{
				Key: key, Operator: core.NodeSelectorOpIn, Values: []string{topology.Segments[key]}})
		}
		selector.NodeSelectorTerms = append(selector.NodeSelectorTerms, term)
	}
	return &core.VolumeNodeAffinity{Required: selector}
}

func (p *provisioner) provision(ctx context.Context, claim *core.PersistentVolumeClaim) error {
	if claim.Spec.VolumeName != "" || claim.Annotations[provisionerKey] != p.driver || claim.Spec.StorageClassName == nil {
		return nil
	}
	class, err := p.factory.Storage().V1().StorageClasses().Lister().Get(*claim.Spec.StorageClassName)
	if err != nil || class.Provisioner != p.driver {
		return err
	}
	selected := claim.Annotations[selectedNodeKey]
	if class.VolumeBindingMode != nil && *class.VolumeBindingMode == storage.VolumeBindingWaitForFirstConsumer && selected == "" {
		return nil
	}
	name := "pvc-" + string(claim.UID)
	if _, err := p.client.CoreV1().PersistentVolumes().Get(ctx, name, meta.GetOptions{}); err == nil || !apierrors.IsNotFound(err) {
		return err
	}
	fsType := p.fsType
	parameters := map[string]string{}
	for key, value := range class.Parameters {
		if key == prefix+"fstype" {
			fsType = value
		} else if !strings.HasPrefix(key, prefix) {
			parameters[key] = value
		}
	}
	if p.metadata {
		parameters[prefix+"pvc/name"] = claim.Name
		parameters[prefix+"pvc/namespace"] = claim.Namespace
		parameters[prefix+"pv/name"] = name
	}
	requirement, err := p.requirement(selected)
	if err != nil {
		return err
	}
	request := claim.Spec.Resources.Requests[core.ResourceStorage]
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	reply, err := p.controller.CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name:                      name,
		CapacityRange:             &csi.CapacityRange{RequiredBytes: request.Value()},
		VolumeCapabilities:        []*csi.VolumeCapability{capability(claim, class, fsType)},
		Parameters:                parameters,
		AccessibilityRequirements: requirement,
	})
	if err != nil {
		if status.Code(err) == codes.ResourceExhausted && selected != "" { // let the scheduler choose another node
			copied := claim.DeepCopy()
			delete(copied.Annotations, selectedNodeKey)
			if _, err := p.client.CoreV1().PersistentVolumeClaims(claim.Namespace).Update(ctx, copied, meta.UpdateOptions{}); err != nil {
				return err
			}
		}
		p.events.Eventf(claim, core.EventTypeWarning, "ProvisioningFailed", "%v", err)
		return err
	}
	volume := &core.PersistentVolume{
		ObjectMeta: meta.ObjectMeta{Name: name,
			Annotations: map[string]string{provisionedByKey: p.driver},
			Finalizers:  []string{protectionFinalizer, deletionFinalizer}},
		Spec: core.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: *class.ReclaimPolicy,
			AccessModes:                   claim.Spec.AccessModes,
			MountOptions:                  class.MountOptions,
			VolumeMode:                    claim.Spec.VolumeMode,
			StorageClassName:              class.Name,
			Capacity:                      core.ResourceList{core.ResourceStorage: *resource.NewQuantity(max(reply.Volume.CapacityBytes, request.Value()), resource.BinarySI)},
			NodeAffinity:                  affinity(reply.Volume.AccessibleTopology),
			ClaimRef: &core.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: claim.Namespace,
				Name: claim.Name, UID: claim.UID, ResourceVersion: claim.ResourceVersion},
			PersistentVolumeSource: core.PersistentVolumeSource{CSI: &core.CSIPersistentVolumeSource{
				Driver: p.driver, VolumeHandle: reply.Volume.VolumeId, VolumeAttributes: reply.Volume.VolumeContext}},
		},
	}
	if claim.Spec.VolumeMode == nil || *claim.Spec.VolumeMode == core.PersistentVolumeFilesystem {
		volume.Spec.CSI.FSType = fsType
	}
	if _, err = p.client.CoreV1().PersistentVolumes().Create(ctx, volume, meta.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	p.events.Eventf(claim, core.EventTypeNormal, "ProvisioningSucceeded", "made volume %s", name)
	return nil
}

func (p *provisioner) remove(ctx context.Context, volume *core.PersistentVolume) error {
	if volume.Annotations[provisionedByKey] != p.driver || volume.Spec.CSI == nil || volume.Status.Phase != core.VolumeReleased ||
		volume.Spec.PersistentVolumeReclaimPolicy != core.PersistentVolumeReclaimDelete {
		// Nobody waits for a volume to be deleted that is kept.
		if volume.DeletionTimestamp != nil && volume.Spec.PersistentVolumeReclaimPolicy == core.PersistentVolumeReclaimRetain {
			return p.release(ctx, volume)
		}
		return nil
	}
	attachments, err := p.client.StorageV1().VolumeAttachments().List(ctx, meta.ListOptions{})
	if err != nil {
		return err
	}
	for _, attachment := range attachments.Items {
		if name := attachment.Spec.Source.PersistentVolumeName; name != nil && *name == volume.Name {
			return fmt.Errorf("volume %s is still attached to node %s", volume.Name, attachment.Spec.NodeName)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	if _, err := p.controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: volume.Spec.CSI.VolumeHandle}); err != nil {
		p.events.Eventf(volume, core.EventTypeWarning, "VolumeFailedDelete", "%v", err)
		return err
	}
	if err := p.client.CoreV1().PersistentVolumes().Delete(ctx, volume.Name, meta.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	return p.release(ctx, volume)
}

// release takes the finalizer off.
func (p *provisioner) release(ctx context.Context, volume *core.PersistentVolume) error {
	present, err := p.client.CoreV1().PersistentVolumes().Get(ctx, volume.Name, meta.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil || !slices.Contains(present.Finalizers, deletionFinalizer) {
		return err
	}
	present.Finalizers = slices.DeleteFunc(present.Finalizers, func(f string) bool { return f == deletionFinalizer })
	_, err = p.client.CoreV1().PersistentVolumes().Update(ctx, present, meta.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func (p *provisioner) reconcile(ctx context.Context, key string) error {
	namespace, name, _ := cache.SplitMetaNamespaceKey(key)
	if namespace == "" {
		volume, err := p.factory.Core().V1().PersistentVolumes().Lister().Get(name)
		if err != nil {
			return nil
		}
		return p.remove(ctx, volume)
	}
	claim, err := p.factory.Core().V1().PersistentVolumeClaims().Lister().PersistentVolumeClaims(namespace).Get(name)
	if err != nil {
		return nil
	}
	return p.provision(ctx, claim)
}

func (p *provisioner) work(ctx context.Context) {
	for {
		key, stop := p.queue.Get()
		if stop {
			return
		}
		if err := p.reconcile(ctx, key); err != nil {
			log.Printf("%s: %v", key, err)
			p.queue.AddRateLimited(key)
		} else {
			p.queue.Forget(key)
		}
		p.queue.Done(key)
	}
}

func (p *provisioner) run(ctx context.Context) {
	enqueue := func(object any) {
		if key, err := cache.MetaNamespaceKeyFunc(object); err == nil {
			p.queue.Add(key)
		}
	}
	handler := cache.ResourceEventHandlerFuncs{AddFunc: enqueue, UpdateFunc: func(_, object any) { enqueue(object) }}
	for _, informer := range []cache.SharedIndexInformer{
		p.factory.Core().V1().PersistentVolumeClaims().Informer(), p.factory.Core().V1().PersistentVolumes().Informer()} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			log.Fatal(err)
		}
	}
	p.factory.Storage().V1().StorageClasses().Informer()
	p.factory.Storage().V1().CSINodes().Informer()
	p.factory.Core().V1().Nodes().Informer()
	p.factory.Start(ctx.Done())
	p.factory.WaitForCacheSync(ctx.Done())
	log.Printf("serving %s", p.driver)
	for range 4 {
		go p.work(ctx)
	}
	<-ctx.Done()
	p.queue.ShutDown()
}

func (p *provisioner) connect(address string) {
	connection, err := grpc.NewClient("unix:"+strings.TrimPrefix(address, "unix://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	identity := csi.NewIdentityClient(connection)
	info, err := identity.GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
	if err != nil {
		log.Fatalf("%s does not answer: %v", address, err)
	}
	capabilities, err := identity.GetPluginCapabilities(ctx, &csi.GetPluginCapabilitiesRequest{})
	if err != nil {
		log.Fatal(err)
	}
	for _, c := range capabilities.Capabilities {
		p.topology = p.topology || c.GetService().GetType() == csi.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS
	}
	p.driver = info.Name
	p.controller = csi.NewControllerClient(connection)
}

func main() {
	p := &provisioner{queue: workqueue.NewTypedRateLimitingQueue(
		workqueue.NewTypedItemExponentialFailureRateLimiter[string](200*time.Millisecond, 10*time.Second))}
	address := flag.String("csi-address", "/csi/csi.sock", "the driver's socket")
	kubeconfig := flag.String("kubeconfig", "", "outside a cluster")
	elect := flag.Bool("leader-election", false, "one of several does the work")
	namespace := flag.String("leader-election-namespace", os.Getenv("NAMESPACE"), "the namespace of the lease")
	flag.StringVar(&p.fsType, "default-fstype", "", "the file system of a class that names none")
	flag.BoolVar(&p.metadata, "extra-create-metadata", false, "tell the driver the claim's name and namespace")
	flag.DurationVar(&p.timeout, "timeout", time.Minute, "of a call to the driver")
	flag.String("feature-gates", "", "Topology=true is what this always does")
	flag.Parse()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		log.Fatal(err)
	}
	p.client = kubernetes.NewForConfigOrDie(config)
	p.connect(*address)
	p.factory = informers.NewSharedInformerFactory(p.client, 30*time.Second)
	broadcaster := record.NewBroadcaster()
	broadcaster.StartRecordingToSink(&corev1.EventSinkImpl{Interface: p.client.CoreV1().Events("")})
	p.events = broadcaster.NewRecorder(scheme.Scheme, core.EventSource{Component: p.driver + "_provisioner"})
	if !*elect {
		p.run(context.Background())
		return
	}
	host, _ := os.Hostname()
	lock, err := resourcelock.New(resourcelock.LeasesResourceLock, *namespace, strings.ReplaceAll(p.driver, "/", "-"),
		p.client.CoreV1(), p.client.CoordinationV1(), resourcelock.ResourceLockConfig{Identity: host})
	if err != nil {
		log.Fatal(err)
	}
	leaderelection.RunOrDie(context.Background(), leaderelection.LeaderElectionConfig{
		Lock: lock, LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: p.run,
			OnStoppedLeading: func() { log.Fatal("the lease is lost") },
		}})
}
