package cli

import (
	"io"
	"strings"
	"testing"
)

func TestFlagsFirst(t *testing.T) {
	app := App(strings.NewReader(""), io.Discard, io.Discard)
	for in, want := range map[string]string{
		"conclave get pods -A":                        "conclave get -A pods",
		"conclave get pods -n kube-system -o wide":    "conclave get -n kube-system -o wide pods",
		"conclave get pods --namespace=x web":         "conclave get --namespace=x pods web",
		"conclave exec -it pod -- sh -c ls":           "conclave exec -it pod -- sh -c ls",
		"conclave exec pod -n x -- ls -n y":           "conclave exec -n x pod -- ls -n y",
		"conclave exec pod -itc main -- ls":           "conclave exec -itc main pod -- ls",
		"conclave apply -f -":                         "conclave apply -f -",
		"conclave lab start 2 --address 10.88.0.20":   "conclave lab start --address 10.88.0.20 2",
		"conclave lab exec 1 -- conclave get pods -A": "conclave lab exec 1 -- conclave get pods -A",
		"conclave join TOKEN --name a 10.0.0.1":       "conclave join --name a TOKEN 10.0.0.1",
		"conclave":                                    "conclave",
		"conclave --help":                             "conclave --help",
	} {
		if got := strings.Join(flagsFirst(app.Commands, strings.Fields(in)), " "); got != want {
			t.Errorf("%s\n became %s\nnot %s", in, got, want)
		}
	}
}
