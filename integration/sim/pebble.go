package sim

import (
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"perdure/control/cluster"
	"perdure/nodes/logserver"
	"perdure/nodes/logstore"
)

// pebbleDisk keeps the records in the real log store, on a file system that loses what was not synced. The
// order of syncs is still the simulator's: a write is given to the store at the moment of its sync, and the
// simulation waits for it; what was not synced yet at a loss of power is given to the store and not waited for.
type pebbleDisk struct {
	w     *world
	fs    *vfs.MemFS
	store *logstore.Store
	done  chan error
}

func newPebbleDisk(w *world) storage {
	d := &pebbleDisk{w: w, fs: vfs.NewCrashableMem(), done: make(chan error, 1)}
	d.open()
	return d
}

func (d *pebbleDisk) open() {
	var err error
	d.store, err = logstore.Open(logstore.Config{Dir: "log", FS: d.fs, Logger: slog.New(slog.DiscardHandler), MemTableSize: 1 << 20, HintInterval: time.Hour})
	if err != nil {
		violated("log store", "the store does not open after a crash: %v", err)
	}
}

// WriteDone implements logserver.WriteOwner.
func (d *pebbleDisk) WriteDone(_ *logserver.Write, err error) { d.done <- err }

func (d *pebbleDisk) persist(w *logserver.Write) {
	w.Owner = d
	if err := d.store.Enqueue(w); err != nil {
		violated("log store", "a write is refused: %v", err)
	}
	if err := <-d.done; err != nil {
		violated("log store", "a write failed: %v", err)
	}
}

func (d *pebbleDisk) load(id cluster.LogletID) logserver.Meta {
	m, err := d.store.Load(id)
	if err != nil {
		violated("log store", "load: %v", err)
	}
	return m
}

func (d *pebbleDisk) read(id cluster.LogletID, from, to cluster.Offset, maxBytes int) ([]logserver.Found, cluster.Offset, error) {
	return d.store.Read(id, from, to, maxBytes)
}

func (d *pebbleDisk) digest(id cluster.LogletID, from, to cluster.Offset) []logserver.Range {
	rs, err := d.store.Digest(id, from, to)
	if err != nil {
		violated("log store", "digest: %v", err)
	}
	return rs
}

func (d *pebbleDisk) has(id cluster.LogletID, o cluster.Offset) bool {
	return len(d.digest(id, o, o+1)) > 0
}

// rot is a fault of the model only; what damaged files do to the real store is tested with files.
func (d *pebbleDisk) rot(func(int) int) bool { return false }

// newestLog is the file of the write-ahead log that was written last, and what is in it.
func (d *pebbleDisk) newestLog() (name string, content []byte) {
	names, err := d.fs.List("log/db")
	if err != nil {
		violated("log store", "list: %v", err)
	}
	for _, n := range names {
		if strings.HasSuffix(n, ".log") {
			name = max(name, "log/db/"+n)
		}
	}
	return name, d.content(name)
}

func (d *pebbleDisk) content(name string) []byte {
	f, err := d.fs.Open(name)
	if err != nil {
		violated("log store", "open %s: %v", name, err)
	}
	b, err := io.ReadAll(f)
	if err := errors.Join(err, f.Close()); err != nil {
		violated("log store", "read %s: %v", name, err)
	}
	return b
}

// write replaces a file, durably.
func (d *pebbleDisk) write(name string, content []byte) {
	f, err := d.fs.Create(name, vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = f.Write(content)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err == nil {
		f, err = d.fs.OpenDir(d.fs.PathDir(name))
	}
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		violated("log store", "write %s: %v", name, err)
	}
}

// crash goes on with what was synced, and perhaps some of the rest. The hints beside the database are those of all that was
// durable, as if they had been written just before.
func (d *pebbleDisk) crash() {
	d.cut()
	d.open()
}

// loseTail cuts off the end of the write-ahead log as well, as a disk does that lies about what it has made durable.
func (d *pebbleDisk) loseTail(pick func(int) int) bool {
	d.cut()
	name, b := d.newestLog()
	lost := len(b) > 0
	if lost {
		d.write(name, b[:len(b)-1-pick(min(len(b), 2000))])
	}
	d.open()
	return lost
}

// cut closes the store and leaves what a loss of power leaves.
func (d *pebbleDisk) cut() {
	rng := rand.New(rand.NewPCG(d.w.rng[disks].Uint64(), 1))
	clone := d.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50 * rng.IntN(3), RNG: rng})
	d.close()
	hints := d.content(hintsFile)
	d.fs = clone
	d.write(hintsFile, hints)
}

const hintsFile = "log/TAILS"

func (d *pebbleDisk) close() {
	if err := d.store.Close(); err != nil {
		violated("log store", "close: %v", err)
	}
}
