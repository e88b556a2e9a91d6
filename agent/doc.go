// Package agent runs this node's pods: it is Conclave's kubelet.
//
// It owns the folder pods/ of the data folder (what the node must know to start
// its pods with no master in sight) and volumes/ (the volumes of class
// local-path that are kept here) and kubelet/ (what stands for kubelet's folder
// to CSI drivers, and what they have mounted) and log/ (the logs of all
// containers), the folder volumes/ of the run folder (what pods see and what
// must not be on a disk), this node's Node object, the status of the pods bound
// to this node, and the kubelet API.
//
// # What always holds
//
//   - A pod's next step is decided by step, a pure function of the pod and of
//     what is observed of it. What is observed comes from the runtime; only
//     what the runtime cannot know (how often a container was started, how it
//     ended before a reboot, that the node gave the pod up) is kept in one
//     small file per pod, written when it changes and only then. A restart of
//     this process therefore loses nothing and restarts nothing.
//   - A pod that is gone from the API is stopped; a pod being deleted leaves
//     the API only after its containers have ended and its network, volumes
//     and mounts are gone.
//   - A pod that must not run twice is started only where the API took a write
//     about it since the node's fence came up (fence.go).
//   - A pod's status is computed as a whole and written when it differs from
//     what the API has. A status that could not be written is written later,
//     in its newest form.
//   - The spec of a worker's pod has the resources that the node has allocated;
//     what the API asks for beyond is a wish until it fits (resize.go).
//   - Users' data is removed only on the word of a PersistentVolume that is
//     deleted, protected no longer and mounted by no pod here.
//   - Before a CSI driver is called to mount something, a file says so; what it
//     mounted is taken back by the driver before its pod leaves the API, and
//     nothing below a mount is ever removed (csi.go).
//   - Nothing is polled and nothing is written to disk while nothing happens.
//     What waits, waits for an event or for the one time that matters next.
//   - What a pod's folder on disk holds suffices to start it again: manifest,
//     the ConfigMaps and Secrets that it names, its tokens. Secrets and tokens
//     go through Config.Seal first.
//
// # Goroutines
//
// All are started below Run and have ended when it returns; pods go on running.
//
//   - one podWorker per pod: a loop of one select. What may take long (pulling,
//     stopping, waiting for an object) it does in goroutines of its own, at
//     most one for each container and for the pod, and waits for them.
//   - one prober per probe of a running container, ended by its worker.
//   - one follower for the pods of this node, one for services, one for this
//     node's Node object, one for the volumes that are kept here, one per
//     ConfigMap, Secret, claim and claimed volume that pods here name.
//   - one loop that follows who registers as a CSI driver, once a pod has mounted
//     kubelet's folder, with one goroutine for each registration.
//   - the keeper of the volumes' folders, with one goroutine for each folder
//     that is being made or removed.
//   - the keeper of the bounds of all pods, and the one that watches what the
//     node is short of (eviction.go), with one goroutine for each alarm that
//     the kernel rings.
//   - one that reads the kernel's log.
//   - the status writer with a few workers, the event recorder, the node
//     loop, the runtime watcher, which turns the runtime's hints into wake-ups
//     of the workers concerned, and the HTTP server of the kubelet API.
//
// # Restart of containers
//
// The n-th start of container "web" has the runtime ID "web_n", n counting from
// 0: it is the container's restart count. The last two are kept, so that
// `kubectl logs --previous` has something to read.
package agent
