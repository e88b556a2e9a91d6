package cli

import (
	"encoding/json"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// may says which of our packages a room may import, and why: data flows one way
// round (ARCHITECTURE.md), so a room declares what it needs of another in an
// interface of its own, and cli connects them. The packages below a room are
// the room's own.
var may = map[string][]string{
	"api":        nil,     // everybody writes through it: it must know nobody
	"consensus":  nil,     // knows objects, not kinds
	"gossip":     nil,     // tells who is there, decides nothing
	"identity":   nil,     // keys are below everything
	"wire":       nil,     // carries bytes
	"liveness":   nil,     // judges by functions that it is given
	"runtime":    nil,     // runs containers, and has never heard of pods' API
	"snapshot":   {"api"}, // reads its schedule and writes events; what a snapshot holds it is given
	"lab":        nil,     // runs the binary as a user would
	"controller": {"api"}, // reads and writes objects
	"scheduler":  {"api"},
	"agent":      {"api"},
	"network":    {"api"},
	"cli":        {"agent", "api", "consensus", "controller", "gossip", "identity", "lab", "liveness", "network", "runtime", "scheduler", "snapshot", "wire"},
	"main":       {"cli", "lab", "network"}, // the last two for the processes that it is under other names
	"test":       {"lab", "test"},
	"examples":   {"test"},
}

// isLanguage says of a package of k8s.io/apiserver that it is Kubernetes' CEL,
// whose functions and costs must be the same to the letter; but not that which
// makes its environment, for it links feature gates and Prometheus.
func isLanguage(imported string) bool {
	const apis, cel = "k8s.io/apiserver/pkg/apis/cel", "k8s.io/apiserver/pkg/cel"
	return imported == apis || imported == cel || strings.HasPrefix(imported, cel+"/") && imported != cel+"/environment"
}

type goPackage struct {
	ImportPath string
	Name       string
	Dir        string
	GoFiles    []string
	Imports    []string
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Name,Dir,GoFiles,Imports", "conclave/...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []goPackage
	for decoder := json.NewDecoder(strings.NewReader(string(out))); decoder.More(); {
		var p goPackage
		if err := decoder.Decode(&p); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

// room is the top-level folder of a package of ours.
func room(importPath string) (string, bool) {
	rest, ours := strings.CutPrefix(importPath, "conclave")
	if !ours || rest != "" && rest[0] != '/' {
		return "", false
	}
	name, _, _ := strings.Cut(strings.TrimPrefix(rest, "/"), "/")
	if name == "" {
		name = "main"
	}
	return name, true
}

// askedForRights is how CEL's library asks whether somebody may: two packages of
// interfaces.
var askedForRights = []string{"k8s.io/apiserver/pkg/authentication/user", "k8s.io/apiserver/pkg/authorization/authorizer"}

func TestDependencies(t *testing.T) {
	for _, p := range packages(t) {
		from, _ := room(p.ImportPath)
		allowed, known := may[from]
		if !known {
			t.Errorf("%s is a room that the map of rooms does not have", p.ImportPath)
		}
		for _, imported := range p.Imports {
			if p.ImportPath == "conclave/api" && slices.Contains(askedForRights, imported) {
				continue
			}
			to, ours := room(imported)
			if ours && to != from && !slices.Contains(allowed, to) {
				t.Errorf("%s imports %s: declare an interface for what it needs, and connect the two in cli/server.go", p.ImportPath, imported)
			}
			if from == "api" && isLanguage(imported) {
				continue
			}
			if strings.HasPrefix(imported, "k8s.io/kubernetes") || strings.HasPrefix(imported, "k8s.io/apiserver") {
				t.Errorf("%s imports %s: it costs the memory and the simplicity that are our reason to exist", p.ImportPath, imported)
			}
			if imported == "C" && !strings.HasPrefix(p.ImportPath, "conclave/runtime/") {
				t.Errorf("%s uses cgo: only the program that stays with a pod may", p.ImportPath)
			}
		}
	}
}

// TestProductCarriesNoTests keeps our test code out of the binary. (raft links
// the standard library's testing package whatever we do.)
func TestProductCarriesNoTests(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{.ImportPath}} {{join .Imports \" \"}}", "conclave").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		p := strings.Fields(line)
		if _, ours := room(p[0]); !ours {
			continue
		}
		if strings.HasPrefix(p[0], "conclave/test/") || slices.Contains(p[1:], "testing") {
			t.Errorf("the binary links %s", p[0])
		}
	}
}

// TestNothingCallsMethodsByName: where a program looks for a method by a name that
// is not known before, the linker keeps every method of every type: 6 MB. Whoever
// prints by the template packages does so; those that import them here do it in
// functions that nobody calls.
func TestNothingCallsMethodsByName(t *testing.T) {
	harmless := []string{"html/template", "net/rpc", "github.com/hashicorp/go-msgpack/v2/codec", "github.com/google/cel-go/cel"}
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{.ImportPath}} {{join .Imports \" \"}}", "conclave").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		p := strings.Fields(line)
		if !slices.Contains(harmless, p[0]) && (slices.Contains(p[1:], "text/template") || slices.Contains(p[1:], "html/template")) {
			t.Errorf("%s imports a template package: with -ldflags=-dumpdep the linker says <ReflectMethod> if its templates are used", p[0])
		}
	}
}

// TestServerAloneKnowsEverybody keeps the wiring in one file: no other file of
// cli imports more than two rooms beside its own.
func TestServerAloneKnowsEverybody(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if file == "server.go" || strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		var rooms []string
		for _, i := range parsed.Imports {
			if to, ours := room(strings.Trim(i.Path.Value, `"`)); ours && to != "cli" && !slices.Contains(rooms, to) {
				rooms = append(rooms, to)
			}
		}
		if len(rooms) > 2 {
			t.Errorf("%s imports %v: rooms meet in server.go", file, rooms)
		}
	}
}

func TestPackageComments(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.GoFiles) == 0 {
			continue // tests alone
		}
		comment := ""
		for _, file := range p.GoFiles {
			parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, file), nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			if parsed.Doc != nil {
				comment += parsed.Doc.Text()
			}
		}
		if len(strings.Fields(comment)) < 8 {
			t.Errorf("%s has no package comment that says what it owns", p.ImportPath)
		}
	}
}

// TestArchitectureNamesEveryRoom keeps the map in ARCHITECTURE.md whole.
func TestArchitectureNamesEveryRoom(t *testing.T) {
	page, err := fs.ReadFile(rootFS(t), "ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	for name := range may {
		if name != "main" && !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("ARCHITECTURE.md does not name `%s`", name)
		}
	}
}

func rootFS(t *testing.T) fs.FS {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	return os.DirFS(root)
}
