package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"

	"perdure/control/cluster"
	"perdure/control/mutant"
	"perdure/nodes/logserver"
)

// tailsFile is the name of the file of tail hints inside of the store's directory.
const tailsFile = "TAILS"

// hintLen is the length of one hint: loglet u64 | tail u32 | flags u32 | crc32c u32 of the former, little endian.
// Flag 1 says that the loglet was sealed, no other is used.
const hintLen = 20

// compactAbove is the size in bytes from which the file is written anew with one hint per loglet, when it has also
// doubled since.
const compactAbove = 1 << 20

// tailHints remembers, outside of the database, that records up to some tail, or a seal, were durable
// once. A write-ahead log whose end was damaged opens without error and without what stood there. A
// log server that then said "I never had these records", or took appends that its seal had ended,
// would break the promise of every quorum that it was part of. A recovered tail below the hint, or a
// seal that is gone, is therefore data loss.
//
// The file is a sequence of fixed-size, self-checked hints, appended about each second. All hints of a
// loglet count together; one that does not check is skipped, for it was being written when the power
// went, or it is damaged, and then less is proven.
type tailHints struct {
	fs   vfs.FS
	path string

	mu    sync.Mutex
	known map[cluster.LogletID]hint // what the file proves, durably
	dirty map[cluster.LogletID]hint // durable tails and seals that are not in the file yet

	// flushing guards what follows; it is taken before mu.
	flushing  sync.Mutex
	file      vfs.File
	size      int
	compacted int   // size when it was written anew
	failure   error // of a write or fsync: what the file holds is not known, it is left alone
}

// hint is what a loglet was proven to have: records below a tail, 0 when none, and a seal.
type hint struct {
	tail   cluster.Offset
	sealed bool
}

func (h hint) and(o hint) hint { return hint{max(h.tail, o.tail), h.sealed || o.sealed} }

// openTailHints reads the hints and begins a new file with the highest of each loglet.
func openTailHints(fs vfs.FS, path string) (*tailHints, error) {
	t := &tailHints{fs: fs, path: path, known: map[cluster.LogletID]hint{}, dirty: map[cluster.LogletID]hint{}}
	old, err := readFile(fs, path)
	if err != nil {
		return nil, err
	}
	for b := range slices.Chunk(old, hintLen) {
		if id, h, ok := parseHint(b); ok {
			t.known[id] = t.known[id].and(h)
		}
	}
	if err := t.rewrite(); err != nil {
		return nil, err
	}
	return t, nil
}

func readFile(fs vfs.FS, path string) ([]byte, error) {
	f, err := fs.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	b, err := io.ReadAll(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return b, nil
}

// rewrite replaces the file by one with the known hints only. Until the rename is durable, the old
// file is complete.
func (t *tailHints) rewrite() error {
	var b []byte
	t.mu.Lock()
	for id, h := range t.known {
		b = appendHint(b, id, h)
	}
	t.mu.Unlock()
	temp := t.path + ".tmp"
	f, err := t.fs.Create(temp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("create %s: %w", temp, err)
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = t.fs.Rename(temp, t.path)
	}
	if err == nil {
		err = syncDir(t.fs, t.fs.PathDir(t.path))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", t.path, err), f.Close())
	}
	old := t.file
	t.file, t.size, t.compacted = f, len(b), len(b)
	if old != nil {
		return old.Close()
	}
	return nil
}

func syncDir(fs vfs.FS, path string) error {
	d, err := fs.OpenDir(path)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	return errors.Join(d.Sync(), d.Close())
}

// lost reports whether a loglet was recovered without something that it was proven to have.
func (t *tailHints) lost(id cluster.LogletID, m *logserver.Meta) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.known[id]
	return m.LocalTail < h.tail || h.sealed && !m.Sealed && !mutant.Is(mutant.SealLossIgnored)
}

// advance notes that writes have become durable.
func (t *tailHints) advance(writes []*logserver.Write) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, w := range writes {
		switch w.Kind {
		case logserver.WriteRecords:
			t.dirty[w.Loglet] = t.dirty[w.Loglet].and(hint{tail: w.Next()})
		case logserver.WriteSeal:
			t.dirty[w.Loglet] = t.dirty[w.Loglet].and(hint{sealed: true})
		}
	}
}

// flush makes the hints of all loglets that moved durable. Only the hint loop and close call it.
// After an error it does nothing but return it: a second fsync could succeed without having written anything, and
// hints that follow a torn one can not be read.
func (t *tailHints) flush() error {
	t.flushing.Lock()
	defer t.flushing.Unlock()
	if t.failure == nil {
		t.failure = t.write(t.takeDirty())
	}
	return t.failure
}

func (t *tailHints) write(moved map[cluster.LogletID]hint) error {
	if len(moved) == 0 {
		return nil
	}
	b := make([]byte, 0, len(moved)*hintLen)
	for id, h := range moved {
		b = appendHint(b, id, h)
	}
	if _, err := t.file.Write(b); err != nil {
		return fmt.Errorf("append to %s: %w", t.path, err)
	}
	if err := t.file.SyncData(); err != nil {
		return fmt.Errorf("sync %s: %w", t.path, err)
	}
	t.size += len(b)
	if t.size > max(compactAbove, 2*t.compacted) {
		return t.rewrite()
	}
	return nil
}

// takeDirty moves the dirty hints to the known ones and returns those that say something new.
func (t *tailHints) takeDirty() map[cluster.LogletID]hint {
	t.mu.Lock()
	defer t.mu.Unlock()
	moved := map[cluster.LogletID]hint{}
	for id, h := range t.dirty {
		if all := h.and(t.known[id]); all != t.known[id] {
			t.known[id] = all
			moved[id] = all
		}
	}
	clear(t.dirty)
	return moved
}

// close notes what is durable and closes the file.
func (t *tailHints) close() error {
	err := t.flush()
	return errors.Join(err, t.file.Close())
}

func appendHint(b []byte, id cluster.LogletID, h hint) []byte {
	at := len(b)
	b = binary.LittleEndian.AppendUint64(b, uint64(id))
	b = binary.LittleEndian.AppendUint32(b, uint32(h.tail))
	flags := uint32(0)
	if h.sealed {
		flags = 1
	}
	b = binary.LittleEndian.AppendUint32(b, flags)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[at:], castagnoli))
}

func parseHint(b []byte) (cluster.LogletID, hint, bool) {
	if len(b) != hintLen || binary.LittleEndian.Uint32(b[16:]) != crc32.Checksum(b[:16], castagnoli) {
		return 0, hint{}, false
	}
	flags := binary.LittleEndian.Uint32(b[12:])
	return cluster.LogletID(binary.LittleEndian.Uint64(b)), hint{cluster.Offset(binary.LittleEndian.Uint32(b[8:])), flags == 1}, flags <= 1
}
