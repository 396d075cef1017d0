package logstore

import "github.com/cockroachdb/pebble/v2/vfs"

// walCategory is what Pebble calls the files of its write-ahead log when it makes them.
const walCategory vfs.DiskWriteCategory = "pebble-wal"

// walFS makes the files of the write-ahead log for Pebble: their length grows in steps, and their errors are told at once.
//
// An fsync after a write that made the file longer also costs a write to the journal of the file system. Pebble reserves the
// space but leaves the length, and only files that it uses again have it; after each start the first ones are new.
// Therefore a small write at the end of a file makes it longer than is needed. What was not written reads as zeros, and Pebble
// takes them for the end of the log, like the leftovers in a file that is used again. Large writes come under load, when
// the journal's share is small: they are left as they are.
//
// Pebble tells of an error by a panic, part of them with its locks taken, when it comes across it with a later batch;
// nothing should be given to it any more by then.
type walFS struct {
	vfs.FS
	failed func(error)
}

// Create implements vfs.FS.
func (w walFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := w.FS.Create(name, c)
	return w.logFile(f, err, c)
}

// ReuseForWrite implements vfs.FS.
func (w walFS) ReuseForWrite(old, name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := w.FS.ReuseForWrite(old, name, c)
	return w.logFile(f, err, c)
}

func (w walFS) logFile(f vfs.File, err error, c vfs.DiskWriteCategory) (vfs.File, error) {
	if c != walCategory {
		return f, err
	}
	if err != nil {
		w.failed(err)
		return f, err
	}
	l := &walFile{File: f, failed: w.failed}
	if info, err := f.Stat(); err == nil {
		l.end = info.Size()
	}
	return l, nil
}

// Unwrap implements vfs.FS.
func (w walFS) Unwrap() vfs.FS { return w.FS }

// walFile is a file of the write-ahead log, which Pebble writes from its beginning on and whose data it fsyncs, on one
// goroutine.
type walFile struct {
	vfs.File
	failed func(error)
	offset int64 // of the next write
	end    int64 // of the file
}

const (
	smallWrite = 8 << 10   // bytes up to which a write makes room for others
	step       = 256 << 10 // bytes of that room
)

// Write implements vfs.File.
func (f *walFile) Write(p []byte) (int, error) {
	next := f.offset + int64(len(p))
	if next > f.end && len(p) <= smallWrite && f.Fd() != vfs.InvalidFd {
		// Where that is not possible, the file grows with each write.
		if lengthen(f.Fd(), f.offset, step) {
			f.end = f.offset + step
		}
	}
	n, err := f.File.Write(p)
	f.offset += int64(n)
	f.end = max(f.end, f.offset)
	if err != nil {
		f.failed(err)
	}
	return n, err
}

// SyncData implements vfs.File.
func (f *walFile) SyncData() error {
	err := f.File.SyncData()
	if err != nil {
		f.failed(err)
	}
	return err
}
