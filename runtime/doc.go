// Package runtime owns containers: images, root filesystems, OCI specs and
// processes. It knows nothing of Kubernetes but the names of things.
//
// # Parts
//
// The Engine lives in the main process and may die at any time. With each pod
// stays a small process of its own program (runtime/pod), which is the parent
// of the pod's containers, writes their logs and records their ends. The
// engine asks it over a unix socket, and is told of every change over another
// connection that stays open; that connection's end is how the death of a pod
// process is seen. All that the engine knows of containers it could learn
// again: New does.
//
// # Where things are
//
//	Root/bin/conclave-pod-HASH       the pod program, written once per version
//	Root/images/                     see store.go
//	Root/images.d/                   archives of images to be imported; see dropfolder.go
//	Root/containers/POD/ID/          upper, work and rootfs of a container
//	RunDir/image-volumes/            where images are shown as volumes
//	RunDir/POD/pod.json              what the pod is; written first, removed last
//	RunDir/POD/sock                  where its process listens
//	RunDir/POD/containers/ID.json    what became of each container
//	RunDir/POD/stderr                what its process said before it died
//	CGROUP/runtime                   the pod processes, and the holders of userns.go
//	CGROUP/kubepods/QOS/podPOD/ID    the containers
//
// # What always holds
//
// Everything of a pod can be found from its folder in RunDir, which exists
// before the first of it is made and until the last of it is gone. RunDir is a
// tmpfs: after a reboot it is empty, and folders of containers without a pod
// there are rubbish. So a crash at any step leaves nothing that New or the
// next StopPod does not find.
//
// An image in the index has all its layers; a layer's folder, under its own
// name, is complete: it was unpacked elsewhere, verified, synced and renamed.
//
// # Threads
//
// Per pod one goroutine reads its process' changes. One goroutine, locked to a
// thread that stays in the pod processes' cgroup, starts them. Subscribers
// have one each, until cancelled. Run itself waits for archives in the drop
// folder. A pull has one, with one for each layer that is under way. All end
// when Run's context does. Nothing polls.
package runtime
