package cli

import (
	"reflect"
	"strings"
	"testing"
)

func TestProgramPages(t *testing.T) {
	const maps = `00400000-0198b000 r-xp 00000000 fe:00 10806437                           /opt/a program
0198b000-03246000 r--p 0158b000 fe:00 10806437                           /opt/a program
03246000-032f3000 rw-p 02e46000 fe:00 10806437                           /opt/a program
032f3000-05353000 rw-p 00000000 00:00 0 
c000000000-c001800000 rw-p 00000000 00:00 0 
7ff48fd18000-7ff48fe18000 r--p 00000000 fe:00 10806438                   /opt/a program.log
7ffd44b2a000-7ffd44b2c000 r-xp 00000000 00:00 0                          [vdso]
`
	got, err := programPages(strings.NewReader(maps), "/opt/a program")
	if want := []addresses{{0x400000, 0x198b000}, {0x198b000, 0x3246000}}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%x, %v; want %x", got, err, want)
	}
	if _, err := programPages(strings.NewReader("zz-1 r-xp 0 0 0 /p\n"), "/p"); err == nil {
		t.Error("an address that is none was read")
	}
}

// The program goes on without its pages.
func TestUnmapProgram(t *testing.T) {
	before, err := mappedFiles()
	if err != nil {
		t.Fatal(err)
	}
	if err := unmapProgram(); err != nil {
		t.Fatal(err)
	}
	after, err := mappedFiles()
	if err != nil {
		t.Fatal(err)
	}
	if before <= 0 || after >= before {
		t.Errorf("%d bytes of files were mapped, then %d", before, after)
	}
}
