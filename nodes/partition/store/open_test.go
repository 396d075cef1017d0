package store

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"perdure/control/cluster"
)

// BenchmarkOpen24 opens the stores of a node's 24 partitions, on disk, empty, all at once: what a start costs.
func BenchmarkOpen24(b *testing.B) {
	for _, again := range []bool{false, true} {
		b.Run(fmt.Sprintf("again=%v", again), func(b *testing.B) {
			dir := b.TempDir()
			cache := NewCache(10<<20, 24, 0)
			defer cache.Unref()
			files := pebble.NewFileCache(2, 1000)
			defer files.Unref()
			if again {
				closeAll(b, openAll(b, dir, cache, files))
			}
			for i := 0; b.Loop(); i++ {
				d := dir
				if !again {
					d = filepath.Join(dir, fmt.Sprint(i))
				}
				stores := openAll(b, d, cache, files)
				b.StopTimer()
				closeAll(b, stores)
				b.StartTimer()
			}
		})
	}
}

func openAll(b *testing.B, dir string, cache *pebble.Cache, files *pebble.FileCache) []*Store {
	b.Helper()
	stores := make([]*Store, 24)
	var wg sync.WaitGroup
	for i := range stores {
		wg.Go(func() {
			s, err := Open(Options{
				Dir: filepath.Join(dir, "p", fmt.Sprint(i)), Cache: cache, FileCache: files, Partition: cluster.PartitionID(i), Logger: slog.New(slog.DiscardHandler),
			})
			if err != nil {
				b.Error(err)
				return
			}
			stores[i] = s
		})
	}
	wg.Wait()
	if b.Failed() {
		b.FailNow()
	}
	return stores
}

func closeAll(b *testing.B, stores []*Store) {
	b.Helper()
	for _, s := range stores {
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
