package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"perdure/control/cluster"
)

func newID() func() string {
	n := 0
	return func() string { n++; return fmt.Sprint("dir", n) }
}

func mustOpen(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := Open(path, newID())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

var joined = Marker{Directory: "dir1", ClusterName: "c", Fingerprint: 0xf, NodeName: "a", Node: 1, MetadataStorage: "m1", LogStorage: "l1"}

func TestMarkerSurvives(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "data")
	d := mustOpen(t, path)
	if m := d.Marker(); m.Directory != "dir1" || m.Joined() {
		t.Errorf("marker of a new directory: %+v", m)
	}
	if err := d.SetMarker(joined); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	if err := d.SetMarker(joined); err == nil {
		t.Error("a marker was written after the lock was given up")
	}
	if m := mustOpen(t, path).Marker(); m != joined {
		t.Errorf("read back %+v", m)
	}
}

func TestMissingDirectoriesAreMade(t *testing.T) {
	base := t.TempDir()
	for _, path := range []string{filepath.Join(base, "a", "b", "c"), filepath.Join(base, "a", "d")} {
		d, err := Open(path, newID())
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(filepath.Join(file, "below"), newID()); err == nil {
		t.Error("a directory below a file was made")
	}
}

// A start that is killed between making a directory and the fsync of its parent leaves the directory to a start that finds it
// there. Its name has to become durable then.
func TestDirectoryOfAnInterruptedStart(t *testing.T) {
	base := t.TempDir()
	path := filepath.Join(base, "a", "b")
	killed := errors.New("killed")
	for _, last := range []string{base, filepath.Join(base, "a")} { // the parent whose fsync does not happen
		if err := makeDir(path, func(dir string) error {
			if dir == last {
				return killed
			}
			return nil
		}); !errors.Is(err, killed) {
			t.Fatal(err)
		}
		var synced []string
		if err := makeDir(path, func(dir string) error { synced = append(synced, dir); return nil }); err != nil || !slices.Contains(synced, last) {
			t.Errorf("the next start synced %q, %v; want %s among them", synced, err, last)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// A directory that was given to the server may be below one that it must not read; that is not an error.
func TestParentOfAnother(t *testing.T) {
	for _, refusal := range []error{fs.ErrPermission, syscall.EINVAL} {
		if err := makeDir(t.TempDir(), func(string) error { return &fs.PathError{Op: "sync", Err: refusal} }); err != nil {
			t.Errorf("parent with %v: %v", refusal, err)
		}
	}
	if err := makeDir(t.TempDir(), func(string) error { return syscall.EIO }); !errors.Is(err, syscall.EIO) {
		t.Errorf("failed fsync: %v", err)
	}
}

func TestSecondServerIsKeptOut(t *testing.T) {
	path := t.TempDir()
	d := mustOpen(t, path)
	_, err := Open(path, newID())
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("(pid %d)", os.Getpid())) {
		t.Errorf("second open: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, path)
}

func TestDirectoryDoesNotChangeHands(t *testing.T) {
	d := mustOpen(t, t.TempDir())
	early := joined
	early.MetadataStorage, early.LogStorage = "", ""
	for _, m := range []Marker{early, joined, joined} {
		if err := d.SetMarker(m); err != nil {
			t.Fatal(err)
		}
	}
	for name, change := range map[string]func(*Marker){
		"directory":   func(m *Marker) { m.Directory = "x" },
		"cluster":     func(m *Marker) { m.ClusterName = "x" },
		"fingerprint": func(m *Marker) { m.Fingerprint++ },
		"node name":   func(m *Marker) { m.NodeName = "x" },
		"node":        func(m *Marker) { m.Node++ },
		"metadata":    func(m *Marker) { m.MetadataStorage = "" },
		"log":         func(m *Marker) { m.LogStorage = "x" },
	} {
		m := joined
		change(&m)
		if err := d.SetMarker(m); !errors.Is(err, ErrForeign) {
			t.Errorf("%s changed: %v", name, err)
		}
	}
	if d.Marker() != joined {
		t.Errorf("marker is %+v", d.Marker())
	}
}

// A crash while the marker is written leaves the old one, and the rest of the new one is of no harm.
func TestInterruptedWrite(t *testing.T) {
	path := t.TempDir()
	d := mustOpen(t, path)
	if err := errors.Join(d.SetMarker(joined), d.Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, markerFile+".tmp"), []byte("{half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if m := mustOpen(t, path).Marker(); m != joined {
		t.Errorf("read %+v", m)
	}
}

func TestDamagedMarkerIsNotReplaced(t *testing.T) {
	path := t.TempDir()
	file := filepath.Join(path, markerFile)
	for _, content := range []string{"", "{}", `{"format":2,"directory":"d"}`, `{"format":1,"directory":"d","node":1}`, `{"format":1,"directory":"d","x":1}`} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path, newID()); !errors.Is(err, ErrMarker) {
			t.Errorf("marker %q: %v", content, err)
		}
		if now, err := os.ReadFile(file); err != nil || string(now) != content {
			t.Errorf("the marker was replaced by %q, %v", now, err)
		}
	}
}

func TestCheckConfigurationAndCluster(t *testing.T) {
	if err := (Marker{Directory: "d"}).CheckConfiguration("any", "name"); err != nil {
		t.Error(err)
	}
	if err := joined.CheckConfiguration("c", "a"); err != nil {
		t.Error(err)
	}
	for _, names := range [][2]string{{"x", "a"}, {"c", "x"}} {
		if err := joined.CheckConfiguration(names[0], names[1]); !errors.Is(err, ErrForeign) {
			t.Errorf("configured as %v: %v", names, err)
		}
	}
	for fingerprint, want := range map[cluster.Fingerprint]error{0xf: nil, 0xe: ErrForeign} {
		c, err := cluster.NewNodesConfig("c", fingerprint)
		if err != nil {
			t.Fatal(err)
		}
		if err := joined.CheckCluster(c); !errors.Is(err, want) {
			t.Errorf("cluster %s: %v", fingerprint, err)
		}
	}
}

func TestCheckLogStore(t *testing.T) {
	mine := Store{true, 1, "l1", 0xf}
	change := func(f func(*Store)) Store {
		s := mine
		f(&s)
		return s
	}
	unmarked := joined
	unmarked.LogStorage = ""
	for name, tc := range map[string]struct {
		marker Marker
		state  cluster.StorageState
		found  Store
		want   Verdict
		err    error
	}{
		"first start":              {unmarked, cluster.StorageProvisioning, Store{}, Provision, nil},
		"crash before state":       {joined, cluster.StorageProvisioning, mine, Provision, nil},
		"crash before base marker": {unmarked, cluster.StorageProvisioning, mine, Provision, nil},
		"restart":                  {joined, cluster.StorageReadWrite, mine, Run, nil},
		"draining":                 {joined, cluster.StorageReadOnly, mine, Run, nil},
		"given up but back":        {joined, cluster.StorageGone, mine, Run, nil},
		"wiped":                    {joined, cluster.StorageReadWrite, Store{}, DeclareLoss, ErrLost},
		"wiped while draining":     {joined, cluster.StorageReadOnly, Store{}, DeclareLoss, ErrLost},
		"declared lost":            {joined, cluster.StorageDataLoss, mine, Refuse, ErrLost},
		"disabled":                 {joined, cluster.StorageDisabled, mine, Refuse, nil},
		"other node":               {joined, cluster.StorageReadWrite, change(func(s *Store) { s.Node = 2 }), Refuse, ErrForeign},
		"other node, provisioning": {joined, cluster.StorageProvisioning, change(func(s *Store) { s.Node = 2 }), Refuse, ErrForeign},
		"other cluster":            {joined, cluster.StorageReadWrite, change(func(s *Store) { s.Fingerprint = 1 }), Refuse, ErrForeign},
		"other disk of same node":  {joined, cluster.StorageReadWrite, change(func(s *Store) { s.Storage = "l2" }), Refuse, ErrForeign},
	} {
		got, err := tc.marker.CheckLogStore(cluster.Node{ID: 1, Storage: tc.state}, tc.found)
		wantErr := tc.want == Refuse || tc.want == DeclareLoss
		if got != tc.want || (err != nil) != wantErr || tc.err != nil && !errors.Is(err, tc.err) {
			t.Errorf("%s: verdict %d, %v; want %d, %v", name, got, err, tc.want, tc.err)
		}
	}
}

const golden = `{
  "format": 1,
  "directory": "dir1",
  "cluster_name": "c",
  "fingerprint": "000000000000000f",
  "node_name": "a",
  "node": 1,
  "metadata_storage": "m1",
  "log_storage": "l1",
  "checksum": "0ddb6115"
}
`

func TestGolden(t *testing.T) {
	if got, err := joined.encode(); err != nil || string(got) != golden {
		t.Errorf("encoding changed, %v:\n%s", err, got)
	}
}

// Whatever bit of the file changes, the marker is either refused as damaged or reads as what it was.
func TestFlippedBits(t *testing.T) {
	for i := range golden {
		for bit := range 8 {
			data := []byte(golden)
			data[i] ^= 1 << bit
			m, err := DecodeMarker(data)
			if err == nil && m != joined || err != nil && !errors.Is(err, ErrMarker) {
				t.Errorf("bit %d of byte %d (%q): %+v, %v", bit, i, golden[i], m, err)
			}
		}
	}
}

func FuzzDecodeMarker(f *testing.F) {
	f.Add([]byte(golden))
	f.Add([]byte(`{"format":1,"directory":"d"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := DecodeMarker(data)
		if err != nil {
			return
		}
		again, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := DecodeMarker(again); err != nil || back != m {
			t.Fatalf("%+v reads back as %+v, %v", m, back, err)
		}
	})
}
