package logstore

import (
	"errors"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// walCategory is what Pebble calls the files of its write-ahead log when it makes them.
const walCategory vfs.DiskWriteCategory = "pebble-wal"

// walFS gives the files of the write-ahead log their final length when they are made, so that the fsync of a batch has
// data to write and no new length: that costs another write, to the journal of the file system. Pebble reserves
// the space but leaves the length, and only files that it uses again have it; after each start the first ones
// are new. A file whose end was never written reads as zeros there, which Pebble takes as it takes the leftovers in a file
// that is used again.
type walFS struct {
	vfs.FS
	size int64
}

// Create implements vfs.FS.
func (w walFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := w.FS.Create(name, c)
	return w.extended(f, err, c)
}

// ReuseForWrite implements vfs.FS.
func (w walFS) ReuseForWrite(old, name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := w.FS.ReuseForWrite(old, name, c)
	return w.extended(f, err, c)
}

// extended makes room in a new file. Where that is not possible (a file system in memory, or one without the call, or no
// room) the file grows with what is written.
func (w walFS) extended(f vfs.File, err error, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err == nil && c == walCategory && f.Fd() != vfs.InvalidFd {
		for errors.Is(syscall.Fallocate(int(f.Fd()), 0, 0, w.size), syscall.EINTR) {
		}
	}
	return f, err
}

// Unwrap implements vfs.FS.
func (w walFS) Unwrap() vfs.FS { return w.FS }
