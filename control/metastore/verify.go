package metastore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	bolterrors "go.etcd.io/bbolt/errors"
)

// found is what a store holds before raft runs on it.
type found struct {
	// fresh means that the store was never bootstrapped and never joined a group.
	fresh bool
	// halfBootstrapped means that a bootstrap was interrupted after it had set the first term.
	halfBootstrapped bool
}

// verifyStores reads everything that raft will rely on, because raft answers an unreadable entry with a panic. It
// returns an ErrDamaged when something is missing or is not what was written.
func verifyStores(logs raft.LogStore, stable raft.StableStore, snaps raft.SnapshotStore, snapshotDir string) (f found, err error) {
	defer recoverDamage(&err)
	snapshot, err := verifySnapshots(snaps, snapshotDir)
	if err != nil {
		return found{}, err
	}
	last, lastTerm, err := verifyLog(logs, snapshot)
	if err != nil {
		return found{}, err
	}
	term, voted, err := readTerm(stable)
	if err != nil {
		return found{}, err
	}
	if lastTerm > term || voted > term {
		return found{}, fmt.Errorf("%w: the current term is %d, but there is an entry of term %d and a vote of term %d", ErrDamaged, term, lastTerm, voted)
	}
	empty := last == 0 && snapshot == 0
	f = found{fresh: empty && term == 0, halfBootstrapped: empty && term == 1 && voted == 0}
	return f, nil
}

// recoverDamage turns a panic of bbolt, which follows the pointers that it finds, into an error.
func recoverDamage(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%w: its file can not be read: %v", ErrDamaged, p)
	}
}

// trapFaults makes an access beyond the end of a truncated file a panic of this goroutine.
func trapFaults() (restore func()) {
	old := debug.SetPanicOnFault(true)
	return func() { debug.SetPanicOnFault(old) }
}

// verifySnapshots checks the newest snapshot and returns its index, 0 if there is none.
func verifySnapshots(snaps raft.SnapshotStore, dir string) (uint64, error) {
	names, err := snapshotNames(dir)
	if err != nil {
		return 0, err
	}
	metas, err := snaps.List()
	if err != nil {
		return 0, fmt.Errorf("list metadata snapshots: %w", err)
	}
	if len(metas) == 0 {
		if len(names) > 0 {
			return 0, fmt.Errorf("%w: no snapshot in %s has a readable description", ErrDamaged, dir)
		}
		return 0, nil
	}
	for _, name := range names { // raft ignores those that it can not read
		var term, index uint64
		if _, err := fmt.Sscanf(name, "%d-%d-", &term, &index); err != nil || term > metas[0].Term || term == metas[0].Term && index > metas[0].Index {
			return 0, fmt.Errorf("%w: snapshot %s has no readable description", ErrDamaged, filepath.Join(dir, name))
		}
	}
	_, content, err := snaps.Open(metas[0].ID)
	if err != nil {
		return 0, fmt.Errorf("%w: open snapshot %s: %w", ErrDamaged, metas[0].ID, err)
	}
	defer content.Close()
	data, err := io.ReadAll(content)
	if err != nil {
		return 0, fmt.Errorf("read snapshot %s: %w", metas[0].ID, err)
	}
	if _, err := decodeSnapshot(data); err != nil {
		return 0, fmt.Errorf("%w: snapshot %s: %w", ErrDamaged, metas[0].ID, err)
	}
	return metas[0].Index, nil
}

func snapshotNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list metadata snapshots: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && !strings.HasSuffix(e.Name(), ".tmp") {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// verifyLog reads every entry and checks that none is missing after the snapshot.
func verifyLog(logs raft.LogStore, snapshot uint64) (last, lastTerm uint64, err error) {
	first, err := logs.FirstIndex()
	if err != nil {
		return 0, 0, fmt.Errorf("read metadata log: %w", err)
	}
	if last, err = logs.LastIndex(); err != nil {
		return 0, 0, fmt.Errorf("read metadata log: %w", err)
	}
	if last > 0 && first > snapshot+1 {
		return 0, 0, fmt.Errorf("%w: the log begins at %d but the newest snapshot ends at %d", ErrDamaged, first, snapshot)
	}
	for index := first; index <= last && last > 0; index++ {
		var entry raft.Log
		if err := logs.GetLog(index, &entry); err != nil {
			return 0, 0, err
		}
		if entry.Term < lastTerm {
			return 0, 0, fmt.Errorf("%w: entry %d has term %d after an entry of term %d", ErrDamaged, index, entry.Term, lastTerm)
		}
		lastTerm = entry.Term
	}
	return last, lastTerm, nil
}

func readTerm(stable raft.StableStore) (term, voted uint64, err error) {
	if term, err = stable.GetUint64(keyCurrentTerm); err != nil && !errors.Is(err, errKeyNotFound) {
		return 0, 0, err
	}
	if voted, err = stable.GetUint64(keyVoteTerm); err != nil && !errors.Is(err, errKeyNotFound) {
		return 0, 0, err
	}
	return term, voted, nil
}

// lockTimeout is how long to wait for another process that has the file open: not at all, but bbolt takes 0 for ever.
const lockTimeout = 20 * time.Millisecond

// boltError says what an error of opening a bbolt file means.
func boltError(path string, err error) error {
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return fmt.Errorf("metadata directory %s is in use by another process", filepath.Dir(path))
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		return fmt.Errorf("open %s: %w: %w", path, ErrDamaged, err)
	}
	return fmt.Errorf("open %s: %w", path, err)
}
