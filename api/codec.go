package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/munnerz/goautoneg"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kjson "k8s.io/apimachinery/pkg/runtime/serializer/json"
	sigsjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

const (
	mediaJSON     = "application/json"
	mediaYAML     = "application/yaml"
	mediaProtobuf = "application/vnd.kubernetes.protobuf"

	// The largest body of a request: an object, and a patch of it, and room.
	maxBody = 3 << 20
)

var protobufPrefix = []byte("k8s\x00")

// format is what a client accepts for an answer.
type format struct {
	media string
	as    string // "", Table, PartialObjectMetadata, PartialObjectMetadataList
	gv    schema.GroupVersion
}

// acceptable are what the server can say where it says objects.
var acceptable = []string{mediaJSON, mediaYAML, mediaProtobuf}

// negotiate picks the first form of the Accept header that the server has.
// transforms says that tables and bare metadata are among what it has here,
// without is a media type that it does not have for whole objects.
func negotiate(header string, transforms bool, without ...string) (format, bool) {
	for _, a := range parseAccept(header) {
		f := format{media: a.media}
		switch f.media {
		case "*/*", "application/*":
			f.media = mediaJSON
		case "text/yaml", "application/x-yaml":
			f.media = mediaYAML
		}
		if !slices.Contains(acceptable, f.media) {
			continue
		}
		if as := a.params["as"]; as != "" {
			f.as, f.gv = as, schema.GroupVersion{Group: a.params["g"], Version: a.params["v"]}
			if !transforms || f.gv.Group != metav1.GroupName || (f.gv.Version != "v1" && f.gv.Version != "v1beta1") {
				continue
			}
			switch {
			case as == "Table" && f.media == mediaProtobuf:
				continue // its cells are of no fixed type
			case as != "Table" && as != "PartialObjectMetadata" && as != "PartialObjectMetadataList":
				continue
			}
		} else if slices.Contains(without, f.media) {
			continue
		}
		return f, true
	}
	return format{}, false
}

func notAcceptable() error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotAcceptable, Reason: metav1.StatusReasonNotAcceptable,
		Message: "only the following media types are accepted: " + strings.Join(acceptable, ", "),
	}}
}

// encodeRaw is one object in protobuf without the envelope.
func encodeRaw(obj Object) ([]byte, error) {
	m, ok := any(obj).(interface{ Marshal() ([]byte, error) })
	if !ok {
		return nil, notAcceptable()
	}
	return m.Marshal()
}

// envelope puts the name of its kind around a protobuf message.
func envelope(gvk schema.GroupVersionKind, raw []byte) ([]byte, error) {
	apiVersion, kind := gvk.ToAPIVersionAndKind()
	u := runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: apiVersion, Kind: kind}, Raw: raw}
	b, err := u.Marshal()
	if err != nil {
		return nil, err
	}
	return append(protobufPrefix[:len(protobufPrefix):len(protobufPrefix)], b...), nil
}

// encodeRecord is one record in a media type. Apart from YAML, which people
// read, the record keeps what was encoded for the next reader.
func encodeRecord(rec Record, media string) ([]byte, error) {
	switch media {
	case mediaProtobuf:
		raw, err := rec.Encoding("protobuf", encodeRaw)
		if err != nil {
			return nil, err
		}
		return envelope(rec.Object().GetObjectKind().GroupVersionKind(), raw)
	case mediaYAML:
		b, err := rec.Encoding("json", encodeJSON)
		if err != nil {
			return nil, err
		}
		return yaml.JSONToYAML(b)
	}
	return rec.Encoding("json", encodeJSON)
}

// encodeObject is any object in a media type. The object says its own kind.
func encodeObject(obj runtime.Object, media string) ([]byte, error) {
	switch media {
	case mediaProtobuf:
		m, ok := obj.(interface{ Marshal() ([]byte, error) })
		if !ok {
			return nil, notAcceptable()
		}
		raw, err := m.Marshal()
		if err != nil {
			return nil, err
		}
		return envelope(obj.GetObjectKind().GroupVersionKind(), raw)
	case mediaYAML:
		return yaml.Marshal(obj)
	}
	return json.Marshal(obj)
}

// encodeListing is a list in a media type.
func encodeListing(r *resource, l listing, media string) ([]byte, error) {
	if media == mediaProtobuf {
		return encodeListingProtobuf(r, l)
	}
	var b bytes.Buffer
	if err := writeListing(&b, r, l); err != nil {
		return nil, err
	}
	if media == mediaYAML {
		return yaml.JSONToYAML(b.Bytes())
	}
	return b.Bytes(), nil
}

// writeListing writes a list in JSON.
func writeListing(w io.Writer, r *resource, l listing) error {
	head, err := json.Marshal(struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        metav1.ListMeta `json:"metadata"`
	}{typeMeta(r.listGVK()), l.meta()})
	if err != nil {
		return err
	}
	// The items of a typed list do not repeat their kind; those that have no
	// protobuf, as custom resources, do.
	var said []byte
	if !r.json {
		if said, err = json.Marshal(typeMeta(r.GVK)); err != nil {
			return err
		}
		said[len(said)-1] = ','
	}
	if _, err := w.Write(append(head[:len(head)-1], `,"items":[`...)); err != nil {
		return err
	}
	if err := writeItems(w, l.records, said); err != nil {
		return err
	}
	_, err = io.WriteString(w, "]}")
	return err
}

// encodeListingProtobuf uses that in every list type, metadata is field 1 and
// items are field 2.
func encodeListingProtobuf(r *resource, l listing) ([]byte, error) {
	m := l.meta()
	raw, err := m.Marshal()
	if err != nil {
		return nil, err
	}
	body := appendBytesField(nil, 1, raw)
	for _, rec := range l.records {
		if raw, err = rec.Encoding("protobuf", encodeRaw); err != nil {
			return nil, err
		}
		body = appendBytesField(body, 2, raw)
	}
	return envelope(r.listGVK(), body)
}

// appendBytesField appends a length-delimited field of a protobuf message.
func appendBytesField(b []byte, number byte, value []byte) []byte {
	b = append(b, number<<3|2)
	n := uint64(len(value))
	for ; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(append(b, byte(n)), value...)
}

func typeMeta(gvk schema.GroupVersionKind) metav1.TypeMeta {
	apiVersion, kind := gvk.ToAPIVersionAndKind()
	return metav1.TypeMeta{APIVersion: apiVersion, Kind: kind}
}

// The serializers of request bodies, strict and not.
var bodyCodecs = sync.OnceValue(func() map[string][2]runtime.Serializer {
	codecs := map[string][2]runtime.Serializer{mediaProtobuf: {protobufCodec(), protobufCodec()}}
	for media, isYAML := range map[string]bool{mediaJSON: false, mediaYAML: true} {
		var pair [2]runtime.Serializer
		for i := range pair {
			pair[i] = kjson.NewSerializerWithOptions(kjson.DefaultMetaFactory, Scheme(), Scheme(), kjson.SerializerOptions{Yaml: isYAML, Strict: i == 1})
		}
		codecs[media] = pair
	}
	return codecs
})

// readBody reads a request's body within the limit.
func readBody(r *http.Request) ([]byte, error) {
	if r.Body == nil {
		return nil, nil
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("reading the body of the request: %v", err))
	}
	if len(b) > maxBody {
		return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("limit is %d", maxBody))
	}
	return b, nil
}

// bodyMedia is the media type of a request's body.
func bodyMedia(header string) string {
	if header == "" {
		return mediaJSON
	}
	media, _, err := mime.ParseMediaType(header)
	if err != nil {
		return header
	}
	switch media {
	case "text/yaml", "application/x-yaml":
		return mediaYAML
	case "text/plain", "application/x-www-form-urlencoded", "application/octet-stream":
		// What curl says of a body of which it was told nothing.
		return mediaJSON
	}
	return media
}

func unsupportedMedia(got string, supported ...string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusUnsupportedMediaType, Reason: metav1.StatusReasonUnsupportedMediaType,
		Message: fmt.Sprintf("the body of the request was in an unknown format (%s) - accepted media types include: %s", got, strings.Join(supported, ", ")),
	}}
}

// decodeBody reads an object of the expected kind. What is wrong with its
// fields, though it can be read, is refused, told or ignored, as validation
// says. decoded, if not nil, is the Decoded of the object's kind.
func decodeBody(data []byte, media, validation string, into runtime.Object, expected schema.GroupVersionKind, decoded func(runtime.Object) ([]string, error), warn func(string)) (runtime.Object, error) {
	pair, ok := bodyCodecs()[media]
	if !ok {
		return nil, unsupportedMedia(media, acceptable...)
	}
	if u, ok := into.(*unstructured.Unstructured); ok {
		strict, err := decodeUnstructured(data, media, u, expected, decoded)
		switch {
		case err != nil:
			return nil, err
		case len(strict) == 0 || validation == metav1.FieldValidationIgnore:
		case validation == metav1.FieldValidationStrict:
			return nil, cannotHandle(expected, expected, runtime.NewStrictDecodingError(strict))
		default:
			for _, e := range strict {
				warn(e.Error())
			}
		}
		return u, nil
	}
	codec := pair[1]
	if validation == metav1.FieldValidationIgnore {
		codec = pair[0]
	}
	if err := refuseAbsurdAmounts(data, media, codec, expected, into); err != nil {
		return nil, err
	}
	obj, got, err := codec.Decode(data, &expected, into)
	if runtime.IsStrictDecodingError(err) {
		if validation != metav1.FieldValidationStrict {
			strict, _ := runtime.AsStrictDecodingError(err)
			for _, e := range strict.Errors() {
				warn(e.Error())
			}
			err = nil
		}
	}
	if err != nil {
		if got != nil && got.Kind != "" && len(got.Version) > 0 {
			return nil, cannotHandle(*got, expected, err)
		}
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the object provided is unrecognized (must be of type %s): %v", expected.Kind, err))
	}
	if *got != expected {
		return nil, wrongKind(*got, expected)
	}
	return obj, nil
}

func cannotHandle(got, expected schema.GroupVersionKind, err error) error {
	return apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s: %v", got.Kind, got.Version, expected.Kind, err))
}

func wrongKind(got, expected schema.GroupVersionKind) error {
	if got.GroupVersion() != expected.GroupVersion() {
		return apierrors.NewBadRequest(fmt.Sprintf("the API version in the data (%s) does not match the expected API version (%s)", got.GroupVersion(), expected.GroupVersion()))
	}
	return apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s: the kind does not match", got.Kind, got.Version, expected.Kind))
}

// decodeUnstructured reads an object that has no type of its own. It returns
// what is wrong with it though it can be read.
func decodeUnstructured(data []byte, media string, u *unstructured.Unstructured, expected schema.GroupVersionKind, decoded func(runtime.Object) ([]string, error)) (strict []error, err error) {
	switch media {
	case mediaJSON:
	case mediaYAML:
		if _, err := yaml.YAMLToJSONStrict(data); err != nil {
			strict = append(strict, err)
		}
		if data, err = yaml.YAMLToJSON(data); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
	default:
		return nil, unsupportedMedia(media, mediaJSON, mediaYAML)
	}
	object := map[string]any{}
	doubled, err := sigsjson.UnmarshalStrict(data, &object)
	if err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the object provided is unrecognized (must be of type %s): %v", expected.Kind, err))
	}
	u.Object, strict = object, append(strict, doubled...)
	switch got := u.GroupVersionKind(); {
	case got.Kind == "":
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the object provided is unrecognized (must be of type %s): Object 'Kind' is missing", expected.Kind))
	case got != expected:
		return nil, wrongKind(got, expected)
	}
	if decoded == nil {
		return strict, nil
	}
	unknown, err := decoded(u)
	if err != nil {
		return nil, cannotHandle(expected, expected, err)
	}
	for _, path := range unknown {
		strict = append(strict, fmt.Errorf("unknown field %q", path))
	}
	return strict, nil
}

// accepted is one entry of an Accept header.
type accepted struct {
	media  string
	params map[string]string
}

// parseAccept reads an Accept header, most wanted first. An empty one wants
// anything.
func parseAccept(header string) []accepted {
	if header == "" {
		return []accepted{{media: "*/*"}}
	}
	var all []accepted
	for _, a := range goautoneg.ParseAccept(header) {
		all = append(all, accepted{a.Type + "/" + a.SubType, a.Params})
	}
	return all
}

var paramCodec = sync.OnceValue(func() runtime.ParameterCodec { return runtime.NewParameterCodec(Scheme()) })
