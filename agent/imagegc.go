package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// ImageGC says when images that nothing uses are removed, in kubelet's words.
type ImageGC struct {
	// HighThresholdPercent of the disk used begins it, 85 if 0; it ends at
	// LowThresholdPercent, 80 if 0.
	HighThresholdPercent, LowThresholdPercent int
	// MinimumAge is how long an image stays in any case, 2 minutes if 0.
	MinimumAge time.Duration
	// MaximumAge is after how long without use an image goes, whatever the
	// disk; 0: never for that.
	MaximumAge time.Duration
	// Disk measures the file system that holds the images, in bytes. Nil: the
	// one below Config.Dir.
	Disk func() (capacity, available int64, err error)
}

func (g ImageGC) withDefaults() (ImageGC, error) {
	if g.HighThresholdPercent == 0 {
		g.HighThresholdPercent = 85
	}
	if g.LowThresholdPercent == 0 {
		g.LowThresholdPercent = min(80, g.HighThresholdPercent)
	}
	if g.MinimumAge == 0 {
		g.MinimumAge = 2 * time.Minute
	}
	switch {
	case g.HighThresholdPercent < 0 || g.HighThresholdPercent > 100 || g.LowThresholdPercent < 0:
		return g, errors.New("the thresholds of removing images are per cents of the disk, from 0 to 100")
	case g.LowThresholdPercent > g.HighThresholdPercent:
		return g, fmt.Errorf("the low threshold of removing images, %d, is above the high one, %d", g.LowThresholdPercent, g.HighThresholdPercent)
	case g.MaximumAge != 0 && g.MaximumAge <= g.MinimumAge:
		return g, fmt.Errorf("the maximum age of images, %v, is not above the minimum age, %v", g.MaximumAge, g.MinimumAge)
	}
	return g, nil
}

const imageGCEvery = 5 * time.Minute

// imageKeeper removes images that nothing uses when the disk is short. What it
// knows of their use is in memory: after a start every image is young again.
type imageKeeper struct {
	a      *Agent
	policy ImageGC
	disk   func() (capacity, available int64, err error)
	wake   chan struct{}
	full   atomic.Bool // an image did not fit

	mu     sync.Mutex // one pass at a time
	images map[string]*imageUse
	failed bool // the last pass
}

type imageUse struct{ detected, used time.Time }

func newImageKeeper(a *Agent) *imageKeeper {
	k := &imageKeeper{a: a, policy: a.cfg.ImageGC, disk: a.cfg.ImageGC.Disk, wake: make(chan struct{}, 1), images: map[string]*imageUse{}}
	if k.disk == nil {
		k.disk = func() (int64, int64, error) {
			var fs unix.Statfs_t
			err := unix.Statfs(filepath.Join(a.cfg.Dir, "images"), &fs)
			if errors.Is(err, unix.ENOENT) {
				err = unix.Statfs(a.cfg.Dir, &fs)
			}
			return int64(fs.Blocks) * fs.Bsize, int64(fs.Bavail) * fs.Bsize, err
		}
	}
	return k
}

// diskFull has it make what room there is: an image did not fit, whatever the
// thresholds say of the disk now that what came of it is removed again.
func (k *imageKeeper) diskFull() {
	k.full.Store(true)
	k.now()
}

// now has it look at once.
func (k *imageKeeper) now() { poke(k.wake) }

func (k *imageKeeper) run(ctx context.Context) {
	k.mu.Lock()
	k.detect(k.a.cfg.Now())
	k.mu.Unlock()
	timer := time.NewTimer(imageGCEvery)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-k.wake:
		}
		timer.Reset(imageGCEvery)
		err := k.pass(ctx)
		if err == nil || ctx.Err() != nil {
			k.failed = false
			continue
		}
		k.a.log.Warn("images could not be removed as they should", "err", err)
		if k.failed { // the first time it may be that nothing is old enough yet
			k.a.node.event(corev1.EventTypeWarning, "ImageGCFailed", err.Error())
		}
		k.failed = true
	}
}

// detect takes in which images there are and which are used.
func (k *imageKeeper) detect(now time.Time) (idle []Image) {
	used := map[string]bool{}
	for _, c := range k.a.cfg.Runtime.Containers("") {
		used[c.Image] = true
	}
	there := map[string]bool{}
	for _, i := range k.a.cfg.Runtime.Images() {
		there[i.ID] = true
		u := k.images[i.ID]
		if u == nil {
			u = &imageUse{detected: now}
			k.images[i.ID] = u
		}
		if used[i.ID] || k.a.cfg.Runtime.ImageInUse(i.ID) {
			u.used = now
		} else if !i.Pinned {
			idle = append(idle, i)
		}
	}
	for id := range k.images {
		if !there[id] {
			delete(k.images, id)
		}
	}
	slices.SortStableFunc(idle, func(a, b Image) int {
		x, y := k.images[a.ID], k.images[b.ID]
		if c := x.used.Compare(y.used); c != 0 {
			return c
		}
		return x.detected.Compare(y.detected)
	})
	return idle
}

// pass removes what the policy lets go.
func (k *imageKeeper) pass(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.a.cfg.Now()
	idle := k.detect(now)
	if k.policy.MaximumAge > 0 {
		idle = slices.DeleteFunc(idle, func(i Image) bool {
			return now.Sub(later(k.images[i.ID].used, k.images[i.ID].detected)) > k.policy.MaximumAge && k.remove(ctx, i) == nil
		})
	}
	capacity, available, err := k.disk()
	if err != nil {
		return err
	}
	if capacity <= 0 {
		return fmt.Errorf("invalid capacity %d on image filesystem", capacity)
	}
	percent := 100 - int(available*100/capacity)
	full := k.full.Swap(false)
	if percent < k.policy.HighThresholdPercent && !full {
		return nil
	}
	if err := k.a.cfg.Runtime.CollectLayers(); err != nil { // of pulls that came to nothing
		return err
	}
	goal := capacity * int64(100-k.policy.LowThresholdPercent) / 100
	if full {
		goal = capacity
	}
	before := available
	var errs []error
	for _, i := range idle {
		if _, available, err = k.disk(); err != nil {
			return err
		}
		if available >= goal || ctx.Err() != nil {
			break
		}
		if now.Sub(k.images[i.ID].detected) < k.policy.MinimumAge {
			continue
		}
		if err := k.remove(ctx, i); err != nil {
			errs = append(errs, err)
		}
	}
	if _, available, err = k.disk(); err != nil {
		return err
	}
	if len(errs) > 0 {
		return fmt.Errorf("wanted to free %d bytes, but freed %d bytes space with errors in image deletion: %w", goal-before, available-before, errors.Join(errs...))
	}
	if available < goal && (!full || available <= before) {
		message := fmt.Sprintf("Insufficient free disk space on the node's image filesystem (%d%% of %s used). Failed to free sufficient space by deleting unused images (freed %d bytes). "+
			"Investigate disk usage, as it could be used by active images, logs, volumes, or other data.", percent, gibibytes(capacity), max(available-before, 0))
		k.a.node.event(corev1.EventTypeWarning, "FreeDiskSpaceFailed", message)
		return errors.New(message)
	}
	return nil
}

func gibibytes(n int64) string { return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30)) }

func (k *imageKeeper) remove(ctx context.Context, i Image) error {
	if err := k.a.cfg.Runtime.RemoveImage(ctx, i.ID); err != nil {
		return err
	}
	delete(k.images, i.ID)
	k.a.log.Info("an image that nothing uses was removed", "image", i.ID, "names", i.Names, "bytes", i.Size)
	k.a.node.imagesChanged()
	return nil
}

// PruneImages removes every image that nothing uses now, but for those that lie
// in the folder of images to be kept. It returns what it removed.
func (a *Agent) PruneImages(ctx context.Context) (removed []Image, err error) {
	k := a.images
	k.mu.Lock()
	defer k.mu.Unlock()
	var errs []error
	for _, i := range k.detect(a.cfg.Now()) {
		if err := k.remove(ctx, i); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, i)
	}
	errs = append(errs, a.cfg.Runtime.CollectLayers())
	return removed, errors.Join(errs...)
}
