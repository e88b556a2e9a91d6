package types

import (
	"encoding/hex"
	"encoding/json"
	"reflect"
	"testing"
)

// What the types of k8s.io/kube-aggregator v0.37.2 write of one list; their module
// brings a whole API server, so that they are not here to be asked.
const (
	publishedProtobuf = "0a070a001201371a00128e010a260a0e76312e6578616d706c652e636f6d12001a0022002a003200380042005a060a0161120162122c0a0c0a0473686f7012017318fb41120b6578616d706c652e636f6d1a02763120012a0370656d38a09c01400f1a360a340a09417661696c61626c65120546616c73651a080880e2cfaa06100022104d697373696e67456e64706f696e74732a046e6f6e6512220a100a0012001a0022002a00320038004200120c12001a0276312000380040001a00"
	publishedJSON     = `{"metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"v1.example.com","labels":{"a":"b"}},"spec":{"service":{"namespace":"shop","name":"s","port":8443},"group":"example.com","version":"v1","insecureSkipTLSVerify":true,"caBundle":"cGVt","groupPriorityMinimum":20000,"versionPriority":15},"status":{"conditions":[{"type":"Available","status":"False","lastTransitionTime":"2023-11-14T22:13:20Z","reason":"MissingEndpoints","message":"none"}]}},{"metadata":{},"spec":{"version":"v1","groupPriorityMinimum":0,"versionPriority":0},"status":{}}]}`
)

// TestAPIServiceLikePublished reads what the published types write, and writes it.
func TestAPIServiceLikePublished(t *testing.T) {
	raw, err := hex.DecodeString(publishedProtobuf)
	if err != nil {
		t.Fatal(err)
	}
	var byProtobuf, byJSON APIServiceList
	if err := byProtobuf.Unmarshal(raw); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(publishedJSON), &byJSON); err != nil {
		t.Fatal(err)
	}
	for name, list := range map[string]*APIServiceList{"protobuf": &byProtobuf, "JSON": &byJSON, "a copy": byJSON.DeepCopyObject().(*APIServiceList)} {
		text, err := json.Marshal(list)
		if err != nil || !sameJSON(t, string(text), publishedJSON) {
			t.Errorf("what was read of %s is written as %s, %v", name, text, err)
		}
		if again, err := list.Marshal(); err != nil || hex.EncodeToString(again) != publishedProtobuf {
			t.Errorf("what was read of %s is written as %x, %v", name, again, err)
		}
	}
	shares(t, "APIServiceList", reflect.ValueOf(&byJSON), reflect.ValueOf(byJSON.DeepCopyObject()))
}

func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	var x, y any
	if json.Unmarshal([]byte(a), &x) != nil || json.Unmarshal([]byte(b), &y) != nil {
		t.Fatalf("not JSON: %s or %s", a, b)
	}
	return reflect.DeepEqual(x, y)
}
