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
//
// It also tells of the first error of a file of the log. Pebble tells by a panic, part of them with its locks taken, when it
// comes across the error with a later batch; nothing should be given to it any more by then.
type walFS struct {
	vfs.FS
	size   int64
	failed func(error)
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
	if c != walCategory {
		return f, err
	}
	if err != nil {
		w.failed(err)
		return f, err
	}
	if f.Fd() != vfs.InvalidFd {
		for errors.Is(syscall.Fallocate(int(f.Fd()), 0, 0, w.size), syscall.EINTR) {
		}
	}
	return walFile{f, w.failed}, nil
}

// walFile is a file of the write-ahead log. Pebble writes it and fsyncs its data.
type walFile struct {
	vfs.File
	failed func(error)
}

// Write implements vfs.File.
func (f walFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	if err != nil {
		f.failed(err)
	}
	return n, err
}

// SyncData implements vfs.File.
func (f walFile) SyncData() error {
	err := f.File.SyncData()
	if err != nil {
		f.failed(err)
	}
	return err
}

// Unwrap implements vfs.FS.
func (w walFS) Unwrap() vfs.FS { return w.FS }
