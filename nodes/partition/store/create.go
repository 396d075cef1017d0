package store

import (
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// readyFile is written when a new store is complete on disk. A directory without it was left by a crash
// during creation: no Open has returned it, so nothing is in it.
const readyFile = "READY"

// openOrCreate opens the database, or makes a new one.
//
// Pebble creates a database at its oldest format and ratchets it up, with a sync of the directory for each
// step: with the 24 stores of a node that is most of the time of a first start. The steps need not be
// durable one by one as long as the store is not in use, so they are synced together, and readyFile
// says that this was done.
func openOrCreate(dir string, o *pebble.Options) (*pebble.DB, error) {
	files := o.FS
	ready := files.PathJoin(dir, readyFile)
	if _, err := files.Stat(ready); err == nil {
		return pebble.Open(dir, o)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := files.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove a store that was not completed: %w", err)
	}
	lazy := &lazyDirFS{FS: files}
	lazy.on.Store(true)
	o.FS = lazy
	db, err := pebble.Open(dir, o)
	if err != nil {
		return nil, err
	}
	lazy.on.Store(false)
	if err := complete(files, dir, ready); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

func complete(fs vfs.FS, dir, ready string) error {
	// Pebble has made the directories above as well: in a first start, that of all stores.
	above := fs.PathDir(dir)
	if err := errors.Join(syncDir(fs, fs.PathDir(above)), syncDir(fs, above), syncDir(fs, dir)); err != nil {
		return err
	}
	f, err := fs.Create(ready, vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("create %s: %w", ready, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("create %s: %w", ready, err)
	}
	return syncDir(fs, dir)
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

// lazyDirFS leaves out the syncs of directories while it is on.
type lazyDirFS struct {
	vfs.FS
	on atomic.Bool
}

func (fs *lazyDirFS) OpenDir(name string) (vfs.File, error) {
	f, err := fs.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &lazyDir{File: f, fs: fs}, nil
}

// Unwrap is part of vfs.FS.
func (fs *lazyDirFS) Unwrap() vfs.FS { return fs.FS }

type lazyDir struct {
	vfs.File
	fs *lazyDirFS
}

func (d *lazyDir) Sync() error {
	if d.fs.on.Load() {
		return nil
	}
	return d.File.Sync()
}
