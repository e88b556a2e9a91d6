package api

import (
	"encoding/json"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// tableOf prints records for people, with the columns of their kind.
// withoutColumns leaves out what a stream has said already.
func (x *exchange) tableOf(c *call, l listing, withoutColumns bool) (*metav1.Table, error) {
	include := metav1.IncludeObjectPolicy(x.query.Get("includeObject"))
	switch include {
	case "":
		include = metav1.IncludeMetadata
	case metav1.IncludeNone, metav1.IncludeMetadata, metav1.IncludeObject:
	default:
		return nil, apierrors.NewBadRequest(fmt.Sprintf("unrecognized includeObject value: %q", include))
	}
	t := &metav1.Table{TypeMeta: typeMeta(x.format.gv.WithKind("Table")), ListMeta: l.meta(), Rows: make([]metav1.TableRow, len(l.records))}
	if l.revision == 0 {
		t.ResourceVersion = ""
	}
	if !withoutColumns {
		t.ColumnDefinitions = c.columns()
	}
	records := l.records
	if order := c.res.Order; order != nil {
		records = slices.SortedStableFunc(slices.Values(records), func(a, b Record) int { return order(a.Object(), b.Object()) })
	}
	for i, rec := range records {
		row, err := x.row(c, rec, include)
		if err != nil {
			return nil, err
		}
		t.Rows[i] = row
	}
	return t, nil
}

// columns are the kind's own, or the scale's none: what a subresource shows of
// another kind has only a name and an age.
func (c *call) columns() []metav1.TableColumnDefinition {
	if len(c.res.Columns) > 0 {
		return c.res.Columns
	}
	doc := metav1.ObjectMeta{}.SwaggerDoc()
	return []metav1.TableColumnDefinition{
		{Name: "Name", Type: "string", Format: "name", Description: doc["name"]},
		{Name: "Created At", Type: "date", Description: doc["creationTimestamp"]},
	}
}

func (x *exchange) row(c *call, rec Record, include metav1.IncludeObjectPolicy) (metav1.TableRow, error) {
	var row metav1.TableRow
	obj := rec.Object()
	if gvk := obj.GetObjectKind().GroupVersionKind(); c.res.Cells != nil && gvk == c.res.GVK {
		row.Cells = c.res.Cells(obj, x.s.cfg.Now())
	} else {
		row.Cells = []any{obj.GetName(), obj.GetCreationTimestamp().UTC().Format("2006-01-02T15:04:05Z")}
		for len(row.Cells) < len(c.columns()) {
			row.Cells = append(row.Cells, nil)
		}
	}
	switch include {
	case metav1.IncludeObject:
		b, err := rec.Encoding("json", encodeJSON)
		if err != nil {
			return row, err
		}
		row.Object = runtime.RawExtension{Raw: b}
	case metav1.IncludeMetadata:
		b, err := json.Marshal(partial(obj, x.format.gv))
		if err != nil {
			return row, err
		}
		row.Object = runtime.RawExtension{Raw: b}
	}
	return row, nil
}
