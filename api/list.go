package api

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	internalvalidation "k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// How long a read waits for a revision that this replica does not have yet.
const revisionWait = 3 * time.Second

// listing is the answer to a list.
type listing struct {
	records   []Record
	revision  uint64
	next      string // the continue token, empty at the end
	remaining *int64
}

func (l listing) meta() metav1.ListMeta {
	return metav1.ListMeta{ResourceVersion: strconv.FormatUint(l.revision, 10), Continue: l.next, RemainingItemCount: l.remaining}
}

// continueToken is where a list that was cut into pages goes on. Its form is
// Kubernetes', whose clients must not care.
type continueToken struct {
	Version  string `json:"v"`
	Revision int64  `json:"rv"` // negative: the newest, because the old one is gone
	Start    string `json:"start"`
}

const tokenVersion = "meta.k8s.io/v1"

func (t continueToken) encode() string {
	t.Version = tokenVersion
	b, err := json.Marshal(t)
	if err != nil {
		panic(err) // a struct of strings and a number
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func decodeContinue(s string) (continueToken, error) {
	var t continueToken
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(s, "="))
	if err != nil {
		return t, fmt.Errorf("continue key is not valid: %w", err)
	}
	if err := json.Unmarshal(b, &t); err != nil {
		return t, fmt.Errorf("continue key is not valid: %w", err)
	}
	switch {
	case t.Version != tokenVersion:
		return t, fmt.Errorf("continue key is not valid: server does not recognize this encoded version %q", t.Version)
	case t.Revision == 0:
		return t, errors.New("continue key is not valid: incorrect encoded start resourceVersion (version meta.k8s.io/v1)")
	case strings.Count(t.Start, "\x00") != 1:
		return t, errors.New("continue key is not valid: encoded start key empty or malformed")
	}
	return t, nil
}

// pageKey orders records as lists do: by namespace, then by name.
func pageKey(obj Object) string { return obj.GetNamespace() + "\x00" + obj.GetName() }

// parseOptions reads the options of a client in this process.
func parseOptions(o metav1.ListOptions) (*internalOptions, error) {
	var out internalOptions
	if err := internalversion.Convert_v1_ListOptions_To_internalversion_ListOptions(&o, &out, nil); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return &out, nil
}

func parseRevision(s string) (uint64, error) {
	if s == "" {
		return 0, nil
	}
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, invalidOptions("ListOptions", field.ErrorList{field.Invalid(field.NewPath("resourceVersion"), s, err.Error())})
	}
	return v, nil
}

// list reads what the options select. fresh says that a list without a
// resourceVersion shows all that was acknowledged anywhere before.
func (c *call) list(ctx context.Context, o *internalOptions, fresh bool) (listing, error) {
	var l listing
	if err := invalidOptions("ListOptions", internalvalidation.ValidateListOptions(o, true)); err != nil {
		return l, err
	}
	match, err := c.res.matcher(o.LabelSelector, o.FieldSelector)
	if err != nil {
		return l, err
	}
	var start string
	var records []Record
	switch {
	case o.Continue != "":
		t, err := decodeContinue(o.Continue)
		if err != nil {
			return l, apierrors.NewBadRequest(err.Error())
		}
		if o.ResourceVersion != "" && o.ResourceVersion != "0" {
			return l, apierrors.NewBadRequest("specifying resource version is not allowed when using continue")
		}
		start = t.Start
		if t.Revision < 0 {
			records, l.revision, err = c.newest(ctx, fresh)
		} else {
			l.revision = uint64(t.Revision)
			records, err = c.at(ctx, l.revision)
		}
		if errors.Is(err, ErrExpired) {
			return l, expiredPage(t)
		}
		if err != nil {
			return l, c.storageError(err)
		}
	default:
		at, err := parseRevision(o.ResourceVersion)
		if err != nil {
			return l, err
		}
		exact := o.ResourceVersionMatch == metav1.ResourceVersionMatchExact ||
			o.ResourceVersionMatch == "" && o.Limit > 0 && at > 0
		if exact {
			l.revision = at
			records, err = c.at(ctx, at)
		} else {
			if at > 0 {
				if err := c.waitFor(ctx, at); err != nil {
					return l, c.storageError(err)
				}
			}
			records, l.revision, err = c.newest(ctx, fresh && o.ResourceVersion == "")
		}
		if err != nil {
			return l, c.storageError(err)
		}
	}
	if start != "" {
		records = records[sort.Search(len(records), func(i int) bool { return pageKey(records[i].Object()) >= start }):]
	}
	shown := records
	if c.res.converts() {
		if match == nil && o.Limit > 0 { // the rest is not looked at
			shown = records[:min(int64(len(records)), o.Limit+1)]
		}
		if shown, err = c.shownAll(ctx, shown, false); err != nil {
			return l, err
		}
	}
	l.records = make([]Record, 0, min(len(records), 1024))
	for i, rec := range shown {
		if !c.res.converts() {
			rec = c.res.view(rec)
		}
		if match != nil && !match(rec.Object()) {
			continue
		}
		if o.Limit > 0 && int64(len(l.records)) == o.Limit {
			l.next = continueToken{Revision: int64(l.revision), Start: pageKey(rec.Object())}.encode()
			if match == nil {
				left := int64(len(records) - i)
				l.remaining = &left
			}
			break
		}
		l.records = append(l.records, rec)
	}
	return l, nil
}

func (c *call) storageError(err error) error { return storageError(err, c.res.gr(), c.name) }

// newest is the state of the call's resource now.
func (c *call) newest(ctx context.Context, fresh bool) ([]Record, uint64, error) {
	if fresh {
		if err := c.s.cfg.Storage.Sync(ctx); err != nil {
			return nil, 0, err
		}
	}
	records, revision := c.s.cfg.Storage.List(c.res.stored, c.namespace)
	return c.withMemory(records), revision, nil
}

// at is the state at a revision, once this replica has it.
func (c *call) at(ctx context.Context, revision uint64) ([]Record, error) {
	if err := c.waitFor(ctx, revision); err != nil {
		return nil, err
	}
	records, err := c.s.cfg.Storage.ListAt(c.res.stored, c.namespace, revision)
	return c.withMemory(records), err
}

// withMemory adds to stored records the ones that live in memory alone.
func (c *call) withMemory(records []Record) []Record {
	if c.res.hooks.memory == nil {
		return records
	}
	extra := c.res.hooks.memory(c.s, c.namespace)
	if len(extra) == 0 {
		return records
	}
	all := append(append(make([]Record, 0, len(records)+len(extra)), records...), extra...)
	sort.SliceStable(all, func(i, j int) bool { return pageKey(all[i].Object()) < pageKey(all[j].Object()) })
	return all
}

// waitFor gives this replica a moment to reach a revision: a client that was
// answered by another one may be ahead of it.
func (c *call) waitFor(ctx context.Context, revision uint64) error {
	if c.s.cfg.Storage.Revision() >= revision {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, revisionWait)
	defer cancel()
	if err := c.s.cfg.Storage.WaitFor(ctx, revision); err != nil {
		return ErrFuture
	}
	return nil
}

// expiredPage is the answer to a token whose revision is gone: it carries one
// that goes on from the same key in the newest state.
func expiredPage(t continueToken) error {
	t.Revision = -1
	e := apierrors.NewResourceExpired("The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.")
	e.ErrStatus.ListMeta.Continue = t.encode()
	return e
}

// get reads one object.
func (c *call) get(ctx context.Context, o metav1.GetOptions, fresh bool) (Record, error) {
	at, err := parseRevision(o.ResourceVersion)
	if err != nil {
		return nil, err
	}
	switch {
	case at > 0:
		err = c.waitFor(ctx, at)
	case fresh && o.ResourceVersion == "":
		err = c.s.cfg.Storage.Sync(ctx)
	}
	if err != nil {
		return nil, c.storageError(err)
	}
	if c.res.hooks.memory != nil {
		for _, rec := range c.res.hooks.memory(c.s, c.namespace) {
			if rec.Object().GetName() == c.name {
				return rec, nil
			}
		}
	}
	if rec, err := c.current(ctx); err != nil || rec != nil {
		return rec, err
	}
	return nil, apierrors.NewNotFound(c.res.gr(), c.name)
}
