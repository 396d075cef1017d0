package metastore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// This file checks the structure of a bbolt file (format 2) before bbolt opens it. bbolt keeps checksums of its two meta
// pages only, follows every pointer that it finds, and is content with one sound meta page: a changed byte can make it
// crash, or silently show an older state, or show buckets with fewer keys. A page is
//
//	id 8 | flags 2 | number of elements 2 | overflow: further pages that belong to it 4 | elements | keys and values
//
// with everything in little endian (on the machines that we run on) and positions of elements relative to the element.
// A meta page has, instead of elements,
//
//	magic 4 | version 4 | page size 4 | flags 4 | root bucket: page 8, sequence 8 | freelist page 8 | high water mark 8
//	| transaction 8 | FNV-1a of all before 8
const (
	pageHeaderBytes = 16
	elementBytes    = 16
	bucketBytes     = 16
	metaBytes       = 64

	boltMagic        = 0xED0CDAED
	boltVersion      = 2
	smallestBoltPage = 512
	largestBoltPage  = 64 << 10

	branchPage   = 0x01
	leafPage     = 0x02
	freelistPage = 0x10
	bucketLeaf   = 0x01 // flag of a leaf element whose value is a bucket

	manyFree   = 0xFFFF // number of elements of a freelist that has its count as first entry
	noFreelist = ^uint64(0)
)

var le = binary.LittleEndian

// boltFile is a file that is being checked.
type boltFile struct {
	file     io.ReaderAt
	size     int64
	pageSize int64
	pages    uint64 // high water mark: pages from here on are not used
	seen     map[uint64]bool
}

// errStructure says what is wrong with a file.
func errStructure(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrDamaged}, args...)...)
}

// verifyBoltFile checks that both meta pages are sound, that the tree is complete, and that every page is either in
// use or free. It reads all keys but no long values. A bad meta page is damage, not the mark of a crash: a meta lies
// within one disk sector.
func verifyBoltFile(path string) (err error) {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open metadata log: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	switch err := syscall.Flock(int(file.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return fmt.Errorf("metadata directory %s is in use by another process", filepath.Dir(path))
	case err != nil:
		return fmt.Errorf("lock %s: %w", path, err)
	}
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("open metadata log: %w", err)
	}
	if err := verifyBolt(file, info.Size()); err != nil {
		return fmt.Errorf("check %s: %w", path, err)
	}
	return nil
}

func verifyBolt(file io.ReaderAt, size int64) error {
	b := &boltFile{file: file, size: size, seen: map[uint64]bool{0: true, 1: true}}
	root, freelist, err := b.readMetas()
	if err != nil {
		return err
	}
	if err := b.tree(root, nil); err != nil {
		return err
	}
	free := map[uint64]bool{}
	if freelist != noFreelist {
		if free, err = b.readFreelist(freelist); err != nil {
			return err
		}
	}
	for id := range b.pages {
		if b.seen[id] == free[id] {
			return errStructure("page %d is in use: %v, free: %v", id, b.seen[id], free[id])
		}
	}
	return nil
}

// readMetas checks both metas and returns the root and the freelist of the newer one.
func (b *boltFile) readMetas() (root, freelist uint64, err error) {
	b.pageSize = int64(os.Getpagesize())
	var newest uint64
	for page := range int64(2) {
		meta := make([]byte, metaBytes)
		if _, err := b.file.ReadAt(meta, page*b.pageSize+pageHeaderBytes); err != nil {
			return 0, 0, errStructure("meta page %d can not be read: %v", page, err)
		}
		if page == 0 {
			if n := int64(le.Uint32(meta[8:])); n >= smallestBoltPage && n <= largestBoltPage && n&(n-1) == 0 {
				b.pageSize = n
			}
		}
		sum := fnv.New64a()
		_, _ = sum.Write(meta[:metaBytes-8])
		if le.Uint32(meta) != boltMagic || le.Uint32(meta[4:]) != boltVersion || sum.Sum64() != le.Uint64(meta[metaBytes-8:]) {
			return 0, 0, errStructure("meta page %d does not match its checksum", page)
		}
		if txn := le.Uint64(meta[48:]); page == 0 || txn > newest {
			newest, root, freelist, b.pages = txn, le.Uint64(meta[16:]), le.Uint64(meta[32:]), le.Uint64(meta[40:])
		}
	}
	if b.pages > uint64(b.size/b.pageSize) {
		return 0, 0, errStructure("it has %d bytes, but %d pages are in use", b.size, b.pages)
	}
	return root, freelist, nil
}

// read returns a page with what belongs to it, and marks it as in use.
func (b *boltFile) read(id uint64) ([]byte, error) {
	if id >= b.pages {
		return nil, errStructure("a pointer leads to page %d of %d", id, b.pages)
	}
	header := make([]byte, pageHeaderBytes)
	if _, err := b.file.ReadAt(header, int64(id)*b.pageSize); err != nil {
		return nil, fmt.Errorf("read page %d: %w", id, err)
	}
	overflow := uint64(le.Uint32(header[12:]))
	if le.Uint64(header) != id || overflow >= b.pages-id {
		return nil, errStructure("page %d says that it is %d with %d more", id, le.Uint64(header), overflow)
	}
	for i := id; i <= id+overflow; i++ {
		if b.seen[i] {
			return nil, errStructure("page %d is used twice", i)
		}
		b.seen[i] = true
	}
	page := make([]byte, int64(overflow+1)*b.pageSize)
	if _, err := b.file.ReadAt(page, int64(id)*b.pageSize); err != nil {
		return nil, fmt.Errorf("read page %d: %w", id, err)
	}
	return page, nil
}

// tree checks a page and what is below it. Its keys are not below first.
func (b *boltFile) tree(id uint64, first []byte) error {
	page, err := b.read(id)
	if err != nil {
		return err
	}
	if err := b.elements(page, first); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// elements checks a page of a tree. bbolt writes keys and values without gaps right after the elements, so that a
// changed number of elements does not fit.
func (b *boltFile) elements(page, first []byte) error {
	flags, count := le.Uint16(page[8:]), int(le.Uint16(page[10:]))
	if flags != branchPage && flags != leafPage || flags == branchPage && count == 0 {
		return errStructure("it has flags %#x and %d elements", flags, count)
	}
	next := pageHeaderBytes + count*elementBytes
	var last []byte
	for i := range count {
		at := pageHeaderBytes + i*elementBytes
		if at+elementBytes > len(page) {
			return errStructure("element %d of %d lies outside", i, count)
		}
		e := parseElement(page[at:at+elementBytes], flags)
		end := uint64(next) + e.keyBytes + e.valueBytes
		if uint64(at)+e.position != uint64(next) || end > uint64(len(page)) {
			return errStructure("element %d does not follow its predecessor", i)
		}
		key := page[next : next+int(e.keyBytes)]
		if i > 0 && bytes.Compare(last, key) >= 0 || i == 0 && bytes.Compare(first, key) > 0 {
			return errStructure("the key of element %d is not in order", i)
		}
		if err := b.below(e, key, page[next+int(e.keyBytes):end]); err != nil {
			return err
		}
		last, next = key, int(end)
	}
	return nil
}

// element is where the key and value of an element are, or the child of a branch.
type element struct {
	position, keyBytes, valueBytes uint64
	child                          uint64
	branch, bucket                 bool
}

func parseElement(b []byte, flags uint16) element {
	if flags == branchPage {
		return element{position: uint64(le.Uint32(b)), keyBytes: uint64(le.Uint32(b[4:])), child: le.Uint64(b[8:]), branch: true}
	}
	return element{position: uint64(le.Uint32(b[4:])), keyBytes: uint64(le.Uint32(b[8:])), valueBytes: uint64(le.Uint32(b[12:])), bucket: le.Uint32(b) == bucketLeaf}
}

func (b *boltFile) below(e element, key, value []byte) error {
	switch {
	case e.branch:
		return b.tree(e.child, key)
	case !e.bucket:
		return nil
	case len(value) < bucketBytes:
		return errStructure("the bucket %q is cut", key)
	}
	if root := le.Uint64(value); root != 0 {
		return b.tree(root, nil)
	}
	inline := value[bucketBytes:] // a small bucket is a page within the value
	if len(inline) < pageHeaderBytes {
		return errStructure("the bucket %q is cut", key)
	}
	return b.elements(inline, nil)
}

func (b *boltFile) readFreelist(id uint64) (map[uint64]bool, error) {
	page, err := b.read(id)
	if err != nil {
		return nil, err
	}
	entries, count := page[pageHeaderBytes:], uint64(le.Uint16(page[10:]))
	if count == manyFree {
		count, entries = le.Uint64(entries), entries[8:]
	}
	if le.Uint16(page[8:]) != freelistPage || count > uint64(len(entries)/8) {
		return nil, errStructure("page %d is no freelist of %d pages", id, count)
	}
	free := make(map[uint64]bool, count)
	for i := range count {
		free[le.Uint64(entries[8*i:])] = true
	}
	return free, nil
}
