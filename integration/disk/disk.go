// Package disk holds tests of the real server against what disks, kernels and power supplies do: the process
// is killed or stopped under load, power is cut under its file system, and single bits of its files flip while
// it is off. What was acknowledged must be there afterwards, and damage must be told, never served.
//
// The load and its accounts are those of package chaos.
package disk

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// File is one file of a stopped node.
type File struct {
	// Kind names what the file is for: its path with numbers left out.
	Kind string
	// Path is relative to the node's directory.
	Path string
	Size int64
}

var numbers = regexp.MustCompile(`[0-9]+`)

// Files lists the non-empty files below dir, by kind and path. Lock files, which have no content that anybody
// reads, are left out.
func Files(dir string) ([]File, error) {
	var files []File
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if base := filepath.Base(rel); info.Size() == 0 || base == "LOCK" || strings.HasSuffix(base, ".lock") || base == "lock" {
			return nil
		}
		files = append(files, File{Kind: numbers.ReplaceAllString(rel, "N"), Path: rel, Size: info.Size()})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the files of %s: %w", dir, err)
	}
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Kind+"\x00"+a.Path, b.Kind+"\x00"+b.Path) })
	return files, nil
}

// Flip changes one bit of a file, at a place that draws choose, and returns the place.
func Flip(path string, draw func(n int64) int64) (offset int64, bit uint, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, 0, fmt.Errorf("flip a bit: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, 0, fmt.Errorf("flip a bit: %w", err)
	}
	offset, bit = draw(info.Size()), uint(draw(8))
	var b [1]byte
	if _, err := f.ReadAt(b[:], offset); err != nil {
		return 0, 0, fmt.Errorf("flip a bit: %w", err)
	}
	b[0] ^= 1 << bit
	if _, err := f.WriteAt(b[:], offset); err != nil {
		return 0, 0, fmt.Errorf("flip a bit: %w", err)
	}
	return offset, bit, f.Sync()
}
