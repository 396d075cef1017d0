package main

import (
	"os/exec"
	"runtime"
	"strings"
	"testing"
)

// The patches fit the version of Go in use: they apply, and the standard library still compiles.
func TestOverlay(t *testing.T) {
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	const madeFor = "go1.26.8"
	file, err := overlay(strings.TrimSpace(string(goroot)), t.TempDir())
	if err != nil && runtime.Version() != madeFor {
		t.Skipf("made for %s: %v", madeFor, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "build", "-overlay", file, "runtime", "internal/sync").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
